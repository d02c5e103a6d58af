"""From a CSV of notes to padded batches: files -> notes -> splits -> token ids -> batches.

A file is read as a stream, whatever its size, and only what the model will see of a note is kept. Nothing
here knows what a label means (tasks/ does) or what a model is, and no message from here holds a note's text.
"""

import csv
import gzip
import hashlib
import io
import math
import os
import re
import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from cli import BadInput

SPLITS = ("train", "validation", "test")
IGNORE = -100  # the label of a token that no loss and no score looks at

# --- files -----------------------------------------------------------------------------------------


def open_text(path):
    """(binary file, text stream) of a plain or gzip file in UTF-8. Raises BadInput if it cannot be opened."""
    path = str(path)
    try:
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
        start = file.read(2)
        file.seek(0)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: is a directory; name the file in it") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None

    zipped = start == b"\x1f\x8b"
    if path.endswith(".gz") and not zipped:
        raise BadInput(f"{path}: is named .gz but is not gzip; rename it or compress it again")
    binary = gzip.open(file) if zipped else file  # noqa: SIM115 - so here
    return file, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")


def text_lines(path, stream):
    """The lines of a stream. Raises BadInput naming the line: not UTF-8, a NUL byte, or damaged gzip data."""
    count = 0
    try:
        for count, line in enumerate(stream, 1):
            if "\0" in line:
                raise BadInput(f"{path}, line {count}: a NUL byte; correct or drop that row")
            yield line
    except UnicodeDecodeError:
        what = "not UTF-8; convert the file to UTF-8"
        raise BadInput(f"{path}, near line {count + 1}: {what}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        what = "the gzip data are damaged or cut short"
        raise BadInput(f"{path}, near line {count + 1}: {what}") from None


class Table:
    """A CSV or CSV.gz file, read as a stream.

    Quoted newlines, a byte order mark and fields of any size are read. Every fault is a BadInput that names
    the line and never the cell.
    """

    def __init__(self, path, progress=True):
        self.path, self.progress = str(path), progress
        self._file, self._stream = open_text(self.path)
        self._rows = self._records()
        _, self.columns = next(self._rows, (0, None))
        if self.columns is None:
            raise BadInput(f"{self.path}: the file is empty")

    def column(self, name, flag, required=True):
        """Index of a column, by name in any case; None if it is absent and not required."""
        names = [column.strip().casefold() for column in self.columns]
        if name.casefold() in names:
            return names.index(name.casefold())
        if not required:
            return None

        # a file without a header has a note where a name should be: print only what looks like a name
        is_name = re.compile(r"[A-Za-z_][\w.-]{0,39}").fullmatch
        found = [c if is_name(c) else "(not a column name)" for c in self.columns[:30]]
        remedy = f"name the column with {flag}" if flag else "the header must have it"
        raise BadInput(f"{self.path}: no column {name!r}; found {', '.join(found)}; {remedy}")

    def __iter__(self):
        """Yield (line number, list of cells) for every row; blank lines are left out."""
        size, hide = os.fstat(self._file.fileno()).st_size, None if self.progress else True
        words = {"desc": "reading", "unit": "B", "unit_scale": True, "leave": False}
        with tqdm(total=size, disable=hide, **words) as bar:
            for count, (line, row) in enumerate(self._rows):
                if count % 1000 == 0:
                    bar.update(self._file.tell() - bar.n)
                if len(row) != len(self.columns):
                    raise BadInput(
                        f"{self.path}, line {line}: {len(row)} fields where the header has "
                        f"{len(self.columns)}; check the quotes there and just above"
                    )
                yield line, row
        self._file.close()

    def _records(self):
        """Yield (line number where it begins, list of cells) for the header and every row."""
        csv.field_size_limit(2**31 - 1)
        reader = csv.reader(text_lines(self.path, self._stream), strict=True)
        line = 1
        try:
            for row in reader:
                if row:
                    yield line, row
                line = reader.line_num + 1
        except csv.Error:
            where = f"{self.path}, line {line}"
            raise BadInput(
                f"{where}: a quote in the row that starts here is not closed; correct that row"
            ) from None


# --- notes -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Note:
    """One note: the row it came from, the patient, what the model sees of the text, the label.

    The label is a class index, or a tuple of them where a note may have several, or None where it is unknown.
    """

    row_id: str
    subject: str
    text: str
    label: int | tuple | None = None


def digest(*parts):
    """A 64-bit hash of strings, the same in every process and on every machine (Python's hash() is not)."""
    return int.from_bytes(
        hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest(), "big"
    )


def sampled(row_id, fraction, seed):
    """Whether a row belongs to a sample of the given fraction; its id alone decides: one pass is enough."""
    return fraction >= 1 or digest(str(seed), row_id) < fraction * 2**64


def fold_duplicates(notes, merge=None):
    """Keep the first of all notes with exactly the same text. Returns (notes, number folded away).

    merge(first, other), if given, is called for each note that is folded away.
    """
    first = {}
    for note in notes:
        kept = first.setdefault(hashlib.blake2b(note.text.encode(), digest_size=16).digest(), note)
        if merge and kept is not note:
            merge(kept, note)
    return list(first.values()), len(notes) - len(first)


def balance(notes, seed):
    """Down-sample every class to the size of the smallest, as the reference does."""
    by_class = {}
    for index, note in enumerate(notes):
        by_class.setdefault(note.label, []).append((digest(str(seed), note.row_id), index))

    smallest = min(map(len, by_class.values()))
    kept = sorted(index for members in by_class.values() for _, index in sorted(members)[:smallest])
    return [notes[index] for index in kept]


# --- splits ----------------------------------------------------------------------------------------


def split_by_subject(notes, shares, seed, strata=lambda note: (note.label,)):
    """Split notes by subject, keeping label proportions close. shares {split: share}, which sum to 1.

    Subjects are assigned one by one, those with most notes first, each to the split that lacks most of the
    labels the subject brings (the idea of scikit-learn's StratifiedGroupKFold). strata(note) are the labels
    to keep in proportion. Returns {split: [Note]}, in the notes' order.
    """
    by_subject, totals = {}, Counter()  # {subject: Counter of its labels}, and of all labels
    for note in notes:
        by_subject.setdefault(note.subject, Counter()).update(strata(note))
    for counts in by_subject.values():
        totals.update(counts)
    lack = {
        split: {label: share * n for label, n in totals.items()} for split, share in shares.items()
    }

    def gain(split, labels):
        return sum(n * lack[split][label] / totals[label] / shares[split] for label, n in labels)

    home = {}  # {subject: split}
    order = sorted(
        by_subject, key=lambda subject: (-by_subject[subject].total(), digest(str(seed), subject))
    )
    for subject in order:
        labels = by_subject[subject].items()
        home[subject] = max(shares, key=lambda split, labels=labels: gain(split, labels))
        for label, n in labels:
            lack[home[subject]][label] -= n

    splits = {split: [] for split in shares}
    for note in notes:
        splits[home[note.subject]].append(note)
    return splits


def fingerprint(splits):
    """One hash of which row is in which split: two runs can be compared only if theirs are equal."""
    rows = (f"{split}:{note.row_id}" for split in SPLITS for note in splits[split])
    return f"{digest(*rows):016x}"


# --- token ids -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Encoded:
    """Token ids of many rows, end to end: row i is ids[starts[i]:starts[i + 1]]. No padding is stored.

    A row is a note, or a window of a long one; `owner` says which example it belongs to. Labels belong to
    rows or to tokens (IGNORE = none), whichever the task learns from.
    """

    ids: np.ndarray  # (sum of lengths,) int32
    starts: np.ndarray  # (rows + 1,) int64
    owner: np.ndarray  # (rows,) int64, ascending
    labels: np.ndarray | None = None  # (rows,) int64, or (rows, labels) float32
    token_labels: np.ndarray | None = None  # (sum of lengths,) int32

    @property
    def lengths(self):
        """Tokens in each row, (rows,)."""
        return np.diff(self.starts)


def _end_to_end(rows):
    """A list of arrays as one int32 array."""
    return np.concatenate([np.empty(0, np.int32), *rows]).astype(np.int32)


def pack(rows, owner=None, token_labels=None):
    """Encoded of a list of token id arrays; row i belongs to example i unless `owner` says otherwise."""
    starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    owner = np.arange(len(rows)) if owner is None else np.asarray(owner, np.int64)
    labels = None if token_labels is None else _end_to_end(token_labels)
    return Encoded(_end_to_end(rows), starts, owner, token_labels=labels)


def tokenise(texts, tokenizer, progress=True, **keywords):
    """Yield the tokenizer's output for 1,000 texts at a time, under a progress bar."""
    hide = None if progress else True
    with tqdm(total=len(texts), unit="text", desc="tokenising", disable=hide, leave=False) as bar:
        for start in range(0, len(texts), 1000):
            yield tokenizer(texts[start : start + 1000], **keywords)
            bar.update(min(1000, len(texts) - start))


def encode(texts, tokenizer, max_length, progress=True):
    """Tokenise every text once, cut to max_length tokens, special tokens included."""
    batches = tokenise(texts, tokenizer, progress, truncation=True, max_length=max_length)
    return pack([np.asarray(ids, np.int32) for batch in batches for ids in batch["input_ids"]])


def frame(tokenizer):
    """The special tokens before and after a text, two int32 arrays: [CLS] and [SEP] for BERT."""
    ids = np.asarray(tokenizer("")["input_ids"], np.int32)
    return ids[:1], ids[1:]


def windows(length, size, overlap):
    """[(start, stop)] of even windows of `size` that cover range(length) and share at least `overlap`."""
    if length <= size:
        return [(0, length)]
    count = math.ceil((length - overlap) / (size - overlap))
    starts = [round(i * (length - size) / (count - 1)) for i in range(count)]
    return [(start, start + size) for start in starts]


# --- batches ---------------------------------------------------------------------------------------


def make_batches(lengths, batch_size, seed, pool=50):
    """Cut rows into training batches of similar length: a list of index arrays.

    Rows are shuffled, sorted by length within pools of `pool` batches, and the batches are shuffled again.
    The same seed gives the same list on any machine.
    """
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(lengths))
    size = pool * batch_size
    pools = [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
    order = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in pools])

    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def budget_batches(lengths, tokens):
    """Cut rows into prediction batches: longest first, each of at most `tokens` tokens, padding included.

    Once the rest fits one batch, it goes in powers of two, so that few batch shapes occur: oneDNN keeps about
    0.3 MB for each shape of a matrix product, and without this 200,000 notes took 1.3 times the memory that
    20,000 took.
    """
    order, batches, at = np.argsort(-lengths, kind="stable"), [], 0
    while at < len(order):
        size, left = max(1, tokens // int(lengths[order[at]])), len(order) - at
        if size > left:
            size = 1 << left.bit_length() - 1  # the largest power of two that is left
        batches.append(order[at : at + size])
        at += size
    return batches


def collate(encoded, rows, pad_id, device="cpu"):
    """Pad the named rows (B,) to their longest: a dict of tensors on the device, and of the rows themselves.

    input_ids, attention_mask (B, T) int64; labels, if there are any, (B,), (B, C) or by token (B, T).
    """
    starts, stops = encoded.starts[rows], encoded.starts[rows + 1]
    shape = (len(rows), int((stops - starts).max()))  # (B, T)
    batch = {
        "input_ids": np.full(shape, pad_id, np.int64),
        "attention_mask": np.zeros(shape, np.int64),
    }
    if encoded.labels is not None:
        batch["labels"] = encoded.labels[rows]  # (B,) or (B, C)
    if encoded.token_labels is not None:
        batch["labels"] = np.full(shape, IGNORE, np.int64)  # (B, T)

    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        batch["input_ids"][i, : stop - start] = encoded.ids[start:stop]
        batch["attention_mask"][i, : stop - start] = 1
        if encoded.token_labels is not None:
            batch["labels"][i, : stop - start] = encoded.token_labels[start:stop]
    tensors = {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
    return {"rows": rows, **tensors}
