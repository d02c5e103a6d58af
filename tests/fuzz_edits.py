"""Edits that damage a file, and what hypothesis draws; all by the random numbers that they are given."""

import copy
import csv
import functools
import gzip
import io
import json
import os
import tempfile

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", tempfile.mkdtemp())  # not in the user's folder

from hypothesis import given

VALUES = (
    None, True, False, -1, 0, 1, 7, 10**6, 10**9, 10**20, 1.5, -1e308, float("nan"), float("inf"), "", "a/b",
    "../../../../etc/passwd", "/dev/zero", "x" * 10_000, "9" * 5000, "\0", "\ud800", "evil.py", [], {}, [[]],
    [10**8], [None], [-1] * 100, list(range(2000)), {"a": {"b": 1}}, {"": None}, ["a"] * 3, "bert", "albert",
    "distilbert", "quantization", "lowrank", "pruning",
)  # fmt: skip
KEYS = ("auto_map", "quantization_config", "attn_implementation", "tie_word_embeddings", "is_decoder",
        "num_labels", "num_hidden_layers", "heads", "ranks", "names", "thresholds", "chat_template",
        "fast_tokenizer_files", "init_inputs", "added_tokens_decoder", "model_max_length")  # fmt: skip
CELLS = (
    "", " ", "0", "1", "1.0", "2", "-1", "1e400", "nan", "\x1c1", "\u0661", "a;b;;a", ";", "\0", "\ufeff",
    '"', "O", "9999-12-31 23:59:59", "0001-01-01", "2164-10-23T21:09:00Z", "2164-10-23 21:09:00+14:00",
    "2164", "B-", "I-x", "# doc", "-DOCSTART-", "a\tb", "a\rb", "a\nb", 'a"b', "\u2028",
    "\N{SNOWMAN}" * 1000, "\u0130", "x" * 10**5, "ELECTIVE", "NEWBORN", "fever", "[**", "[MASK]", "TEXT",
    "label", "SUBJECT_ID",
)  # fmt: skip


# --- edits -------------------------------------------------------------------------------------------


def places(value):
    """(container, key) of everything within a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from places(inner)


def edit_json(path, rng):
    """Delete, change, exchange or add something at a random depth of a JSON file."""
    whole = {"": json.loads(path.read_text())}
    found = list(places(whole))
    container, key = rng.choice(found if rng.random() < 0.5 else found[: 1 + len(found) // 20])
    how = rng.randrange(5)
    if how == 0 and container is not whole:
        del container[key]
    elif how == 1:
        container[key] = copy.deepcopy(rng.choice([c[k] for c, k in found]))
    elif how == 2 and isinstance(container[key], dict):
        container[key][rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
    elif how == 3 and type(container[key]) is int:
        container[key] = rng.choice((-container[key], container[key] * 1000, container[key] + 1, 10**7))
    else:
        container[key] = copy.deepcopy(rng.choice(VALUES))
    path.write_text(json.dumps(whole[""]))


def edit_bytes(path, rng):
    """Flip, cut, insert or repeat bytes, more often near the beginning, where headers are."""
    content = bytearray(path.read_bytes())
    reach = min(len(content), rng.choice((9, 300, 5000, len(content))))
    at, how = rng.randrange(reach or 1), rng.randrange(6)
    if how == 0:
        for _ in range(rng.choice((1, 1, 10)) if reach else 0):
            content[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    elif how == 1:
        del content[at:]
    elif how == 2:
        content[at:at] = rng.randbytes(rng.choice((1, 8, 1000)))
    elif how == 3:
        del content[at : at + rng.choice((1, 8, 1000))]
    elif how == 4:
        content[at:at] = rng.choice((b"9" * 30, b"[" * 100_000, b"\xff\xfe", b'"', b"\n,,,\n", b"-", b"{}"))
    else:
        content[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"99999999"))
    path.write_bytes(content)


def exchange(path, rng, kinds=range(8)):
    """Put something else in a file's place. kinds: which things; the first two have no end, or wait."""
    content = path.read_bytes()
    path.unlink()
    how = rng.choice(kinds)
    if how == 0:
        os.mkfifo(path)
    elif how == 1:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/stdin", "/proc/kmsg", "/etc/hostname", path.name)))
    elif how == 2:
        path.mkdir()
    elif how == 3:
        with open(path, "wb") as file:
            file.write(content)
            file.truncate(rng.choice((10**8, 10**12)))
    elif how == 4:
        path.write_bytes(rng.choice((b"", b"[" * 10**6, b"[[]," * 10**6 + b"0]", b'"' + b"a" * 10**7 + b'"')))
    elif how == 5:
        path.write_bytes(content * 2)
    elif how == 6:
        path.write_bytes(rng.randbytes(1000))


def edit_cells(path, rng):
    """Change cells, rows, columns or the header of a CSV file, or of one with tabs and without quotes."""
    text, tabs = path.read_text(), ".tsv" in path.suffixes
    rows = [line.split("\t") for line in text.split("\n")] if tabs else list(csv.reader(io.StringIO(text)))
    for _ in range(rng.choice((1, 1, 2, 20))):
        edit_row(rows, 0 if not tabs and rng.random() < 0.3 else rng.randrange(len(rows)), rng)
    end = rng.choice(("\n", "\n", "\r\n", "\r"))
    buffer = io.StringIO(newline="")
    if tabs:
        buffer.write(end.join("\t".join(row) for row in rows))
    else:
        how = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        csv.writer(buffer, quoting=how, lineterminator=end).writerows(rows)
    path.write_bytes(buffer.getvalue().encode("utf-8", "surrogatepass"))


def edit_row(rows, at, rng):
    """Change one of the rows, all rows, or the cells of a column."""
    row, cell, how = rows[at], rng.choice(CELLS), rng.randrange(9)
    column = rng.randrange(len(row) or 1)
    if how == 0:
        row[column : column + 1] = [cell]
    elif how == 1:
        row[column : column + 1] = [rng.choice(rng.choice(rows) or [""])]
    elif how == 2:
        del row[column : column + 1]
    elif how == 3:
        row.insert(column, cell)
    elif how == 4:
        rows[at : at + rng.choice((1, len(rows)))] = [row] if at == 0 else []
    elif how == 5:
        rows.insert(at, list(row))
    elif how == 6:
        for other in rows[1:]:
            other[column : column + 1] = [cell]
    elif how == 7:
        rng.shuffle(row)
    else:
        rows[1:] = rng.sample(rows[1:], len(rows) - 1)


def zip_up(path):
    """Compress a file. Returns its new path."""
    zipped = path.with_name(f"{path.name}.gz")
    zipped.write_bytes(gzip.compress(path.read_bytes(), 1))
    path.unlink()
    return zipped


# --- drawing -----------------------------------------------------------------------------------------


@functools.cache
def drawer(strategy):
    """(a list, a function (bytes) that appends to it what a hypothesis strategy makes of the bytes)."""
    found = []

    @given(strategy)
    def keep(value):
        found.append(value)

    return found, keep.hypothesis.fuzz_one_input


def draw(strategy, rng):
    """What a hypothesis strategy makes of random numbers; the same for the same numbers."""
    found, feed = drawer(strategy)
    found.clear()
    while not found:  # there were too few bytes
        feed(rng.randbytes(8192))
    return found[0]
