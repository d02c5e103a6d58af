"""From a CSV of notes to padded batches: files -> notes -> splits -> token ids -> batches.

A file is read as a stream, whatever its size, and only what the model will see of a note is kept. Nothing
here knows what a label means (tasks/ does) or what a model is, and no message from here holds a note's text.
"""

import codecs
import csv
import gc
import gzip
import hashlib
import io
import itertools
import math
import os
import re
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from cli import BadInput

SPLITS = ("train", "validation", "test")
IGNORE = -100  # the label of a token that no loss and no score looks at

# --- files -----------------------------------------------------------------------------------------

MAX_ROW_MB = 16  # millions of characters in a row at most: one quote too many does not fill the memory
BLOCK = 2**18  # bytes read at once, or as many as a longer row has so far
QUOTED, PLAIN = r'"[^"]*+(?:""[^"]*+)*+"', r'[^",\r\n][^,\r\n]*+'  # the two kinds of CSV fields
# names of columns in clinical tables: a first row with one of them is a header
USUAL_NAMES = {
    *("id", "row_id", "note_id", "subject_id", "patient", "patient_id", "hadm_id", "admittime", "dischtime"),
    *("text", "note", "notes", "context", "brief_title", "brief_summary", "label", "labels", "category"),
}


def open_binary(path):
    """(file, binary stream) of a plain or gzip file. Raises BadInput if it cannot be opened."""
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
    return file, gzip.open(file) if zipped else file


def open_text(path):
    """(binary file, text stream) of a plain or gzip file in UTF-8. Raises BadInput if it cannot be opened."""
    file, stream = open_binary(path)
    return file, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")


