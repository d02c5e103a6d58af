"""BERT-base on a GPU at 256 tokens, in bf16: training and prediction, without and with torch.compile.

Each row says how many notes/s, and what share of the measured bf16 matrix rate that is. As in train.py, the
last layer answers for [CLS] alone and attention has no dropout. The code runs on any device; benchmark.py
calls it where there is a GPU.
"""

import statistics
import time

import torch
import torch.nn.functional as F

from bench.shape import answering_first, bert_base, matrix_rate, multiply_adds, random_notes, wait_for
from layers import set_attention_dropout


def gpu_rows(
    device="cuda", length=256, train_batch=64, predict_batch=256, steps=20, config=None, backend="inductor"
):
    """Rows, a dict each: training and prediction, without torch.compile and with it (the named backend)."""
    peak = matrix_rate(torch.bfloat16, device, 8192 if device == "cuda" else 512)
    table = []
    for compiled in (False, True):
        with answering_first(bert_base(config)) as model:
            macs = multiply_adds(model, length)
            set_attention_dropout(model.to(device), 0.0)
            call = torch.compile(model, dynamic=True, backend=backend) if compiled else model
            for name, batch, passes, make in (
                ("training", train_batch, 3, training_step),  # forward, and twice as much backward
                ("prediction", predict_batch, 1, prediction_step),
            ):
                model.train(name == "training")
                rate = batch / median_seconds(make(call, length, batch, device), steps, device)
                share = passes * macs * rate / peak
                row = {
                    "row": name,
                    "compiled": compiled,
                    "batch": batch,
                    "length": length,
                    "notes_per_s": rate,
                }
                table.append({**row, "peak_share": share, "peak_macs_per_s": peak})
    return table


def median_seconds(step, steps, device, warm=5):
    """Median wall seconds of a step; the first `warm` calls do not count."""
    times = []
    for _ in range(warm + steps):
        began = time.perf_counter()
        step()
        wait_for(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[warm:])


def training_step(model, length, batch, device):
    """A function that takes one step of AdamW."""
    notes = random_notes(model.config.vocab_size, batch, length, device)
    labels = (torch.arange(batch) % model.config.num_labels).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step():
        with torch.autocast(device, torch.bfloat16):
            logits = model(**notes).logits
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def prediction_step(model, length, batch, device):
    """A function that predicts one batch."""
    notes = random_notes(model.config.vocab_size, batch, length, device)

    @torch.inference_mode()
    def step():
        with torch.autocast(device, torch.bfloat16):
            model(**notes)

    return step


def gpu_table(rows):
    """(header, cells) of gpu_rows."""
    header = ["BERT-base shape, bf16, GPU", "torch.compile", "batch x tokens", "notes/s", "of bf16 peak"]
    cells = [
        [
            row["row"],
            "yes" if row["compiled"] else "no",
            f"{row['batch']} x {row['length']}",
            f"{row['notes_per_s']:,.0f}",
            f"{row['peak_share']:.2f}",
        ]
        for row in rows
    ]
    return header, cells
