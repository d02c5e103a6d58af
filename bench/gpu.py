"""BERT-base on a GPU at 256 tokens: training and prediction notes/s in bf16, and the share of the measured bf16 matrix rate.

Written to run on any device; only where a GPU is present does benchmark.py call it.
"""

import statistics
import time

import torch
import torch.nn.functional as F

from bench.shape import bert_base, matrix_rate, multiply_adds, random_notes


def run(device="cuda", length=256, train_batch=64, predict_batch=256, steps=20, config=None, compiled=True):
    """Rows, a dict each, of training and prediction."""
    model = bert_base(config)
    macs = multiply_adds(model, length)
    model = model.to(device)
    peak = matrix_rate(torch.bfloat16, device, 8192 if device == "cuda" else 512)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    call = torch.compile(model) if compiled else model
    labels = (torch.arange(train_batch) % model.config.num_labels).to(device)

    def wait():
        if device != "cpu":
            getattr(torch, device).synchronize()

    def train():
        with torch.autocast(device, torch.bfloat16):
            logits = call(**random_notes(model.config.vocab_size, train_batch, length, device)).logits
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.inference_mode()
    def predict():
        with torch.autocast(device, torch.bfloat16):
            call(**random_notes(model.config.vocab_size, predict_batch, length, device))

    table = []
    for name, step, batch, passes in (("training", train, train_batch, 3), ("prediction", predict, predict_batch, 1)):
        model.train(name == "training")
        times = []
        for turn in range(steps + 5):
            began = time.perf_counter()
            step()
            wait()
            times += [time.perf_counter() - began] * (turn >= 5)
        rate = batch / statistics.median(times)
        table.append({"row": name, "batch": batch, "length": length, "notes_per_s": rate, "peak_share": passes * macs * rate / peak,
                      "peak_macs_per_s": peak})  # fmt: skip
    return table


def as_markdown(table):
    """Header and cells."""
    header = ["BERT-base shape, bf16, GPU", "batch x tokens", "notes/s", "of bf16 peak"]
    return header, [
        [row["row"], f"{row['batch']} x {row['length']}", f"{row['notes_per_s']:,.0f}", f"{row['peak_share']:.2f}"] for row in table
    ]