@contextmanager
def readable(path, line):
    """Within, bytes that are not UTF-8 or gzip are BadInput. line(text): the line after so much more text."""
    try:
        yield
    except UnicodeDecodeError as error:
        near = line(error.object[: error.start].decode())
        raise BadInput(f"{path}, near line {near}: not UTF-8; convert the file to UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise BadInput(f"{path}, near line {line('')}: the gzip data are damaged or cut short") from None


def fault_in(text, start, stop, max_mb):
    """What is wrong with a row or line text[start:stop] before it is looked into, in words, or None."""
    if stop - start > max_mb * 10**6:
        return f"more than {max_mb:g} MB in one row; is a quote not closed? --max-row-mb allows longer rows"
    return "a NUL byte; correct or drop that row" if text.find("\0", start, stop) >= 0 else None


def text_lines(path, stream, max_mb=MAX_ROW_MB):
    """The lines of a stream. Raises BadInput naming the line: not UTF-8, damaged gzip, too long, a NUL."""
    count, most = 0, int(max_mb * 10**6) + 1
    with readable(path, lambda _: count + 1):
        for count, line in enumerate(iter(lambda: stream.readline(most), ""), 1):
            if fault := fault_in(line, 0, len(line), max_mb):
                raise BadInput(f"{path}, line {count}: {fault}")
            yield line


def line_breaks(text, start=0, stop=None):
    """How many lines end in text[start:stop]; a line ends in LF, CR or both."""
    breaks = text.count("\n", start, stop)
    if text.find("\r", start, stop) < 0:  # to find is much faster than to count
        return breaks
    return breaks + text.count("\r", start, stop) - text.count("\r\n", start, stop)


def row_pattern(columns):
    """A regular expression for a CSV row of so many fields, a group each, its quotes included.

    Blank lines before it belong to the match. Its quantifiers are possessive, so nothing is tried twice. A
    carriage return where the text ends is no end of a row: a newline may follow.
    """
    field = f"({QUOTED}|{PLAIN})" if columns == 1 else f"({QUOTED}|(?:{PLAIN})?+)"  # no field: a blank line
    return re.compile(r"[\r\n]*+" + ",".join([field] * columns) + r"(?:\n|\r\n|\r(?!\Z))")


class Cells:
    """The cells of a row, by number from 0; each is taken out of the text when it is asked for."""

    __slots__ = ("found",)

    def __init__(self, found):
        self.found = found  # a match of row_pattern

    def __len__(self):
        return self.found.re.groups

    def __getitem__(self, at):
        cell = self.found[at + 1 if at >= 0 else -1]  # -1: no such group
        if cell[:1] != '"':
            return cell
        cell = cell[1:-1]
        return cell.replace('""', '"') if '"' in cell else cell  # one character is found much faster than two


class Table:
    """A CSV or CSV.gz file, read as a stream: of the text a block is in memory, or the row that it begins.

    Quoted newlines, a byte order mark and rows of up to max_row_mb are read. Every fault is a BadInput that
    names the line and never the cell. part (first byte, byte after the last): read the rows there alone.
    """

    def __init__(self, path, progress=True, max_row_mb=MAX_ROW_MB, part=None):
        self.path, self.progress, self.max_mb = str(path), progress, max_row_mb
        self._file, self._stream = open_binary(self.path)
        self.zipped, self._left = self._stream is not self._file, math.inf  # bytes that may still be read
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._line, self._ended = "", 1, False  # read and not used yet, the line it begins in
        self._at, self._counted = (
            0,
            ("", 0, 1),
        )  # the last row's place in a text, and how far lines are counted
        self.columns = self._next_by_csv()
        if self.columns is None:
            raise BadInput(f"{self.path}: the file is empty")
        self.begin = self._stream.tell() - len(self._text.encode()) - len(self._decoder.getstate()[0])
        if part:
            self._enter(*part)

    def _enter(self, begin, stop):
        """Go to the rows of a part; its lines are counted from 1."""
        self._stream.seek(begin)
        self._left, self._decoder = stop - begin, codecs.getincrementaldecoder("utf-8")()
        self._text, self._line, self._ended = "", 1, False

    def column(self, name, flag, required=True):
        """Index of a column, by name in any case; None if it is absent and not required."""
        names = [column.strip().casefold() for column in self.columns]
        if name.casefold() in names:
            return names.index(name.casefold())
        if not required:
            return None
        remedy = f"name the column with {flag}" if flag else "the header must have it"
        raise BadInput(f"{self.path}: no column {name!r}; {self._columns_in_words()}; {remedy}")

    def _columns_in_words(self):
        """The columns' names; only their number, if none is usual: a file without header has notes there."""
        if not USUAL_NAMES.intersection(column.strip().casefold() for column in self.columns):
            return f"none of its {len(self.columns)} columns has a usual name; is the first row a header?"
        looks_like_a_name = re.compile(r"[A-Za-z_][\w.-]{0,39}").fullmatch
        shown = [name if looks_like_a_name(name) else "(not a column name)" for name in self.columns[:30]]
        return f"found {', '.join(shown)}"

    @property
    def line(self):
        """The line in which the row begins that came last; it is counted only when it is asked for."""
        text, at, line = self._counted
        line += line_breaks(text, at, self._at)
        self._counted = text, self._at, line
        return line

    def __iter__(self):
        """Yield the cells of every row; blank lines are left out."""
        size, hide = os.fstat(self._file.fileno()).st_size, None if self.progress else True
        size = min(size, self._left)
        with tqdm(total=size, unit="B", unit_scale=True, desc="reading", disable=hide, leave=False) as bar:
            before = self._file.tell()
            for count, row in enumerate(self._records()):
                if count % 1000 == 0:
                    bar.update(self._file.tell() - before - bar.n)
                yield row
        self._file.close()

    def _records(self):
        """Yield the cells of every row.

        One regular expression takes whole rows, three times as fast as csv; csv reads what does not match.
        """
        columns = len(self.columns)
        match = row_pattern(columns).match
        while True:
            text, at = self._text, 0
            self._counted = text, 0, self._line
            suspect = "\0" in text or len(text) > self.max_mb * 10**6  # else no row of it can be at fault
            while found := match(text, at):
                start, at = at, found.end()
                if text[start] in "\r\n":  # blank lines
                    start = found.start(1)
                self._at = start
                if suspect and (fault := fault_in(text, start, at, self.max_mb)):
                    raise BadInput(f"{self.path}, line {self.line}: {fault}")
                yield Cells(found)

            self._text, self._line = text[at:], self._line + line_breaks(text, 0, at)
            if at:  # what is left begins a row
                self._read_on()
            elif (row := self._next_by_csv()) is None:
                return
            elif len(row) == columns:
                yield row
            else:
                raise BadInput(
                    f"{self.path}, line {self.line}: {len(row)} fields where the header has {columns}; "
                    "check the quotes there and just above"
                )

    def _next_by_csv(self):
        """The cells of the next row, read by Python's csv; None if there is no more."""
        csv.field_size_limit(2**31 - 1)
        while True:
            lines, line, row = io.StringIO(self._text, newline=""), self._line, None
            reader = csv.reader(lines, strict=True)
            try:
                while (row := next(reader, None)) == []:  # a blank line
                    line = self._line + reader.line_num
            except csv.Error as error:
                if self._ended or "unexpected end" not in str(error):
                    what = "a quote in the row that starts here is not closed; correct that row"
                    raise BadInput(f"{self.path}, line {line}: {what}") from None
            used = lines.tell()
            if used < len(self._text) or self._ended:
                break
            self._read_on()  # a row that ends where the text ends may go on

        if fault := fault_in(self._text, 0, used, self.max_mb):
            raise BadInput(f"{self.path}, line {line}: {fault}")
        self._at, self._counted = 0, ("", 0, line)
        self._text, self._line = self._text[used:], self._line + reader.line_num
        return row

    def _read_on(self):
        """Add a block to the text. Raises BadInput if it is too long for a row, not UTF-8 or damaged gzip."""
        if fault := fault_in("", 0, len(self._text), self.max_mb):
            raise BadInput(f"{self.path}, line {self._line}: {fault}")
        with readable(self.path, lambda text: self._line + line_breaks(self._text + text)):
            block = self._stream.read(min(self._left, max(BLOCK, len(self._text))))
            self._left -= len(block)
            self._text += self._decoder.decode(block, final=not block)
        self._ended = not block


# --- notes -----------------------------------------------------------------------------------------


@contextmanager
def collector_paused():
    """Within, Python's garbage collector rests: it would look at every note again and again, to no use."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(slots=True)
class Note:
    """One note: the row it came from, the patient, what the model sees of the text, the label.

    The label is a class index, or a tuple of them where a note may have several, or None where it is unknown.
    Where there are too many notes to hold their texts, the text is None: its key says whether two are equal,
    and path and row where to read it again. groups {column: value} are those whose scores it counts in.
    """

    row_id: str
    subject: str
    text: str | None
    label: int | tuple | None = None
    key: bytes | None = None
    path: str | None = field(default=None, repr=False)
    row: int = field(default=0, repr=False)  # its number in the file, from 1
    groups: dict | None = field(default=None, repr=False)


def digest(*parts):
    """A 64-bit hash of strings, the same in every process and on every machine (Python's hash() is not)."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest(), "big")


def key_of(text):
    """A 128-bit hash of a text, 16 bytes."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def text_key(example):
    """The key of an example's text: equal for equal texts."""
    return example.key if example.text is None else key_of(example.text)


def sampled(row_id, fraction, seed):
    """Whether a row belongs to a sample of the given fraction; its id alone decides: one pass is enough."""
    return fraction >= 1 or digest(str(seed), row_id) < fraction * 2**64


def fold_duplicates(notes, merge=None):
    """Keep the first of all notes with exactly the same text. Returns (notes, number folded away).

    merge(first, other), if given, is called for each note that is folded away.
    """
    first = {}
    for note in notes:
        kept = first.setdefault(text_key(note), note)
        if merge and kept is not note:
            merge(kept, note)
    return list(first.values()), len(notes) - len(first)


def repeated(notes):
    """How many notes have the text of an earlier one."""
    return len(notes) - len({text_key(note) for note in notes})


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
    lack = {split: {label: share * n for label, n in totals.items()} for split, share in shares.items()}

    def gain(split, labels):
        return sum(n * lack[split][label] / totals[label] / shares[split] for label, n in labels)

    home = {}  # {subject: split}
    order = sorted(by_subject, key=lambda subject: (-by_subject[subject].total(), digest(str(seed), subject)))
    for subject in order:
        labels = by_subject[subject].items()
        home[subject] = max(shares, key=lambda split, labels=labels: gain(split, labels))
        for label, n in labels:
            lack[home[subject]][label] -= n

    splits = {split: [] for split in shares}
    for note in notes:
        splits[home[note.subject]].append(note)
    return splits


def split_fold(notes, fold, validation, seed, strata=lambda note: (note.label,)):
    """Split notes by subject into folds of equal share; fold k of n is the test split.

    fold (k, n), k from 1; validation: its share of all notes, or None for no such split. The folds are the
    same for every k and validation, so their test splits together are all notes, each once. Returns what
    split_by_subject does.
    """
    k, n = fold
    folds = split_by_subject(notes, dict.fromkeys(range(1, n + 1), 1 / n), seed, strata)
    tested = set(map(id, folds[k]))
    rest = [note for note in notes if id(note) not in tested]
    shares = {"train": 1.0}
    if validation is not None:
        share = validation * n / (n - 1)  # of the rest
        shares = {"train": 1 - share, "validation": share}
    return {**split_by_subject(rest, shares, seed, strata), "test": folds[k]}


def fingerprint(splits):
    """One hash of which row is in which split: two runs can be compared only if theirs are equal."""
    return f"{digest(*(f'{split}:{note.row_id}' for split in SPLITS for note in splits[split])):016x}"


# --- token ids -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Encoded:
    """Token ids of many rows, end to end: row i is ids[starts[i]:starts[i + 1]]. No padding is stored.

    A row is a note, or a window of a long one; `owner` says which example it belongs to. Labels belong to
    rows or to tokens (IGNORE = none), whichever the task learns from.
    """

    ids: np.ndarray  # (sum of lengths,) int32, or uint16 where the vocabulary allows it
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


def tokenise(texts, tokenizer, progress=True, total=None, **keywords):
    """Yield the tokenizer's output for 1,000 texts at a time, under a progress bar; it uses all cores.

    total: how many texts there are, if they come from an iterator.
    """
    hide, total, texts = None if progress else True, len(texts) if total is None else total, iter(texts)
    with tqdm(total=total, unit="text", desc="tokenising", disable=hide, leave=False) as bar:
        while batch := list(itertools.islice(texts, 1000)):
            yield tokenizer(batch, **keywords)
            bar.update(len(batch))


def encode(texts, count, tokenizer, max_length, progress=True):
    """Tokenise `count` texts, each once, cut to max_length tokens, special tokens included.

    Only 1,000 of them are held at a time, and the ids take the two bytes that most vocabularies need.
    """
    kind = np.uint16 if len(tokenizer) <= 2**16 else np.int32
    ids, lengths, used = np.empty(count * max_length, kind), [], 0  # pages that stay unused take no memory
    how = {"truncation": True, "max_length": max_length}
    how |= {"return_attention_mask": False, "return_token_type_ids": False}
    for batch in tokenise(texts, tokenizer, progress, count, **how):
        for row in batch["input_ids"]:
            ids[used : used + len(row)] = row
            used += len(row)
            lengths.append(len(row))
    return Encoded(ids[:used], np.cumsum([0, *lengths], dtype=np.int64), np.arange(count))


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
    pools = [shuffled[i : i + pool * batch_size] for i in range(0, len(shuffled), pool * batch_size)]
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
        size = size if size <= left else 1 << left.bit_length() - 1  # the largest power of two <= left
        batches.append(order[at : at + size])
        at += size
    return batches


def collate(encoded, rows, pad_id, device="cpu"):
    """Pad the named rows (B,) to their longest: a dict of tensors on the device, and of the rows themselves.

    input_ids, attention_mask (B, T) int64; labels, if there are any, (B,), (B, C) or by token (B, T). "full"
    is set where no row is padded: without a mask there is less to do, and a GPU may take its flash kernel.
    """
    starts, stops = encoded.starts[rows], encoded.starts[rows + 1]
    shape = (len(rows), int((stops - starts).max()))  # (B, T)
    batch = {"input_ids": np.full(shape, pad_id, np.int64), "attention_mask": np.zeros(shape, np.int64)}
    if encoded.labels is not None:
        batch["labels"] = encoded.labels[rows]  # (B,) or (B, C)
    if encoded.token_labels is not None:
        batch["labels"] = np.full(shape, IGNORE, np.int64)  # (B, T)

    for i, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        batch["input_ids"][i, : stop - start] = encoded.ids[start:stop]
        batch["attention_mask"][i, : stop - start] = 1
        if encoded.token_labels is not None:
            batch["labels"][i, : stop - start] = encoded.token_labels[start:stop]
    batch = {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
    if (stops - starts == shape[1]).all():
        batch["full"] = True
    return {"rows": rows, **batch}
