"""Notes of many requests -> answers: batches by tokens, and one thread that runs the model. For serve.py.

A note becomes rows of token ids, which wait. A batch is the oldest row and those nearest to it in length, of
whatever request, as many as the tokens allow; so no row waits for ever, and nobody waits for a batch to
fill. While the model reads one, the event loop takes further requests. No exception's words leave this file:
they could quote a note.
"""

import asyncio
import contextlib
import queue
import sys
import threading
import time
import traceback
from collections import Counter
from typing import NamedTuple

import numpy as np

from data import pack
from layers import device_of
from run.inference import batch_tokens, encode_examples, precision_of, predict_rows, reading


class Full(Exception):
    """More notes wait than may."""


class Closed(Exception):
    """The service takes no more requests."""


class Failed(Exception):
    """A request could not be answered; standard error says where, without its text."""


class Request:
    """Notes that came together, their answers so far, and the future that waits for all of them."""

    def __init__(self, texts, future):
        self.texts, self.future, self.answers = texts, future, [None] * len(texts)
        self.failed = False

    def ended(self):
        """Whether all notes have their answers."""
        return None not in self.answers


class Waiting:
    """A note of a request: its rows of token ids, and what the model said of those it has read."""

    def __init__(self, request, place, example):
        self.request, self.place, self.example = request, place, example
        self.rows, self.results = [], []


class WaitingRow(NamedTuple):
    """A row that waits: whose it is, its number there, its token ids (T,), its token labels (T,) or None."""

    note: Waiting
    number: int
    ids: np.ndarray
    labels: np.ndarray | None


def next_batch(rows, tokens):
    """(rows to read together, the others in their order).

    The first row, and those nearest to it in length: none twice as long as another, a power of two of them,
    so that few shapes occur (data.budget_batches says why), of at most `tokens` tokens with the padding.
    """
    lengths = np.array([len(row.ids) for row in rows])
    nearest = np.argsort(np.abs(lengths - lengths[0]), kind="stable")
    longest, shortest = np.maximum.accumulate(lengths[nearest]), np.minimum.accumulate(lengths[nearest])
    fits = (longest * np.arange(1, len(rows) + 1) <= tokens) & (longest <= 2 * shortest)
    count = max(1, int(fits.argmin()) if not fits.all() else len(rows))
    taken = set(nearest[: 1 << count.bit_length() - 1].tolist())
    return [rows[i] for i in sorted(taken)], [row for i, row in enumerate(rows) if i not in taken]


