"""Which notes a run learnt from: salted keys of their texts, 64 bits each, for the owner alone.

So that evaluate.py can find the run's own notes in another file, although the run directory holds no text.
Whoever has the file can test whether a text that they have is among the notes. The salt differs from one
split or seed to another, so the files of two runs cannot be compared.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from cli import BadInput
from data import digest, text_key
from run.untrusted import read_header

KEYS = "train_keys.safetensors"
RANKS = {"salt": 1, "keys": 1}  # dimensions of the tensors in it


def salted_keys(examples, salt):
    """A 64-bit key of each example's text, (N,) int64. salt: 8 bytes."""
    keys = [hashlib.blake2b(text_key(e), digest_size=8, key=salt).digest() for e in examples]
    return np.frombuffer(b"".join(keys), "<i8")


def training_keys(examples, split, seed):
    """{KEYS: {"salt", "keys"}} for a run directory, of the train and validation ones of {split: examples}.

    The salt is made of the split's fingerprint and the seed, so that a resumed run writes the same file.
    """
    salt = digest("salt of keys", split, str(seed)).to_bytes(8, "little")
    keys = np.unique(salted_keys([*examples["train"], *examples["validation"]], salt))
    return {KEYS: {"salt": torch.tensor(list(salt), dtype=torch.uint8), "keys": torch.from_numpy(keys)}}


def learnt_from(directory, examples):
    """Which of the examples have the text of a note that the run was trained or validated on, (N,) bool.

    None if the directory has no keys: older runs have none, and they may have been removed.
    """
    path = Path(directory) / KEYS
    if not path.exists():
        return None
    shapes = read_header(path).shapes
    tensors = load_file(path) if {name: len(shape) for name, shape in shapes.items()} == RANKS else {}
    if not tensors or tensors["keys"].dtype != torch.int64 or shapes["salt"] != (8,):
        raise BadInput(f"{path}: holds no keys of notes; remove it, or train the run again")
    salt = bytes(tensors["salt"].to(torch.uint8).tolist())
    return np.isin(salted_keys(examples, salt), tensors["keys"].numpy())
