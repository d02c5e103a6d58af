"""A run directory and notes -> labels and probabilities: python predict.py RUN_DIR notes.csv --out predictions.csv

The file is read as a stream; the answer keeps its order and row ids, and of the text nothing is written. With - in place
of the file, one note is read from standard input. The run is rebuilt as it was scored, int8 as int8.
"""

import csv
import io
import json
import os
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

import checkpoint
from data import BadInput, Parser, Table, collate, digest, encode, make_batches, number, run_script, writable_directory


def pick_device(name="auto"):
    """The named torch device, or with 'auto' CUDA, MPS or the CPU, whichever is there first. Raises BadInput if absent."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in present.items() if there)
    if not present[name]:
        raise BadInput(f"--device {name}: this machine or this build of torch has none; use auto")
    return torch.device(name)


@torch.inference_mode()
def predict_logits(model, encoded, pad_id, batch_size=16, autocast=None):
    """Logits of encoded notes in their order, (N, C) float32 on the CPU. Batches hold notes of similar length."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    rows, pieces = [], []
    for batch in make_batches(encoded.lengths, batch_size):
        with autocast or nullcontext():
            logits = model(**collate(encoded, batch, pad_id, device)).logits
        rows.append(batch)
        pieces.append(logits.float().cpu())
    return torch.cat(pieces)[np.argsort(np.concatenate(rows))]


def predict_texts(run, texts, batch_size=16):
    """Probabilities of raw texts, (N, C) NumPy."""
    texts = [run.task.prepare_text(text) for text in texts]
    encoded = encode(texts, run.tokenizer, run.facts["arguments"]["max_length"], progress=False)
    logits = predict_logits(run.model, encoded, run.tokenizer.pad_token_id, batch_size)
    return run.task.probabilities(logits).numpy()


def as_row(labels, probabilities):
    """[predicted label, probability of each label as text] of one note."""
    return [labels[int(probabilities.argmax())], *(f"{p:.6f}" for p in probabilities)]


def predict_file(run, path, out, batch_size=16, chunk=2048):
    """Stream a CSV of notes into a CSV of predictions; rows without text are left out and counted.

    Finished chunks are kept beside `out` until the end, so that an interrupted call resumes. Returns the counts.
    """
    labels, table, counts = run.task.labels, Table(path), Counter()
    text_at, row_at, _ = run.task.columns(table)
    stat = os.stat(path)
    call = (run.facts["finished"], path, stat.st_size, stat.st_mtime_ns, run.task.text_column, batch_size, chunk)
    partial = Path(f"{out}.{digest(*map(str, call)):016x}.partial")
    done = _finished_rows(partial, chunk)
    try:
        with open(partial, "ab") as file:
            if not file.tell():
                file.write(_csv_bytes([["row_id", "predicted", *(f"p_{label}" for label in labels)]]))
            waiting = []
            for _, row in table:
                counts["rows"] += 1
                if not row[text_at].strip():
                    counts["without text"] += 1
                    continue
                counts["predicted"] += 1
                if counts["predicted"] > done:
                    waiting.append((row[row_at] if row_at is not None else str(counts["rows"]), row[text_at]))
                if len(waiting) == chunk:
                    _write_chunk(file, run, waiting, batch_size)
                    waiting = []
            if waiting:
                _write_chunk(file, run, waiting, batch_size)
    except BadInput:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, out)
    return counts


def _write_chunk(file, run, waiting, batch_size):
    probabilities = predict_texts(run, [text for _, text in waiting], batch_size)
    file.write(_csv_bytes([[row_id, *as_row(run.task.labels, p)] for (row_id, _), p in zip(waiting, probabilities)]))
    file.flush()


def _csv_bytes(rows):
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def _finished_rows(partial, chunk):
    """Rows of whole chunks that an interrupted call left; what follows them is cut off."""
    if not partial.exists():
        return 0
    content = partial.read_bytes()
    content = content[: content.rfind(b"\n") + 1]
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    done = max(0, len(rows) - 1) // chunk * chunk
    partial.write_bytes(_csv_bytes(rows[: done + 1]) if done else b"")
    return done


def main(argv=None):
    """Parse, predict, write."""
    parser = Parser(prog="predict.py", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run directory, such as results/symptoms/lowrank")
    parser.add_argument("notes", help="CSV or CSV.gz of notes; - reads one note from standard input")
    parser.add_argument("--out", default="predictions.csv", help="CSV to write (predictions.csv)")
    parser.add_argument("--text-column", default=None, help="column of the note (the one the run was trained with)")
    parser.add_argument("--batch-size", type=number(int, 1, 10**5), default=16, help="notes a batch (16)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="int8 runs are always on cpu")
    args = parser.parse_args(argv)

    run = checkpoint.load(args.run)
    if not any(facts["technique"] == "quantization" for facts in run.compression):
        run.model.to(pick_device(args.device))
    if args.text_column:
        run.task.text_column = args.text_column
    if args.notes == "-":
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError:
            raise BadInput("standard input: not UTF-8; convert the note to UTF-8") from None
        if not text.strip():
            raise BadInput("standard input: no text; pipe a note in, as in python predict.py RUN_DIR - < note.txt")
        probabilities = predict_texts(run, [text])[0]
        answer = {label: round(float(p), 6) for label, p in zip(run.task.labels, probabilities)}
        print(json.dumps({"predicted": run.task.labels[int(probabilities.argmax())], "probabilities": answer}))
        return
    out = Path(args.out)
    if out.is_dir():
        raise BadInput(f"--out {out}: is a directory; name a file")
    if out.exists() and Path(args.notes).exists() and out.samefile(args.notes):
        raise BadInput(f"--out {out}: is the file of notes itself; name another")
    writable_directory(out.parent)
    counts = predict_file(run, args.notes, out, args.batch_size)
    print(", ".join(f"{count} {what}" for what, count in counts.items()), f"-> {out}")


if __name__ == "__main__":
    run_script(main)
