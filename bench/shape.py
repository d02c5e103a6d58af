"""Every technique and some chains on BERT-base's shape, beside other engines: bytes and time, no accuracy.

Weights are random and nothing is trained: time depends on the shape of a matrix, not on its values. So the
heads, neurons and factors to keep are chosen from noise, as many of them as in a trained model.
"""

import contextlib
import copy
import io
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import BertConfig, BertForSequenceClassification

import compress
from cli import BadInput
from compress.bf16 import computes_bf16
from compress.quantization import plain_state
from fast import cpu, int8, speedups
from fast.attention import multiplies_bf16
from files import write_tensors
from layers import device_of, is_int8, trainable_copy
from run.inference import reading
from run.onnx_file import open_onnx, to_onnx, to_onnx_int8
from run.openvino_file import open_openvino, to_openvino
from tasks.task import Task

STUDENT = {"student_layers": 4, "student_width": 312}
HALF = {"structured": True, "target_macs": 0.5, "calibration_notes": 8}
ROWS = {  # name: technique, its options, whether it runs as plain torch, without the speed-ups of fast/
    "base, plain torch": ("base", {}, True),
    "base": ("base", {}, False),
    "pruning 30%": ("pruning", {}, False),
    "pruning --structured --target-macs 0.5": ("pruning", HALF, False),
    "lowrank --rank 32, plain torch": ("lowrank", {"rank": 32}, True),
    "lowrank --rank 32": ("lowrank", {"rank": 32}, False),
    "distillation, 6 layers": ("distillation", {}, False),
    "lora, merged": ("lora", {}, False),
    "bf16": ("bf16", {}, False),
    "quantization --fp32-embeddings": ("quantization", {"fp32_embeddings": True}, False),
    "quantization": ("quantization", {}, False),
    "lowrank+bf16": ("lowrank+bf16", {"rank": 32}, False),
    "lowrank+quantization": ("lowrank+quantization", {"rank": 32}, False),
    "pruning+quantization": ("pruning+quantization", HALF, False),
    "distillation+quantization, 4 layers of 312": ("distillation+quantization", STUDENT, False),
    "distillation+pruning+quantization, 4 of 312, half": (
        "distillation+pruning+quantization",
        {**STUDENT, **HALF},
        False,
    ),
}
EXPORTED = ", export.py"  # in names of models and files: the last layer answers for the first token alone
SAME_WEIGHTS = (  # rows of int8 whose weights OpenVINO runs in its int8, too
    "lowrank+quantization",
    "pruning+quantization",
    "distillation+quantization, 4 layers of 312",
    "distillation+pruning+quantization, 4 of 312, half",
)
REFERENCES = (  # heading of a column of ratios: the row that it divides by
    ("plain", "base, plain torch"),
    ("base", "base"),
    ("ORT int8", "ONNX Runtime, dynamic int8"),
    ("OpenVINO int8", "OpenVINO, int8"),
)


# --- models to time -------------------------------------------------------------------------------


def bert_base(config=None):
    """A BERT of base size, or of another config, with random weights and five labels."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        copy.deepcopy(config) or BertConfig(vocab_size=28996, num_labels=5)
    ).eval()


def compressed(technique, options, config=None):
    """The untrained model that a technique makes of bert_base(); what the technique prints is not shown."""
    model = bert_base(config)
    vocabulary = model.config.vocab_size

    def calibration(notes):
        ids = torch.randint(0, vocabulary, (min(notes, 8), 64))
        return [
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(len(ids)) % 5}
        ]

    parts = compress.parse_chain(technique)
    supplied = {"calibration": calibration, "fresh": ["classifier.weight"]}
    start = model
    if "teacher" in compress.needs(parts):
        supplied["teacher"], start = model, trainable_copy(model)
    chain = compress.build(parts, options, **supplied)
    chain.task = Task()
    with contextlib.redirect_stdout(io.StringIO()):
        return chain.finish(chain.prepare(start)).eval()


@contextlib.contextmanager
def ready(model, task):
    """While open, the model predicts with every speed-up of fast/, as in predict.py. Yields the model."""
    with reading(model, task, frozen=True):
        yield model


def without_mask(model):
    """The call by which predict.py reads rows without padding, as all rows are here."""
    return lambda input_ids, attention_mask: model(input_ids=input_ids)


@contextlib.contextmanager
def answering_first(model):
    """While open, the last layer answers for the first token, [CLS], alone. Yields the model."""
    with speedups(model, reads_first=True):
        yield model


def stored_bytes(model):
    """Bytes of a model's weights file."""
    with tempfile.TemporaryDirectory() as directory:
        write_tensors(path := Path(directory) / "model.safetensors", plain_state(model))
        return path.stat().st_size


