"""A large CSV read by all cores: each part of it by a copy of this process.

A part begins after a newline from which rows of the right width go on. That is a guess, and reading proves
it: a part that is read to its end without a fault ends outside quotes, so a row ends there and the next part
begins with one. If a part has a fault, one process reads the whole file, and names the row.
"""

import io
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import suppress
from operator import attrgetter

import torch
from tqdm import tqdm

from cli import BadInput
from data import Note, Table, row_pattern

LARGE = 2**26  # bytes of a file that is worth the copies
WINDOW = 2**20  # bytes among which a part's first row is sought
CHUNK = 10_000  # notes that are handed over at once
ROWS = 3  # how many rows must go on from there


def parts_of(table):
    """[(first byte, byte after the last)] of the parts in which all cores read a table; [] = read it whole.

    A gzip file cannot be entered in the middle.
    """
    size, count = os.path.getsize(table.path), min(8, torch.get_num_threads())
    if count < 2 or sys.platform != "linux" or size < LARGE or not isinstance(table, Table) or table.zipped:
        return []
    begins = [table.begin, *(row_near(table, size * part // count) for part in range(1, count))]
    if None in begins or sorted(set(begins)) != begins:
        return []
    return list(zip(begins, [*begins[1:], size], strict=True))


def row_near(table, at):
    """The first byte behind `at` from which rows seem to go on, or None."""
    with open(table.path, "rb") as file:
        file.seek(at)
        text = file.read(WINDOW).decode("latin-1")  # a character a byte
    match, newline = row_pattern(len(table.columns)).match, text.find("\n")
    while newline >= 0:
        row = newline + 1
        for _ in range(ROWS):
            found = match(text, row)
            if not found:
                break
            row = found.end()
        else:
            return at + newline + 1
        newline = text.find("\n", newline + 1)
    return None


def read_parts(read, parts):
    """[read(part)] in the parts' order, the first by this process; None if there was a fault in one.

    read(part) -> (facts, [Note]); it runs in copies of this process, so what else it changes is lost there.
    """
    context, copies = multiprocessing.get_context("fork"), []
    try:
        for part in parts[1:]:
            ours, theirs = context.Pipe(duplex=False)
            copy = context.Process(target=_answer, args=(theirs, read, part), daemon=True)
            copy.start()
            theirs.close()
            copies.append((copy, ours))
        return [read(parts[0]), *(_receive(pipe) for _, pipe in copies)]
    except (BadInput, EOFError):  # EOFError: a copy had a fault or was killed, perhaps for its memory
        return None
    finally:
        for copy, pipe in copies:
            copy.kill()
            copy.join()
            pipe.close()


def _receive(pipe):
    """(facts, [Note]) from a copy."""
    facts, count = pipe.recv()
    notes = []
    while len(notes) < count:
        notes += map(Note, *pipe.recv())
    return facts, notes


def _answer(pipe, read, part):
    """In a copy of the process: send what read(part) gives. It holds no file and no lock of the original."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.closerange(3, pipe.fileno())
    os.closerange(pipe.fileno() + 1, 2**16)
    sys.stderr = io.StringIO()  # one bar is enough
    tqdm.set_lock(
        threading.RLock()
    )  # tqdm's own is shared by processes: who is killed would keep it for good
    with suppress(BadInput, BrokenPipeError):
        facts, notes = read(part)
        pipe.send((facts, len(notes)))
        for at in range(0, len(notes), CHUNK):  # by columns they are pickled in a quarter of the time
            pipe.send(tuple(zip(*map(attrgetter(*Note.__slots__), notes[at : at + CHUNK]), strict=True)))