class Service:
    """Answers requests by one model, in the order in which its thread can read them.

    most: how many notes may be held. totals counts the notes, tokens and batches read so far, and seconds.
    """

    def __init__(self, run, tokens=None, most=1024):
        self.run, self.most = run, most
        self.tokens, self.precision = tokens or batch_tokens(device_of(run.model)), precision_of(run)
        self.held, self.closing = 0, False  # the event loop's alone
        self.totals = Counter(notes=0, tokens=0, batches=0, seconds=0.0, failed=0)
        self._arrivals = queue.SimpleQueue()  # of requests; None: no more will come
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self):
        """Whether requests are taken and answered."""
        return self._thread.is_alive() and not self.closing

    async def answer(self, texts):
        """The answers to notes, a dict each, as predict.py gives them. Raises Full, Closed or Failed."""
        if not self.alive:
            raise Closed
        if self.held + len(texts) > self.most:
            raise Full
        request = Request(texts, asyncio.get_running_loop().create_future())
        self.held += len(texts)
        self._arrivals.put(request)
        try:
            return await request.future
        finally:
            self.held -= len(texts)

    def close(self):
        """Take no more requests, answer those that somebody still waits for, end the thread."""
        self.closing = True
        self._arrivals.put(None)
        self._thread.join()

    # --- in the thread

    def _work(self):
        """Read batches until there is nothing left and nothing more will come."""
        rows, open_ = [], True
        while open_ or rows:
            arrived = self._arrived(wait=open_ and not rows)
            open_ = open_ and None not in arrived
            requests = [request for request in arrived if request and not request.future.done()]
            rows = [row for row in rows if not row.note.request.future.done()]  # whom somebody waits for
            try:
                rows += self._encoded(requests)
                if rows:
                    batch, others = next_batch(rows, self.tokens)
                    self._read(batch)
                    rows = others
            except Exception as error:  # such as no memory for a list: the thread must live on
                self._fail(list({*requests, *(row.note.request for row in rows)}), error)
                rows = []

    def _arrived(self, wait):
        """The requests that have come since the last call; wait: at least one."""
        arrived = [self._arrivals.get()] if wait else []
        with contextlib.suppress(queue.Empty):
            while True:
                arrived.append(self._arrivals.get_nowait())
        return arrived

    def _encoded(self, requests):
        """The rows of requests. One that cannot be encoded fails alone."""
        if not requests:
            return []
        try:
            return self._rows(requests)
        except Exception as error:  # whatever a tokenizer raises; its words could quote the note
            if len(requests) == 1:
                self._fail(requests, error)
                return []
        return [row for request in requests for row in self._encoded([request])]

    def _rows(self, requests):
        """The rows of requests, tokenised together."""
        example = self.run.task.example
        notes = [Waiting(r, i, example("-", text)) for r in requests for i, text in enumerate(r.texts)]
        encoded = encode_examples(self.run, [note.example for note in notes])
        rows = []
        for owner, start, stop in zip(encoded.owner, encoded.starts, encoded.starts[1:], strict=False):
            note, labels = notes[owner], encoded.token_labels
            row = WaitingRow(
                note, len(note.rows), encoded.ids[start:stop], None if labels is None else labels[start:stop]
            )
            note.rows.append(row)
            rows.append(row)
        for note in notes:
            note.results = [None] * len(note.rows)
        return rows

    def _read(self, batch):
        """Let the model read a batch; if it cannot, row by row. Deliver what is whole then."""
        began, labels = time.perf_counter(), [row.labels for row in batch]
        encoded = pack([row.ids for row in batch], token_labels=None if labels[0] is None else labels)
        pad_id, most = self.run.tokenizer.pad_token_id, max(self.tokens, int(encoded.lengths.max()))
        try:
            results = predict_rows(self.run.model, self.run.task, encoded, pad_id, most, self.precision)
        except Exception as error:  # whatever PyTorch raises
            if len(batch) == 1:
                self._fail([batch[0].note.request], error)
            else:
                for row in batch:
                    self._read([row])
            return
        self.totals.update(batches=1, tokens=int(encoded.starts[-1]))
        for row, result in zip(batch, results, strict=True):
            self._keep(row, result)
        self.totals["seconds"] += time.perf_counter() - began
        deliver([row.note.request for row in batch if row.note.request.ended()])

    def _keep(self, row, result):
        """Keep the result of a row; if it is the last one of its note, make the note's answer."""
        note, request = row.note, row.note.request
        note.results[row.number] = result
        if any(found is None for found in note.results):
            return
        try:
            labels = None if row.labels is None else [each.labels for each in note.rows]
            encoded = pack([each.ids for each in note.rows], np.zeros(len(note.rows)), labels)
            prediction = self.run.task.combine([note.example], encoded, note.results)[0]
            request.answers[note.place] = self.run.task.answer(note.example, prediction)
            self.totals["notes"] += 1
        except Exception as error:  # a fault in a task; the other requests are to be answered
            self._fail([request], error)

    def _fail(self, requests, error):
        """Tell requests that they failed, and standard error where; the error's words may quote a note."""
        requests = [request for request in requests if not request.failed]
        for request in requests:
            request.failed = True
        self.totals["failed"] += len(requests)
        print(f"error: {place_of(error)}; a request is answered with 500", file=sys.stderr, flush=True)
        deliver(requests, Failed())


def place_of(error):
    """The kind of an exception and the line of code that raised it, without its words."""
    frames = traceback.extract_tb(error.__traceback__)
    return type(error).__name__ + (f" in {frames[-1].name}, line {frames[-1].lineno}" if frames else "")


def deliver(requests, error=None):
    """Give requests their answers, or the error, in the event loop that waits for them."""

    def tell():
        for request in requests:
            if request.future.done():  # nobody waits any more
                continue
            if error:
                request.future.set_exception(error)
            else:
                request.future.set_result(request.answers)

    if requests:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server was told to end at once
            requests[0].future.get_loop().call_soon_threadsafe(tell)


@contextlib.contextmanager
def serving(run, tokens=None, most=1024, onednn=None, frozen=True):
    """A Service while open; at the end it answers what it has taken. onednn, frozen: as in fast.speedups."""
    with reading(run.model, run.task, frozen=frozen, onednn=onednn):
        service = Service(run, tokens, most)
        try:
            yield service
        finally:
            service.close()
