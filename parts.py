"""A large CSV read by all cores: cut into parts where rows end, each read in a process of its own.

A newline after an even number of quotes ends a row, unless a field without quotes holds one. So every cut is
a guess, and it is checked: if a part begins where a row begins and its last row ends where the part ends, the
cut is right. From the first part on that fails this, or has a fault, one process reads on alone. So rows,
their order, and what is said of a faulty one are those of one process.
"""

import codecs
import io
import mmap
import multiprocessing
import os
import signal
import sys
import zlib
from collections import deque
from contextlib import contextmanager

import torch

from cli import BadInput
from data import Table, readable, reading_bar

SIZE = 2**21  # bytes of a part at most
SMALL = 2**26  # a file of fewer bytes is read by one process


class Part(Table):
    """Some rows of a table, as a table; its lines are counted from 1."""

    def __init__(self, table, content):
        self.path, self.max_mb, self.columns = table.path, table.max_mb, table.columns
        self._stream, self._decoder = io.BytesIO(), codecs.getincrementaldecoder("utf-8")()
        self._line, self._ended, self.begun = 1, True, True
        with readable(self.path, lambda _: 1):
            self._text = str(content, "utf-8")

    def __iter__(self):
        return self._records()


class Reader:
    """A copy of this process that reads parts; the bytes of a part lie in memory that both see."""

    def __init__(self, table, read):
        context = multiprocessing.get_context("fork")
        self.memory, self.size = mmap.mmap(-1, SIZE), 0
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.memory, table, read), daemon=True)
        self.process.start()
        theirs.close()

    def begin(self, size, told):
        """Let it read the first `size` bytes of the memory."""
        self.size = size
        self.pipe.send((size, told))

    def answer(self):
        """(result, lines) of the part; None if it has a fault or does not end with a row."""
        try:
            return self.pipe.recv()
        except EOFError:  # it was killed, perhaps for its memory
            return None

    def stop(self):
        """End the process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def serve(pipe, memory, table, read):
    """In a copy of the process: read parts until the original is gone. It holds no files or locks of that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.closerange(3, pipe.fileno())
    os.closerange(pipe.fileno() + 1, 2**16)
    original = os.getppid()
    while True:
        while not pipe.poll(1):
            if os.getppid() != original:
                os._exit(0)
        size, told = pipe.recv()
        try:
            part = Part(table, memory[:size])
            pipe.send((read(part, told), part.line - 1))
        except BadInput:  # one process finds it again, and names its line
            pipe.send(None)


@contextmanager
def readers(count, table, read):
    """So many Readers, within."""
    started = []
    try:
        started += (Reader(table, read) for _ in range(count))
        yield list(started)
    finally:
        for reader in started:
            reader.stop()


def take(memory, rest, stream):
    """Put the bytes `rest` and as many of a stream as there is room into a memory.

    Returns (size of the part, the bytes after it); the size is 0 at the end, None if no part can be made.
    """
    if (size := len(rest)) > SIZE:
        return None, b""
    memory[:size] = rest
    with memoryview(memory) as room:
        try:
            while size < SIZE and (count := stream.readinto(room[size:])):
                size += count
        except (EOFError, OSError, zlib.error):  # of damaged gzip
            return None, b""
    if size < SIZE:
        return size, b""
    content = memory[:size]
    stop = last_row_end(content)
    return stop, content[stop or size :]


def last_row_end(content):
    """Where the last row that ends in some bytes ends, which begin with a row; None if none does."""
    odd, stop = content.count(b'"') % 2, len(content)
    while (newline := content.rfind(b"\n", 0, stop)) >= 0:
        odd ^= content.count(b'"', newline, stop) % 2
        if not odd:
            return newline + 1
        stop = newline
    return None


def in_parts(table, read, tell):
    """Yield (result, lines before it) of read(part, told) for the parts of a table, in order.

    read: (Table, told) -> anything that can be pickled; it runs in copies of this process, so what else it
    changes is lost. told: what tell() gives when a part begins. A small file is one part, read by this
    process, and so is one that is no CSV, and any with one thread or where processes cannot be copied.
    """
    count = min(8, torch.get_num_threads()) if isinstance(table, Table) else 1
    if count < 2 or sys.platform != "linux" or os.path.getsize(table.path) < SMALL:
        yield read(table, tell()), 0
        return

    rest, stream = table.unread()
    at, lines, size, busy = stream.tell() - len(rest), table.line - 1, 1, deque()
    with readers(count, table, read) as idle, reading_bar(table.path, table.progress) as bar:
        while True:
            # give every process a part; they are read in turn
            while size and idle:
                size, rest = take(idle[0].memory, rest, stream)
                if size:
                    idle[0].begin(size, tell())
                    busy.append(idle.pop(0))

            # the answer to the earliest part
            if not busy or (answer := busy[0].answer()) is None:
                break
            result, further = answer
            yield result, lines
            at, lines = at + busy[0].size, lines + further
            idle.append(busy.popleft())
            bar(table.read_so_far())

    table.close()
    if busy or size is None:
        yield read(table.reopened(at, lines + 1), tell()), 0