# --- counting and timing --------------------------------------------------------------------------


def random_notes(vocabulary, notes, length, device="cpu"):
    """Model inputs of random token ids, (notes, length), without padding."""
    ids = torch.randint(0, vocabulary, (notes, length), generator=torch.Generator().manual_seed(0)).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def unseen_macs(module, x):
    """Multiply-adds of a layer for x that FlopCounterMode does not see: it sees small int8 products."""
    seen = isinstance(module, int8.Int8Product) and module.is_small(x)
    return 0 if seen else x.numel() * module.out_features


@torch.inference_mode()
def multiply_adds(model, length):
    """Multiply-adds of one note of `length` tokens: matrix products and attention, zero weights too."""
    uncounted = []  # by the layers whose products FlopCounterMode does not know
    hooks = [
        module.register_forward_hook(lambda m, x, y: uncounted.append(unseen_macs(m, x[0])))
        for module in model.modules()
        if is_int8(module) or isinstance(module, (cpu.OneDNNLinear, int8.Int8Product))
    ]
    # the plain attention kernel: the counter sees its products, but not those of the fused CPU kernel
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**random_notes(model.config.vocab_size, 1, length, device_of(model)))
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() // 2 + sum(uncounted)


def matrix_rate(dtype=torch.float32, device="cpu", size=4096):
    """Multiply-adds per second of a large matrix product; in fp32 on a CPU the better of MKL and oneDNN."""
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
                wait_for(device)
                times.append(time.perf_counter() - began)
    return size**3 / min(times)


def wait_for(device):
    """Wait until a device has done its work; a CPU has."""
    if device != "cpu":
        getattr(torch, device).synchronize()


@torch.inference_mode()
def forward_seconds(call, inputs):
    """Wall seconds of one forward pass."""
    began = time.perf_counter()
    call(**inputs)
    wait_for(inputs["input_ids"].device.type)
    return time.perf_counter() - began


def alternating(names, rounds, desc="timing"):
    """Yield every name once per round, in every second round in reverse order, under a progress bar."""
    names = list(names)
    for turn in tqdm(range(rounds), desc=desc, unit="round", leave=False, disable=None):
        yield from names if turn % 2 == 0 else reversed(names)


def time_models(calls, length, batch, rounds, singles=10):
    """Time calls {name: (call(input_ids, attention_mask), vocabulary, device)} in alternating order.

    Returns {name: {p50_ms, p95_ms, notes_per_s}}: p50 and p95 of rounds * singles passes at batch 1; notes/s
    is the batch over the median time of `rounds` full batches. One pass of each kind goes first, uncounted.
    """
    inputs = {
        name: [random_notes(vocabulary, size, length, device) for size in (1, batch)]
        for name, (_, vocabulary, device) in calls.items()
    }
    for name, (call, *_) in calls.items():
        for example in inputs[name]:
            forward_seconds(call, example)

    single, full = {name: [] for name in calls}, {name: [] for name in calls}
    for name in alternating(calls, rounds):
        call, (one, many) = calls[name][0], inputs[name]
        single[name] += [1e3 * forward_seconds(call, one) for _ in range(singles)]
        full[name].append(forward_seconds(call, many))
    return {
        name: {
            "p50_ms": statistics.median(single[name]),
            "p95_ms": statistics.quantiles(single[name], n=20, method="inclusive")[-1],
            "notes_per_s": batch / statistics.median(full[name]),
        }
        for name in calls
    }


# --- the comparison -------------------------------------------------------------------------------


def contenders(rows, length, config, opened):
    """{name: (model, bytes, multiply-adds)} of rows like ROWS; opened: an ExitStack for their speed-ups."""
    found = {}
    for name, (technique, options, plain) in tqdm(rows.items(), desc="building", leave=False, disable=None):
        model = compressed(technique, options, config)
        size = stored_bytes(model)
        if not computes_bf16():
            model.float()  # as a bf16 run is loaded there
        model = model if plain else opened.enter_context(ready(model, Task()))
        found[name] = (model, size, multiply_adds(model, length))
    return found


