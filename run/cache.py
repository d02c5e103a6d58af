"""Token ids of notes that were read before: owner-only files, because token ids are the text."""

import hashlib
import json
import os
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np

from cli import BadInput
from data import Encoded
from files import Unwritable, checksum_of, is_running, read_json, whole_file, write_whole
from run.untrusted import check_file

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "compressed-clinical-bert"
SUMS = "checksums.json"
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

    Its arrays are read from there as they are used, the first time too: they need not fit into memory. Token
    ids are the text: nobody else may read them, and a directory that others can read is not used.
    """
    place = Path(directory) / key
    encoded = _kept(place)
    if encoded is None:
        encoded = make()
        if names := _keep(place, encoded):
            encoded = _opened(place, names)
    return encoded


def _opened(place, names):
    """The Encoded whose arrays are files of these names in a directory."""
    arrays = {name: np.load(place / name, mmap_mode="r", allow_pickle=False) for name in names}
    return Encoded(**{name.removesuffix(".npy"): array for name, array in arrays.items()})


def is_private(directory):
    """Whether a directory is this user's, and nobody else may enter it."""
    found = os.stat(directory)
    return not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o077)


def _kept(place):
    """The Encoded in a directory, read as it is used; None if there is none, or it may not be trusted."""
    if not place.is_dir():
        return None
    if not is_private(place):
        print(f"note: {place} can be read by others, so it is not used; delete it")
        return None
    try:
        for path in place.iterdir():
            check_file(path)
        sums, names = read_json(place / SUMS), {path.name for path in place.iterdir()}
        if names == {SUMS, *sums} and sums == {name: checksum_of(place / name) for name in sums}:
            return _opened(place, sums)
    except (BadInput, OSError, ValueError, TypeError, AttributeError):  # of a damaged list of checksums
        pass
    print(f"note: the token ids kept in {place} are damaged; they are made again")
    shutil.rmtree(place, ignore_errors=True)
    return None


def _keep(place, encoded):
    """Write an Encoded into a directory of the owner's, whole; say so if that cannot be done.

    Returns the names of its files, or None if they are not there.
    """
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in place.parent.glob(".*.*"):  # of processes that were killed, and of this number's last one
            if left.name.split(".")[-1].isdigit() and not is_running(int(left.name.split(".")[-1])):
                shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(mode=0o700)
        sums = {}
        for field in fields(Encoded):
            if (array := getattr(encoded, field.name)) is not None:
                path = temporary / f"{field.name}.npy"
                with whole_file(path, private=True) as file:
                    np.save(file, array)
                sums[path.name] = checksum_of(path)
        write_whole(temporary / SUMS, json.dumps(sums), private=True)
        if not place.exists():  # another process may have been faster
            temporary.rename(place)
            return list(sums)
    except (OSError, Unwritable) as error:
        print(f"note: token ids are not kept: {getattr(error, 'strerror', None) or error}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def encoded(task, examples, tokenizer, max_length, directory):
    """The examples' rows, from the cache if they were tokenised before; not if the task draws them anew."""
    if (
        directory == "none" or task.redraws or not hasattr(tokenizer, "backend_tokenizer")
    ):  # a tokenizer in Python has no state to hash
        return task.encode(examples, tokenizer, max_length)
    key = encoding_key(tokenizer, {**task.describe(), "max_length": max_length}, examples)
    return cached(directory, key, lambda: task.encode(examples, tokenizer, max_length))
