"""BERT-base on a GPU at 256 tokens: training and prediction notes/s in bf16, as they come and with --compile, and the share of the
measured bf16 matrix rate. As in train.py, the last layer answers for [CLS] alone and attention has no dropout.

Written to run on any device; only where a GPU is present does benchmark.py call it.
"""

import statistics
import time

import torch
import torch.nn.functional as F

from bench.shape import bert_base, matrix_rate, multiply_adds, random_notes
from fast import precision
from fast.attention import first_token


def run(device="cuda", length=256, train_batch=64, predict_batch=256, steps=20, config=None, backend="inductor"):
    """Rows, a dict each, of training and prediction, each without torch.compile and with it, by the named backend."""
    macs = multiply_adds(first_token(bert_base(config)), length)
    peak = matrix_rate(torch.bfloat16, device, 8192 if device == "cuda" else 512)
    table = []
    for compiled in (False, True):
        model = first_token(bert_base(config)).to(device)
        precision.set_attention_dropout(model, 0.0)
        call = torch.compile(model, dynamic=True, backend=backend) if compiled else model
        for name, batch, passes in (("training", train_batch, 3), ("prediction", predict_batch, 1)):
            model.train(name == "training")
            step = training_step(call, length, batch, device) if name == "training" else prediction_step(call, length, batch, device)
            times = []
            for turn in range(steps + 5):
                began = time.perf_counter()
                step()
                if device != "cpu":
                    getattr(torch, device).synchronize()
                times += [time.perf_counter() - began] * (turn >= 5)
            rate = batch / statistics.median(times)
            table.append({"row": name, "compiled": compiled, "batch": batch, "length": length, "notes_per_s": rate,
                          "peak_share": passes * macs * rate / peak, "peak_macs_per_s": peak})  # fmt: skip
    return table


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


def as_markdown(table):
    """Header and cells."""
    header = ["BERT-base shape, bf16, GPU", "torch.compile", "batch x tokens", "notes/s", "of bf16 peak"]
    cells = ([row["row"], "yes" if row["compiled"] else "no", f"{row['batch']} x {row['length']}", f"{row['notes_per_s']:,.0f}",
              f"{row['peak_share']:.2f}"] for row in table)  # fmt: skip
    return header, list(cells)
