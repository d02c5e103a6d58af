"""A run directory -> an ONNX file, checked against PyTorch: python export.py RUN_DIR --onnx model.onnx

The file's inputs are input_ids and attention_mask, int64 (batch, length), of any batch and length; its output
is the logits of the run's head (with --head logistic, those of the first token). Where the head reads the
first token alone, the last layer answers for no other. The tokenizer stays in the run directory.

--int8 quantizes with ONNX Runtime's own dynamic int8. A run of torch's int8 layers has no ONNX form: export
the run that it came from. Needs pip install -r requirements-peers.lock.
"""

import itertools
import os
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import compress
from cli import BadInput, Parser, number, run_script
from data import budget_batches, collate
from files import writable_directory, writing
from run import checkpoint, untrusted
from run.onnx_file import Logits, libraries, session, to_int8, to_onnx
from tasks import demo

TOLERANCE = 1e-3  # largest difference of a logit, in fp32, that is rounding


# --- notes to check with --------------------------------------------------------------------------


def first_notes(task, path, count):
    """The first `count` notes of a table that have text. Raises BadInput if there are none."""
    task.options.row_column = task.options.subject_column = None
    rows = task.rows(task.open_table(path, progress=False), Counter())
    examples = [task.example(row_id, text) for _, row_id, _, text, _ in itertools.islice(rows, count)]
    if not examples:
        raise BadInput(f"{path}: no row with text; give notes to check with")
    return examples


def validation_notes(run, directory, count):
    """(the first `count` notes of a run's validation split, the file that they are from)."""
    untrusted.check_types(f"{directory}/run.json", run.facts, {}, untrusted.SPLIT)
    arguments = run.facts["arguments"]
    data, validation, test = (arguments[name] for name in ("data", "validation", "test"))
    if data == "demo":
        data = str(demo.make(Path(directory).parent / "demo", run.task.name)[0])
    for file in (data, validation, test):  # the last two are a file or a share of the first
        if isinstance(file, str) and not Path(file).exists():
            raise BadInput(f"{file}: the run's own notes are not there; name a CSV of notes with --notes")
    task = type(run.task).from_facts(run.facts["task"])
    task.options.max_row_mb = run.task.options.max_row_mb
    splits, _ = task.load(data, arguments["fraction"], validation, test, arguments["split_seed"])
    return splits["validation"][:count], validation if isinstance(validation, str) else data


def rows_to_check(run, args):
    """(encoded rows of the notes to check with, the file that they are from)."""
    if args.notes:
        examples, file = first_notes(run.task, args.notes, args.count), args.notes
    else:
        examples, file = validation_notes(run, args.run, args.count)
    return run.task.encode(
        examples, run.tokenizer, run.facts["arguments"]["max_length"], progress=False
    ), file


# --- the check ------------------------------------------------------------------------------------


@torch.inference_mode()
def compare(model, call, encoded, pad_id):
    """(largest difference of a logit, share of the same answers) of a Logits and a session on encoded rows.

    The first four rows are also read one by one.
    """
    largest, agree, total = 0.0, 0, 0
    alone = [np.array([row]) for row in range(min(4, len(encoded.lengths)))]
    for rows in [*alone, *budget_batches(encoded.lengths, 2048)]:
        batch = collate(encoded, rows, pad_id)
        ours = model(batch["input_ids"], batch["attention_mask"]).numpy()
        theirs = call(batch["input_ids"], batch["attention_mask"])
        if ours.ndim == 3:  # logits of every token (B, T, C) -> those of real tokens (N, C)
            real = batch["attention_mask"].numpy().astype(bool)
            ours, theirs = ours[real], theirs[real]
        largest = float(
            np.maximum(largest, np.abs(ours - theirs).max())
        )  # NaN stays NaN; max() would drop it
        agree += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        total += len(ours)
    return largest, agree / total


def write_checked(run, args, encoded, file):
    """Write the ONNX file. Raises BadInput, and writes nothing, if its answers are not those of PyTorch."""
    out, pad_id = Path(args.onnx), run.tokenizer.pad_token_id
    ours = Logits(run.model, run.task.reads_first)
    with writing(out), tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as directory:
        dense, small = Path(directory) / "fp32.onnx", Path(directory) / "int8.onnx"
        to_onnx(run.model, dense, run.task.reads_first)
        largest, agree = compare(ours, session(dense), encoded, pad_id)
        print(
            f"onnx: {len(encoded.lengths)} rows of {file}, "
            f"largest logit difference from PyTorch {largest:.2g}, same answer {agree:.2%}"
        )
        if not largest <= TOLERANCE:  # NaN too
            raise BadInput(
                f"{args.run}: ONNX Runtime and PyTorch differ by {largest:.2g}; nothing was written"
            )
        if args.int8:
            to_int8(dense, small)
            largest, agree = compare(ours, session(small), encoded, pad_id)
            before, after = (path.stat().st_size / 1e6 for path in (dense, small))
            print(
                f"int8: largest logit difference {largest:.2g}, same answer {agree:.2%}; "
                f"{before:.1f} -> {after:.1f} MB"
            )
        os.replace(small if args.int8 else dense, out)


def main(argv=None):
    """Export, check, put in place."""
    parser = Parser(prog="export.py", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run directory, such as results/symptoms/lowrank")
    parser.add_argument("--onnx", required=True, help="file to write")
    parser.add_argument(
        "--int8", action="store_true", help="quantize with ONNX Runtime, to a quarter of the bytes (no)"
    )
    parser.add_argument("--notes", help="CSV of notes to check with (the run's own validation notes)")
    parser.add_argument(
        "--count", type=number(int, 1, 10**6), default=64, help="number of notes to check with (64)"
    )
    parser.add_argument(
        "--max-row-mb",
        type=number(int, 1, 2000),
        help="millions of characters that a row of the notes may have (as the run was trained)",
    )
    args = parser.parse_args(argv)

    libraries()
    run = checkpoint.load(args.run)
    run.task.options.max_row_mb = args.max_row_mb or run.task.options.max_row_mb
    if compress.cpu_only(run.compression):
        raise BadInput(
            f"{args.run}: holds torch's int8 layers, which have no ONNX form; "
            "export the run it came from, with --int8"
        )
    out = Path(args.onnx)
    if out.is_dir():
        raise BadInput(f"--onnx {out}: is a directory; name a file")
    writable_directory(out.parent)

    write_checked(run, args, *rows_to_check(run, args))
    print(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, inputs input_ids and attention_mask (batch, length); "
        f"tokenizer in {args.run}"
    )
    if hasattr(run.model, "crf"):
        print("note: the logits are those before the CRF; its transitions are not in the file")


if __name__ == "__main__":
    run_script(main)
