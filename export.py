"""A run directory -> an ONNX file, checked against PyTorch on notes: python export.py RUN_DIR --onnx model.onnx [--int8]

Inputs input_ids and attention_mask (batch, length), int64, both sides free; output logits, as the run's head gives them (of
--head logistic the first token's). Where the head reads the first token alone, the last layer answers for no other.
The tokenizer stays in the run directory (tokenizer.json). --int8 quantizes with ONNX Runtime's own dynamic int8, weights per
channel; a run of --technique quantization holds torch's int8 layers, which have no ONNX form: export the run it came from.
Needs pip install -r requirements-peers.txt.
"""

import copy
import itertools
import logging
import os
import tempfile
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch

from cli import BadInput, Parser, number, run_script
from data import Table, budget_batches, collate
from fast.attention import first_token
from files import writable_directory
from run import checkpoint
from tasks import demo

TOLERANCE = 1e-3  # largest difference of a logit, in fp32, that is rounding


class Logits(torch.nn.Module):
    """A model as a function of two tensors, (B, T) each -> logits; first: of the first token alone, if it has logits for each."""

    def __init__(self, model, first):
        super().__init__()
        self.model, self.first = model, first

    def forward(self, input_ids, attention_mask):
        """The model's logits."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits[:, 0] if self.first and logits.dim() == 3 else logits


def libraries():
    """(onnx, onnxruntime). Raises BadInput if they are not installed."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise BadInput(f"{error.name} is not installed; pip install -r requirements-peers.txt") from None
    onnxruntime.set_default_logger_severity(3)
    return onnx, onnxruntime


def to_onnx(model, path, first=False):
    """Write a model of fp32 layers as one ONNX file of free batch and length; first: its last layer answers for the first token alone."""
    onnx, _ = libraries()
    model = Logits(first_token(copy.deepcopy(model)) if first else model, first).eval()
    ids = torch.randint(0, model.model.config.vocab_size, (2, 16))
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (ids, torch.ones_like(ids)), path, dynamo=True, dynamic_shapes=(free, free), external_data=False,
                input_names=["input_ids", "attention_mask"], output_names=["logits"],
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    graph = onnx.load(path)
    del graph.graph.value_info[:]  # shapes noted before the exporter transposed weights, over which the quantizer stumbles
    onnx.save(graph, path)


def to_int8(source, path):
    """ONNX Runtime's dynamic int8 of an ONNX file: weights of matrix products and embeddings, a scale per channel."""
    libraries()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        quantize_dynamic(source, path, weight_type=QuantType.QInt8, per_channel=True)
    finally:
        root.setLevel(level)


def session(path, threads=None):
    """An ONNX file as a function (input_ids, attention_mask) of tensors -> logits, on the CPU."""
    _, onnxruntime = libraries()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    inner = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(input_ids, attention_mask):
        return inner.run(None, {"input_ids": input_ids.cpu().numpy(), "attention_mask": attention_mask.cpu().numpy()})[0]

    return call


@torch.inference_mode()
def compare(model, call, encoded, pad_id):
    """(largest difference of a logit, share of the largest logits that agree) of a Logits and a session, over encoded rows."""
    largest, agree, total = 0.0, 0, 0
    batches = [np.array([row]) for row in range(min(4, len(encoded.lengths)))] + budget_batches(encoded.lengths, 2048)
    for rows in batches:
        batch = collate(encoded, rows, pad_id)
        ours = model(batch["input_ids"], batch["attention_mask"]).numpy()
        theirs = call(batch["input_ids"], batch["attention_mask"])
        real = batch["attention_mask"].numpy().astype(bool) if ours.ndim == 3 else slice(None)
        ours, theirs = ours[real], theirs[real]
        largest = float(np.maximum(largest, np.abs(ours - theirs).max()))  # NaN stays NaN, where max() would forget it
        agree, total = agree + int((ours.argmax(-1) == theirs.argmax(-1)).sum()), total + len(ours)
    return largest, agree / total


def some_notes(run, directory, path, count):
    """(encoded rows of the first `count` notes, where they are from): of a CSV, or of the run's own validation split."""
    task, arguments = run.task, run.facts["arguments"]
    name = path or arguments["data"]
    if path:
        task.options.row_column = task.options.subject_column = None
        rows = task.rows(Table(name, progress=False), Counter())
        examples = [task.example(row_id, text) for _, row_id, _, text, _ in itertools.islice(rows, count)]
        if not examples:
            raise BadInput(f"{name}: no row with text; give notes to check with")
    else:
        name = str(demo.make(Path(directory).parent / "demo", task.name)[0]) if name == "demo" else name
        if not Path(name).exists():
            raise BadInput(f"{name}: the run's own notes are not there; name a CSV of notes with --notes")
        where = (arguments[key] for key in ("fraction", "validation", "test", "split_seed"))
        examples = type(task).from_facts(run.facts["task"]).load(name, *where)[0]["validation"][:count]
    return task.encode(examples, run.tokenizer, arguments["max_length"], progress=False), name


def main(argv=None):
    """Export, check, put in place."""
    parser = Parser(prog="export.py", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run directory, such as results/symptoms/lowrank")
    parser.add_argument("--onnx", required=True, help="file to write")
    parser.add_argument("--int8", action="store_true", help="quantize with ONNX Runtime: bytes a quarter, speed by the CPU")
    parser.add_argument("--notes", default=None, help="CSV of notes to check with (the run's own validation notes)")
    parser.add_argument("--count", type=number(int, 1, 10**6), default=64, help="notes to check with (64)")
    args = parser.parse_args(argv)

    libraries()
    run = checkpoint.load(args.run)
    if any(facts["technique"] == "quantization" for facts in run.compression):
        raise BadInput(f"{args.run}: holds torch's int8 layers, which have no ONNX form; export the run it came from, with --int8")
    out = Path(args.onnx)
    if out.is_dir():
        raise BadInput(f"--onnx {out}: is a directory; name a file")
    writable_directory(out.parent)
    encoded, notes = some_notes(run, args.run, args.notes, args.count)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as directory:
        temporary, small = Path(directory) / "fp32.onnx", Path(directory) / "int8.onnx"
        to_onnx(run.model, temporary, run.task.reads_first)
        ours = Logits(run.model, run.task.reads_first)
        largest, agree = compare(ours, session(temporary), encoded, run.tokenizer.pad_token_id)
        print(f"onnx: {len(encoded.lengths)} rows of {notes}, largest logit difference from PyTorch {largest:.2g}, same answer {agree:.2%}")
        if not largest <= TOLERANCE:
            raise BadInput(f"{args.run}: ONNX Runtime answers otherwise than PyTorch (by {largest:.2g}); nothing was written")
        size = temporary.stat().st_size
        if args.int8:
            to_int8(temporary, small)
            largest, agree = compare(ours, session(small), encoded, run.tokenizer.pad_token_id)
            print(
                f"int8: largest logit difference {largest:.2g}, same answer {agree:.2%}; {size / 1e6:.1f} -> {small.stat().st_size / 1e6:.1f} MB"
            )
        os.replace(small if args.int8 else temporary, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, inputs input_ids and attention_mask (batch, length); tokenizer in {args.run}")
    if hasattr(run.model, "crf"):
        print("note: the logits are those before the CRF, whose transitions are not in the file")


if __name__ == "__main__":
    run_script(main)
