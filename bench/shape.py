"""Every technique and some chains on BERT-base's shape, random weights, beside ONNX Runtime: bytes and time, no accuracy.

Weights are random and nothing is trained: time does not depend on what a matrix holds, only on its shape. Heads, neurons and
factors are therefore chosen from noise, as many of them as on a trained model.
"""

import contextlib
import copy
import io
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import BertConfig, BertForSequenceClassification

import compress
from cli import BadInput
from compress.distillation import copy_of
from compress.quantization import is_int8
from fast import cpu
from fast.attention import first_token
from layers import device_of
from run import checkpoint
from tasks.task import Task

STUDENT = {"student_layers": 4, "student_width": 312}
HALF = {"structured": True, "target_macs": 0.5, "calibration_notes": 8}
ROWS = {  # name: technique, options, whether plain torch serves it (False: compress/cpu.py's for_inference)
    "base, plain torch": ("base", {}, True),
    "base": ("base", {}, False),
    "pruning 30%": ("pruning", {}, False),
    "pruning --structured --target-macs 0.5": ("pruning", HALF, False),
    "lowrank --rank 32, plain torch": ("lowrank", {"rank": 32}, True),
    "lowrank --rank 32": ("lowrank", {"rank": 32}, False),
    "distillation, 6 layers": ("distillation", {}, False),
    "lora, merged": ("lora", {}, False),
    "quantization --fp32-embeddings": ("quantization", {"fp32_embeddings": True}, False),
    "quantization": ("quantization", {}, False),
    "lowrank+quantization": ("lowrank+quantization", {"rank": 32}, False),
    "pruning+quantization": ("pruning+quantization", {**HALF}, False),
    "distillation+quantization, 4 layers of 312": ("distillation+quantization", {**STUDENT}, False),
    "distillation+pruning+quantization, 4 of 312, half": ("distillation+pruning+quantization", {**STUDENT, **HALF}, False),
}


def bert_base(config=None):
    """A BERT of base size, or of another config, with random weights and five labels."""
    torch.manual_seed(0)
    return BertForSequenceClassification(copy.deepcopy(config) or BertConfig(vocab_size=28996, num_labels=5)).eval()


def compressed(technique, options, config=None):
    """The model that a technique makes of bert_base(), untrained; what it prints is not shown."""
    model = bert_base(config)
    vocabulary = model.config.vocab_size

    def calibration(notes):
        ids = torch.randint(0, vocabulary, (min(notes, 8), 64))
        return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(len(ids)) % 5}]

    parts = compress.parse(technique)
    taught = "distillation" in parts
    chain = compress.build(parts, options, calibration=calibration, teacher=model if taught else None, fresh=["classifier.weight"])
    chain.task = Task()
    with contextlib.redirect_stdout(io.StringIO()):
        return chain.finish(chain.prepare(copy_of(model) if taught else model)).eval()


def stored_bytes(model):
    """Bytes of a model's weights file."""
    with tempfile.TemporaryDirectory() as directory:
        save_file(checkpoint.plain_tensors(model), path := Path(directory) / "model.safetensors")
        return path.stat().st_size


def matrix_rate(dtype=torch.float32, device="cpu", size=4096):
    """Multiply-adds a second of a large matrix product: the best of PyTorch's own and, in fp32 on a CPU, oneDNN's."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    calls = [lambda: a @ b]
    if device == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        calls.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    times = []
    with torch.inference_mode():
        for call in calls:
            for _ in range(4):
                began = time.perf_counter()
                call()
                if device != "cpu":
                    getattr(torch, device).synchronize()
                times.append(time.perf_counter() - began)
    return size**3 / min(times)


def random_notes(vocabulary, notes, length, device="cpu"):
    """Model inputs of random token ids, (notes, length), nothing padded."""
    ids = torch.randint(0, vocabulary, (notes, length), generator=torch.Generator().manual_seed(0)).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.inference_mode()
def multiply_adds(model, length):
    """Multiply-adds of one note of `length` tokens: matrix products and attention, zeros counted like other weights."""
    int8 = []
    hooks = [
        module.register_forward_hook(lambda m, x, y: int8.append(x[0].numel() * m.out_features))
        for module in model.modules()
        if is_int8(module) or isinstance(module, cpu.OneDNNLinear)
    ]
    # the plain attention kernel, because the counter sees its products and not the fused CPU kernel's
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**random_notes(model.config.vocab_size, 1, length, device_of(model)))
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() // 2 + sum(int8)


@torch.inference_mode()
def seconds(call, inputs):
    """Wall seconds of one forward pass, the device's queue emptied."""
    began = time.perf_counter()
    call(**inputs)
    if (device := inputs["input_ids"].device.type) != "cpu":
        getattr(torch, device).synchronize()
    return time.perf_counter() - began


