"""Token ids of notes that were read before: owner-only files, because token ids are the text."""

import hashlib
import json
import os
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np

from data import Encoded

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "compressed-clinical-bert"
ENCODING = 1  # counts up when this project makes other rows of the same notes, so that old ones are not taken


def encoding_key(tokenizer, settings, examples):
    """32 hex digits that change with the tokenizer, the settings (JSON) and every example, text and label."""
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    del words["truncation"], words["padding"]  # left there by the last call, and said again by the next
    made_by = [ENCODING, words, getattr(tokenizer, "truncation_side", None), settings]
    state = hashlib.blake2b(json.dumps(made_by, sort_keys=True).encode(), digest_size=16)
    for example in examples:
        state.update(repr(example).encode(errors="surrogatepass"))
    return state.hexdigest()


def cached(directory, key, make):
    """make() -> Encoded, or what it gave for the same key before, from owner-only files under `directory`.

    Token ids are the text: nobody else may read them, and a directory that others can read is not used.
    """
    place = Path(directory) / key
    encoded = _kept(place)
    if encoded is None:
        encoded = make()
        _keep(place, encoded)
    return encoded


def _kept(place):
    try:
        if not place.is_dir():
            return None
        if hasattr(os, "getuid") and (place.stat().st_uid != os.getuid() or place.stat().st_mode & 0o077):
            print(f"note: {place} can be read by others, so it is not used; delete it")
            return None
        return Encoded(
            **{path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in place.glob("*.npy")}
        )
    except (OSError, ValueError, EOFError, TypeError) as error:
        print(f"note: {place} cannot be used ({type(error).__name__}); delete it")
        return None


def _keep(place, encoded):
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(mode=0o700)
        for field in fields(Encoded):
            if (array := getattr(encoded, field.name)) is not None:
                with os.fdopen(
                    os.open(temporary / f"{field.name}.npy", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600),
                    "wb",
                ) as file:
                    np.save(file, array)
        if not place.exists():  # another process may have been faster
            temporary.rename(place)
    except OSError as error:
        print(f"note: token ids are not kept, {place.parent} cannot be written ({error.strerror})")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def encoded(task, examples, tokenizer, max_length, directory):
    """The examples' rows, from the cache if they were tokenised before and the task does not draw them anew."""
    if (
        directory == "none" or task.redraws or not hasattr(tokenizer, "backend_tokenizer")
    ):  # a tokenizer in Python has no state to hash
        return task.encode(examples, tokenizer, max_length)
    key = encoding_key(tokenizer, {**task.describe(), "max_length": max_length}, examples)
    return cached(directory, key, lambda: task.encode(examples, tokenizer, max_length))