def onnx_peers(config, folder, length):
    """{name: (call, bytes, multiply-adds)} of the base model in ONNX Runtime, fp32 and dynamic int8.

    Each as the model is, and as export.py writes it: the last layer answers for the first token alone.
    """
    found = {}
    for how, first in (("", False), (EXPORTED, True)):
        model = bert_base(config)
        dense, small = folder / f"fp32{how}.onnx", folder / f"int8{how}.onnx"
        to_onnx(model, dense, first)
        to_onnx_int8(dense, small)
        with answering_first(model) if first else contextlib.nullcontext():
            macs = multiply_adds(model, length)
        found[f"ONNX Runtime, fp32{how}"] = (open_onnx(dense), dense.stat().st_size, macs)
        found[f"ONNX Runtime, dynamic int8{how}"] = (open_onnx(small), small.stat().st_size, macs)
    return found


def openvino_peers(config, folder, length):
    """{name: (call, bytes, multiply-adds)} of models in OpenVINO, as export.py writes them.

    The base model in every precision, and in int8 the weights of SAME_WEIGHTS.
    """
    precisions = ("fp32", *["bf16"] * multiplies_bf16(), "int8")
    wanted = {"": ("base", {}, precisions)}
    for row in SAME_WEIGHTS:
        technique, options, _ = ROWS[row]
        wanted[f" of {row}"] = (technique.removesuffix("+quantization"), options, ("int8",))
    found = {}
    bar = tqdm(wanted.items(), desc="exporting", leave=False, disable=None)
    for name, (technique, options, precisions) in bar:
        model, dense = compressed(technique, options, config), folder / f"fp32{name}{EXPORTED}.onnx"
        if not dense.exists():  # onnx_peers wrote base's, if ONNX Runtime is there
            to_onnx(model, dense, first=True)
        with answering_first(model):
            macs = multiply_adds(model, length)
        batches = [random_notes(model.config.vocab_size, 8, length) for _ in range(2)]
        for precision in precisions:
            path = folder / f"{precision}{name}.xml"
            to_openvino(dense, path, precision, batches)
            size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
            found[f"OpenVINO, {precision}{name}"] = (open_openvino(path), size, macs)
    return found


def peers_of(config, directory, length):
    """The rows of other engines; without those that are not installed, which a line names."""
    found = {}
    for rows in (onnx_peers, openvino_peers):
        try:
            found |= rows(config, Path(directory), length)
        except BadInput as error:
            print(f"rows of another engine are left out: {error}")
    return found


def shape_rows(length=256, batch=16, rounds=5, rows=ROWS, config=None):
    """Rows of the comparison, a dict each, other engines' last."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as opened:
        peers = peers_of(config, directory, length)
        peak = matrix_rate()
        entries = {**contenders(rows, length, config, opened), **peers}
        vocabulary = bert_base(config).config.vocab_size
        predicted = {name for name, (_, _, plain) in rows.items() if not plain}
        calls = {
            name: (without_mask(call) if name in predicted else call, vocabulary, "cpu")
            for name, (call, _, _) in entries.items()
        }
        timed = time_models(calls, length, batch, rounds)
    table = []
    for name, (_, size, macs) in entries.items():
        share = (
            macs * timed[name]["notes_per_s"] / peak
        )  # of what a large fp32 product reaches; int8 may pass 1
        row = {"row": name, "bytes": size, "macs": macs, **timed[name], "peak_share": share}
        table.append({**row, "length": length, "batch": batch, "rounds": rounds, "peak_macs_per_s": peak})
    return table


def shape_table(rows):
    """(header, cells): each figure, and how many times better it is than that of each reference row."""
    named = {row["row"]: row for row in rows}
    references = [(heading, named[name]) for heading, name in REFERENCES if name in named]
    ratios, first = [f"x {heading}" for heading, _ in references], rows[0]
    header = [
        "BERT-base shape, random weights",
        "MB",
        "M multiply-adds",
        f"{first['batch']} x {first['length']}: ms",
    ]
    header += [*ratios, "of fp32 peak", f"1 x {first['length']}: ms", *ratios]
    cells = [
        [
            row["row"],
            f"{row['bytes'] / 1e6:.1f} ({first['bytes'] / row['bytes']:.1f}x)",
            f"{row['macs'] / 1e6:,.0f}",
            f"{1e3 * row['batch'] / row['notes_per_s']:.1f}",
            *(f"{row['notes_per_s'] / other['notes_per_s']:.2f}" for _, other in references),
            f"{row['peak_share']:.2f}",
            f"{row['p50_ms']:.1f}",
            *(f"{other['p50_ms'] / row['p50_ms']:.2f}" for _, other in references),
        ]
        for row in rows
    ]
    return header, cells