def measure(calls, length, batch, rounds, singles=10):
    """Time calls {name: (call(input_ids, attention_mask), vocabulary, device)} in alternating rounds.

    Returns {name: {p50_ms, p95_ms, notes_per_s}}: p50 and p95 of rounds * singles passes at batch 1; notes/s is batch over
    the median of `rounds` full batches. One pass of each kind goes before, uncounted.
    """
    inputs = {n: [random_notes(vocabulary, size, length, device) for size in (1, batch)] for n, (_, vocabulary, device) in calls.items()}
    single, full = {name: [] for name in calls}, {name: [] for name in calls}
    for name, (call, *_) in calls.items():
        for example in inputs[name]:
            seconds(call, example)
    for turn in tqdm(range(rounds), desc="timing", unit="round", leave=False, disable=None):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            call, (one, many) = calls[name][0], inputs[name]
            single[name] += [1e3 * seconds(call, one) for _ in range(singles)]
            full[name].append(seconds(call, many))
    return {
        name: {
            "p50_ms": statistics.median(single[name]),
            "p95_ms": statistics.quantiles(single[name], n=20, method="inclusive")[-1],
            "notes_per_s": batch / statistics.median(full[name]),
        }
        for name in calls
    }


def peers(model, directory, length):
    """{name: (call, bytes, multiply-adds)} of ONNX Runtime on a base model, fp32 and dynamic int8, as it is and as export.py writes it,
    its last layer for the first token alone; empty, with a line, if it is not installed."""  # fmt: skip
    from export import session, to_int8, to_onnx

    found = {}
    try:
        for how, first in (("", False), (", export.py", True)):
            dense, small = Path(directory) / f"base-{first}.onnx", Path(directory) / f"int8-{first}.onnx"
            to_onnx(model, dense, first)
            to_int8(dense, small)
            macs = multiply_adds(first_token(copy.deepcopy(model)) if first else model, length)
            found[f"ONNX Runtime, fp32{how}"] = (session(dense), dense.stat().st_size, macs)
            found[f"ONNX Runtime, dynamic int8{how}"] = (session(small), small.stat().st_size, macs)
    except BadInput as error:
        print(f"ONNX Runtime's rows are left out: {error}")
        return {}
    return found


def run(length=256, batch=16, rounds=5, rows=ROWS, config=None):
    """Rows of the comparison, a dict each, the peers' last."""
    with tempfile.TemporaryDirectory() as directory:
        others = peers(bert_base(config), directory, length)
        calls, facts, peak = {}, {}, matrix_rate()
        for name, (technique, options, plain) in tqdm(rows.items(), desc="building", leave=False, disable=None):
            model = compressed(technique, options, config)
            size = stored_bytes(model)
            model = model if plain else cpu.for_inference(model, Task())
            calls[name], facts[name] = (model, model.config.vocab_size, "cpu"), {"bytes": size, "macs": multiply_adds(model, length)}
        for name, (call, size, macs) in others.items():
            calls[name], facts[name] = (call, model.config.vocab_size, "cpu"), {"bytes": size, "macs": macs}
        timed = measure(calls, length, batch, rounds)
    table = [{"row": name, **facts[name], **timed[name]} for name in calls]
    for row in table:
        row["peak_share"] = row["macs"] * row["notes_per_s"] / peak  # of what a large fp32 product reaches; int8 may pass 1
        row["length"], row["batch"], row["rounds"], row["peak_macs_per_s"] = length, batch, rounds, peak
    return table


def as_markdown(table):
    """Header and cells of the comparison: each figure, and how many times better than base and than ONNX Runtime's int8."""
    rows = {row["row"]: row for row in table}
    references = [
        ("plain", rows.get("base, plain torch")),
        ("base", rows.get("base")),
        ("ORT int8", rows.get("ONNX Runtime, dynamic int8")),
    ]
    references = [(name, row) for name, row in references if row]
    first = table[0]
    header = ["BERT-base shape, random weights", "MB", "M multiply-adds", f"{first['batch']} x {first['length']}: ms", *(f"x {n}" for n, _ in references),
              "of fp32 peak", f"1 x {first['length']}: ms", *(f"x {n}" for n, _ in references)]  # fmt: skip
    cells = []
    for row in table:
        cells.append([
            row["row"], f"{row['bytes'] / 1e6:.1f} ({first['bytes'] / row['bytes']:.1f}x)", f"{row['macs'] / 1e6:,.0f}",
            f"{1e3 * row['batch'] / row['notes_per_s']:.1f}", *(f"{row['notes_per_s'] / other['notes_per_s']:.2f}" for _, other in references),
            f"{row['peak_share']:.2f}",
            f"{row['p50_ms']:.1f}", *(f"{other['p50_ms'] / row['p50_ms']:.2f}" for _, other in references),
        ])  # fmt: skip
    return header, cells
