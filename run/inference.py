"""Batches through a model: training, prediction and timing all read notes here."""

from contextlib import nullcontext

import torch

from cli import BadInput
from data import budget_batches, collate
from fast import attention
from layers import device_of

COMPILES = ("cuda",)  # on a CPU compiled steps took 1.06 to 1.13 times as long, predictions 0.91 to 1.43 times


def pick_device(name="auto", compiles=False):
    """The named torch device, or with 'auto' CUDA, MPS or the CPU, whichever is there first. Raises BadInput if it is absent, or if
    the model is to be compiled where that does not pay."""  # fmt: skip
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in present.items() if there)
    if not present[name]:
        raise BadInput(f"--device {name}: this machine or this build of torch has none; use auto")
    if compiles and name not in COMPILES:
        raise BadInput(f"--compile: is for CUDA, not {name}; leave it out")
    return torch.device(name)


def batch_tokens(device):
    """Tokens a batch, padding counted, at which a device is fast: MiniLM on 2 cores, 13 tokens a note, int8: 1,293 notes/s at 256
    tokens, 1,982 at 2,048, 1,672 at 16,384; in fp32 939, 1,055 and 756."""  # fmt: skip
    return 2048 if device.type == "cpu" else 65536


@torch.inference_mode()
def predict_rows(model, task, encoded, pad_id, tokens=None, autocast=None):
    """The task's read-out of every encoded row, in their order: a list of NumPy results.

    Batches hold rows of similar length, `tokens` tokens in all (None = what suits the device). A model whose first token alone is
    read stays set to that.
    """
    device = device_of(model)
    model = attention.first_token(model.eval()) if task.reads_first else model.eval()
    results = [None] * len(encoded.lengths)
    for rows in budget_batches(encoded.lengths, tokens or batch_tokens(device)):
        batch = collate(encoded, rows, pad_id, device)
        with autocast or nullcontext():
            outputs = task.forward(model, batch)
        if not outputs.logits.isfinite().all():
            raise BadInput("the model answers NaN; train it with a lower --lr, or in fp32")
        for row, result in zip(rows, task.read_out(model, batch, outputs)):
            results[row] = result
    return results


def as_trained(device, facts):
    """The autocast context of a finished run's predictions: bf16 on CUDA, if it was trained so and its head was not fitted in fp32."""
    fits = device.type == "cuda" and facts.get("precision") == "bfloat16" and not facts.get("head")
    return torch.autocast("cuda", torch.bfloat16) if fits else nullcontext()


def encode_examples(run, examples):
    """Encoded rows of examples, as the run's task reads them."""
    return run.task.encode(examples, run.tokenizer, run.facts["arguments"]["max_length"], progress=False)


def predict_examples(run, examples, tokens=None, encoded=None):
    """One prediction per example, as the run's task makes them."""
    encoded = encoded or encode_examples(run, examples)
    autocast = as_trained(device_of(run.model), run.facts)
    rows = predict_rows(run.model, run.task, encoded, run.tokenizer.pad_token_id, tokens, autocast)
    return run.task.combine(examples, encoded, rows)


def evaluate(model, task, examples, notes, pad_id, autocast=None, intervals=False, tokens=None):
    """(Scores, predictions) of a model on encoded examples; tokens: of a batch, None = what suits the device."""
    predictions = task.combine(examples, notes, predict_rows(model, task, notes, pad_id, tokens, autocast))
    return task.score(examples, predictions, intervals), predictions
