"""Batches through a model: training's validation, final scores, prediction and timing all read notes here."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from cli import BadInput
from data import SPLITS, budget_batches, collate
from fast import speedups
from fast.attention import for_reading
from fast.precision import autocast, reading_precision
from layers import device_of, is_bf16, is_int8
from run.cache import encoded
from run.processes import dealt_out, first_before_others

COMPILES = (
    "cuda",
)  # on a CPU compiled steps took 1.06 to 1.13 times as long, predictions 0.91 to 1.43 times


class Notes(NamedTuple):
    """A run's notes: the task that reads them, by split its examples and token ids, and the padding id."""

    task: object
    examples: dict
    rows: dict
    pad_id: int

    @classmethod
    def read(cls, task, examples, tokenizer, max_length, cache):
        """Tokenise every split, or take what an earlier run on the same notes left in the cache."""
        with first_before_others():
            rows = {split: encoded(task, examples[split], tokenizer, max_length, cache) for split in SPLITS}
        return cls(task, examples, rows, tokenizer.pad_token_id)

    def calibration(self, device, batch_size, seed):
        """A function (count) -> batches of so many training notes, drawn at random, sorted by length."""
        rows = self.rows["train"]

        def batches(count):
            drawn = np.random.default_rng(seed).permutation(len(rows.lengths))[:count]
            drawn = drawn[np.argsort(rows.lengths[drawn], kind="stable")]
            groups = (drawn[i : i + batch_size] for i in range(0, len(drawn), batch_size))
            return [collate(rows, group, self.pad_id, device) for group in groups]

        return batches


def pick_device(name="auto", compiles=False):
    """The named torch device; with "auto" CUDA, MPS or the CPU, the first there is.

    Raises BadInput if it is absent, or if the model is to be compiled where that does not pay.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in present.items() if there)
    if not present[name]:
        raise BadInput(f"--device {name}: this machine or this build of torch has none; use auto")
    if compiles and name not in COMPILES:
        raise BadInput(f"--compile: is for CUDA, not {name}; leave it out")
    return torch.device(name)


def batch_tokens(device):
    """Tokens per batch, padding counted, at which a device is fast.

    MiniLM on 2 cores, 13 tokens per note, int8: 1,293 notes/s at 256 tokens, 1,982 at 2,048, 1,672 at 16,384.
    """
    return 2048 if device.type == "cpu" else 65536


def reading(model, task, frozen=False, onednn=None):
    """The context in which a model reads notes: `fast.speedups`, int8 and bf16 models' attention in bf16."""
    coarse = any(is_int8(module) or is_bf16(module) for module in model.modules())
    return speedups(
        model,
        task.reads_first,
        bf16_attention=for_reading() if coarse else None,
        frozen=frozen,
        onednn=onednn,
    )


def answers(model, task, encoded, pad_id, tokens=None, precision=torch.float32):
    """Yield (row numbers, batch, outputs) until every encoded row is read.

    Batches hold rows of similar length, `tokens` tokens in all (None = what suits the device). Raises
    BadInput on NaN. For use under torch.inference_mode.
    """
    device = device_of(model)
    model.eval()
    for rows in budget_batches(encoded.lengths, tokens or batch_tokens(device)):
        batch = collate(encoded, rows, pad_id, device)
        with autocast(device, precision):
            outputs = task.forward(model, batch)
        if not outputs.logits.isfinite().all():
            raise BadInput("the model answers NaN; train it with a lower --lr, or in fp32")
        yield rows, batch, outputs


@torch.inference_mode()
def read_encoded(model, task, encoded, pad_id, tokens=None, precision=torch.float32, losses=False):
    """(the task's read-out of every encoded row, a list of NumPy results in their order; the sum of losses).

    losses: the rows are labelled, and their losses asked for.
    """
    results, loss = [None] * len(encoded.lengths), 0.0
    for rows, batch, outputs in answers(model, task, encoded, pad_id, tokens, precision):
        loss += float(task.loss(model, batch, outputs)) * len(rows) if losses else 0.0
        for row, result in zip(rows, task.read_out(model, batch, outputs), strict=True):
            results[row] = result
    return results, loss


def predict_rows(model, task, encoded, pad_id, tokens=None, precision=torch.float32):
    """The task's read-out of every encoded row, in their order: a list of NumPy results."""
    return read_encoded(model, task, encoded, pad_id, tokens, precision)[0]


@torch.inference_mode()
def evaluate(model, notes, split, precision=torch.float32, final=False, tokens=None):
    """(Scores, predictions) of a model on a split; the scores hold the mean loss too, under "Loss"."""
    task, examples, rows = notes.task, notes.examples[split], notes.rows[split]
    with dealt_out(model), reading(model, task):
        results, loss = read_encoded(model, task, rows, notes.pad_id, tokens, precision, losses=True)
    predictions = task.combine(examples, rows, results)
    scores = (task.final_scores if final else task.score)(examples, predictions)
    return with_loss(scores, loss / len(rows.lengths)), predictions


def with_loss(scores, loss):
    """Scores that hold the mean loss, too."""
    return scores._replace(overall={**scores.overall, "Loss": loss})


def ahead(items):
    """The items of an iterator, the next one made in another thread while the last one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item


def encode_examples(run, examples):
    """Encoded rows of examples, as a finished run's task reads them."""
    return run.task.encode(examples, run.tokenizer, run.facts["arguments"]["max_length"], progress=False)


def precision_of(run):
    """The precision in which a finished run reads."""
    trained_in = getattr(torch, run.facts.get("precision") or "float32")
    return reading_precision(device_of(run.model), trained_in, bool(run.facts.get("head")))


def predict_examples(run, examples, tokens=None, encoded=None):
    """One prediction per example, as a finished run's task makes them."""
    encoded = encoded or encode_examples(run, examples)
    with reading(run.model, run.task):
        pad_id = run.tokenizer.pad_token_id
        rows = predict_rows(run.model, run.task, encoded, pad_id, tokens, precision_of(run))
    return run.task.combine(examples, encoded, rows)
