"""A run directory and notes -> labels, probabilities or spans: python predict.py RUN_DIR notes.csv --out predictions.csv

The file is read as a stream; the answer keeps its order and row ids, and of the text nothing is written. With - in place
of the file, one note is read from standard input. The run is rebuilt as it was saved, int8 as int8 (on another CPU its
activations may have other bits: compress/quantization.py). Tasks whose answers are no row of numbers, such as spans, write
JSON lines.
"""

import csv
import io
import itertools
import json
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import torch

import checkpoint
from compress import attention, cpu
from compress.technique import device_of
from data import BadInput, Parser, Table, budget_batches, collate, digest, number, run_script, writable_directory


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


def ahead(items):
    """The items of an iterator, the next one made in another thread while the last one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item


def predict_file(run, path, out, tokens=None, chunk=2048):
    """Stream a CSV of notes into a file of predictions; rows without text are left out and counted.

    The next chunk is read and tokenised while the model reads this one. Finished chunks are kept beside `out` until the
    end, so that an interrupted call resumes. Returns the counts.
    """
    task, table, counts = run.task, Table(path), Counter()
    stat = os.stat(path)
    call = (run.facts["finished"], path, stat.st_size, stat.st_mtime_ns, task.options.text_columns, task.options.row_column, tokens, chunk)
    partial = Path(f"{out}.{digest(*map(str, call)):016x}.partial")
    header = b"" if task.json_lines else _csv_bytes([["row_id", *task.header()]])
    done = _finished_rows(partial, chunk, bool(header))

    def chunks():
        examples = (task.example(row_id, text) for _, row_id, _, text, _ in task.rows(table, counts))
        examples = itertools.islice(examples, done, None)
        while waiting := list(itertools.islice(examples, chunk)):
            counts["predicted"] += len(waiting)
            yield waiting, encode_examples(run, waiting)

    try:
        with open(partial, "ab") as file:
            if not file.tell():
                file.write(header)
            for examples, encoded in ahead(chunks()):
                _write_chunk(file, run, examples, predict_examples(run, examples, tokens, encoded))
    except BadInput:
        partial.unlink(missing_ok=True)
        raise
    counts["predicted"] += done
    os.replace(partial, out)
    return counts


def _write_chunk(file, run, examples, predictions):
    task = run.task
    if task.json_lines:
        lines = (json.dumps({"row_id": e.row_id, **task.answer(e, p)}) for e, p in zip(examples, predictions))
        file.write("".join(f"{line}\n" for line in lines).encode())
    else:
        file.write(_csv_bytes([[example.row_id, *task.record(p)] for example, p in zip(examples, predictions)]))
    file.flush()


def _csv_bytes(rows):
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def _finished_rows(partial, chunk, is_csv):
    """Rows of whole chunks that an interrupted call left; what follows them is cut off."""
    if not partial.exists():
        return 0
    content = partial.read_bytes()
    content = content[: content.rfind(b"\n") + 1]
    if not is_csv:
        done = content.count(b"\n") // chunk * chunk
        partial.write_bytes(b"".join(content.splitlines(keepends=True)[:done]))
        return done
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    done = max(0, len(rows) - 1) // chunk * chunk
    partial.write_bytes(_csv_bytes(rows[: done + 1]) if done else b"")
    return done


def main(argv=None):
    """Parse, predict, write."""
    parser = Parser(prog="predict.py", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run directory, such as results/symptoms/lowrank")
    parser.add_argument("notes", help="CSV or CSV.gz of notes; - reads one note from standard input")
    parser.add_argument("--out", default=None, help="file to write (predictions.csv, or .jsonl for spans)")
    parser.add_argument("--text-columns", "--text-column", default=None, help="column of the note (as the run was trained)")
    parser.add_argument("--row-column", default=None, help="column of the row id (as the run was trained)")
    parser.add_argument(
        "--batch-tokens", type=number(int, 1, 10**8), default=None, help="tokens a batch, padding counted (2048; 65536 on a GPU)"
    )
    parser.add_argument("--show-text", action="store_true", help="with -, print the words of each span beside its offsets")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="int8 runs are always on cpu")
    parser.add_argument("--compile", action="store_true", help="predict through torch.compile, on CUDA; the first batches wait for it")
    args = parser.parse_args(argv)

    cpu.keep_memory()
    run = checkpoint.load(args.run)
    int8 = any(facts["technique"] == "quantization" for facts in run.compression)
    run.model.to(pick_device("cpu" if int8 else args.device, args.compile))
    cpu.for_inference(run.model, run.task)
    if args.compile:
        run = run._replace(model=torch.compile(run.model, dynamic=True))  # one graph for batches of every length
    options = run.task.options
    options.text_columns, options.row_column = args.text_columns or options.text_columns, args.row_column or options.row_column
    options.subject_column = None  # only a split needs it
    if args.notes == "-":
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError:
            raise BadInput("standard input: not UTF-8; convert the note to UTF-8") from None
        if not text.strip():
            raise BadInput("standard input: no text; pipe a note in, as in python predict.py RUN_DIR - < note.txt")
        example = run.task.example("-", text)
        answer = run.task.answer(example, predict_examples(run, [example])[0])
        for span in answer.get("spans", []) if args.show_text else []:
            span["text"] = text[span["start"] : span["end"]]
        print(json.dumps(answer))
        return
    out = Path(args.out or ("predictions.jsonl" if run.task.json_lines else "predictions.csv"))
    if out.is_dir():
        raise BadInput(f"--out {out}: is a directory; name a file")
    if out.exists() and Path(args.notes).exists() and out.samefile(args.notes):
        raise BadInput(f"--out {out}: is the file of notes itself; name another")
    writable_directory(out.parent)
    counts = predict_file(run, args.notes, out, args.batch_tokens)
    print(", ".join(f"{count} {what}" for what, count in counts.items()), f"-> {out}")


if __name__ == "__main__":
    run_script(main)
