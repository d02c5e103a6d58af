"""BERT-base on a GPU in bf16, rows of full length: training and prediction, with and without torch.compile.

Weights and token ids are random. A step is that of the scripts: collate, forward, loss, backward, clipping
and AdamW as in train.py, with its dropout; collate, forward and read-out as in predict.py. "plain" is the
same step of the transformers model as it comes: every layer answers for every token, with an attention mask.

What a row is held against is the median rate of a bf16 product of 8192 x 8192 x 8192, measured before. The
floating-point operations are counted so: per token and forward pass 2 N + 4 L H T, where N is the number of
weights of the encoder's Linear layers, L layers, H their width, T tokens in a row; training takes three times
that, 6 N + 12 L H T. Where the last layer answers for [CLS] alone, what it leaves out is not counted. Nor are
the head, the embeddings, layer norms, dropout and the optimizer, whose time is in.
"""

import itertools
import statistics
import time
from contextlib import nullcontext

import numpy as np
import torch

from bench.shape import bert_base, ready, wait_for
from data import Encoded, collate
from fast import speedups
from fast.optimizer import LazyAdamW, clip_gradients
from fast.precision import autocast
from layers import set_attention_dropout, trainable
from run.inference import predict_rows
from tasks.task import Task

BATCHES = {"training": (16, 64, 128), "prediction": (16, 64, 256)}


class Plain(Task):
    """The task, without the shortcut for rows without padding."""

    def forward(self, model, batch, **keywords):
        """Logits (B, C), with a mask always."""
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **keywords)


def flops_per_token(config, length, first):
    """Operations of a forward pass per token; first: the last layer answers for [CLS] alone."""
    width, neurons, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    layer = 2 * (4 * width**2 + 2 * width * neurons) + 4 * width * length
    keys_and_values = 2 * 2 * width**2
    return layers * layer - (first and (layer - keys_and_values) * (length - 1) / length)


def gpu_rows(device="cuda", length=256, rounds=7, batches=BATCHES, config=None, backend="inductor"):
    """Rows, a dict each: ours and plain, as it is and compiled by the named backend, at each batch size."""
    peak, table = peak_rate(device, 8192 if device == "cuda" else 256, rounds), []
    for compiled, plain, what in itertools.product((False, True), (False, True), batches):
        torch.compiler.reset()
        task, model = Plain() if plain else Task(), bert_base(config).to(device)
        set_attention_dropout(model, 0.0)
        passes = 3 if what == "training" else 1  # forward, and twice as much backward
        flops = passes * flops_per_token(model.config, length, first=not plain)
        with nullcontext() if plain else patched(what, model, task):
            call = torch.compile(model, dynamic=True, backend=backend) if compiled else model
            for batch in batches[what]:
                notes = full_rows(model.config, batch, length)
                seconds, memory = seconds_and_memory(
                    STEPS_OF[what](call, task, notes, device), rounds, device
                )
                rate = batch * length / seconds
                row = {"row": f"{what}, plain" if plain else what, "compiled": compiled, "batch": batch}
                row |= {"length": length, "rounds": rounds, "ms": 1e3 * seconds, "tokens_per_s": rate}
                row |= {"flops_per_s": rate * flops, "peak_share": rate * flops / peak}
                table.append({**row, "peak_flops_per_s": peak, "peak_bytes": memory})
                print(" ".join(gpu_table(table)[1][-1]), flush=True)
    return table


def patched(what, model, task):
    """The context in which train.py trains, or predict.py predicts."""
    return speedups(model, task.reads_first) if what == "training" else ready(model, task)


def full_rows(config, rows, length):
    """Encoded rows of random token ids and labels, without padding."""
    random = np.random.default_rng(0)
    ids = random.integers(0, config.vocab_size, rows * length, np.int32)
    return Encoded(ids, np.arange(rows + 1) * length, np.arange(rows), np.arange(rows) % config.num_labels)


def training_step(call, task, notes, device):
    """A function that takes one step as train.py's loop does."""
    weights, rows = trainable(call.train()), np.arange(len(notes.lengths))
    optimizer = LazyAdamW(weights, lr=1e-5, weight_decay=0.01, fused=True)

    def step():
        batch = collate(notes, rows, 0, device)
        with autocast(torch.device(device), torch.bfloat16):
            loss = task.loss(call, batch, task.forward(call, batch))
        loss.backward()
        clip_gradients(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def prediction_step(call, task, notes, device):
    """A function that predicts one batch as predict.py does."""
    tokens = int(notes.lengths.sum())
    return lambda: predict_rows(call, task, notes, 0, tokens, torch.bfloat16)


STEPS_OF = {"training": training_step, "prediction": prediction_step}


def seconds_and_memory(step, rounds, device, warm=3, steps=5):
    """(median over rounds of the seconds of a step, largest memory in bytes; None if not on CUDA).

    A round takes several steps without waiting for the device in between, as the scripts do; the first `warm`
    rounds do not count.
    """
    times = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(warm + rounds):
        wait_for(device)
        began = time.perf_counter()
        for _ in range(steps):
            step()
        wait_for(device)
        times.append((time.perf_counter() - began) / steps)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return statistics.median(times[warm:]), memory


def peak_rate(device, size, rounds):
    """Floating-point operations per second of a large bf16 product of random numbers."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_and_memory(lambda: a @ b, rounds, device)[0]


def gpu_table(rows):
    """(header, cells) of gpu_rows."""
    header = ["BERT-base shape, bf16, GPU", "torch.compile", "batch x tokens", "ms", "tokens/s", "TFLOP/s",
              "of bf16 peak", "peak memory, GB"]  # fmt: skip
    cells = [
        [
            row["row"],
            "yes" if row["compiled"] else "no",
            f"{row['batch']} x {row['length']}",
            f"{row['ms']:.2f}",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['flops_per_s'] / 1e12:.0f}",
            f"{row['peak_share']:.2f}",
            f"{(row['peak_bytes'] or 0) / 1e9:.1f}",
        ]
        for row in rows
    ]
    return header, cells
