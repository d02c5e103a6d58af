"""A run directory and notes -> labels, probabilities or spans.

python predict.py RUN_DIR notes.csv --out predictions.csv
python predict.py RUN_DIR - < note.txt

The file is read as a stream; the answers keep its order and row ids, and hold nothing of the text. The run is
rebuilt as it was saved, int8 as int8 (on another CPU its activations may have other bits). Tasks whose answers
are no row of numbers, such as spans, write JSON lines.
"""

import csv
import io
import itertools
import json
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import compress
from cli import BadInput, Parser, number, run_script
from data import Table, digest
from fast import cpu
from files import writable_directory
from run import checkpoint
from run.inference import encode_examples, pick_device, predict_examples, reading


def ahead(items):
    """The items of an iterator, the next one made in another thread while the last one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item


def predict_file(run, path, out, tokens=None, chunk=2048):
    """Stream a CSV of notes into a file of predictions; rows without text are left out and counted.

    The next chunk is read and tokenised while the model reads this one. Finished chunks are kept beside `out`
    end, so that an interrupted call resumes. Returns the counts.
    """
    task, table, counts = run.task, Table(path), Counter()
    stat, options = os.stat(path), task.options
    columns = (options.text_columns, options.row_column)
    call = (run.facts["finished"], path, stat.st_size, stat.st_mtime_ns, *columns, tokens, chunk)
    partial = Path(f"{out}.{digest(*map(str, call)):016x}.partial")
    header = b"" if task.json_lines else csv_bytes([["row_id", *task.header()]])
    done = finished_rows(partial, chunk, bool(header))

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
                write_chunk(file, run, examples, predict_examples(run, examples, tokens, encoded))
    except BadInput:
        partial.unlink(missing_ok=True)
        raise
    counts["predicted"] += done
    os.replace(partial, out)
    return counts


def write_chunk(file, run, examples, predictions):
    """Append a chunk's answers to an open file."""
    task = run.task
    if task.json_lines:
        rows = ({"row_id": e.row_id, **task.answer(e, p)} for e, p in zip(examples, predictions, strict=True))
        file.write("".join(f"{json.dumps(row)}\n" for row in rows).encode())
    else:
        file.write(
            csv_bytes([[e.row_id, *task.record(p)] for e, p in zip(examples, predictions, strict=True)])
        )
    file.flush()


def csv_bytes(rows):
    """Rows as the bytes of a CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def finished_rows(partial, chunk, is_csv):
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
    partial.write_bytes(csv_bytes(rows[: done + 1]) if done else b"")
    return done


def predict_note(run, text, show_text):
    """The answer to one note, a dict; with show_text the words of each span beside its offsets."""
    example = run.task.example("-", text)
    answer = run.task.answer(example, predict_examples(run, [example])[0])
    for span in answer.get("spans", []) if show_text else []:
        span["text"] = text[span["start"] : span["end"]]
    return answer


def read_note():
    """One note from standard input. Raises BadInput if it is empty or not UTF-8."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput("standard input: not UTF-8; convert the note to UTF-8") from None
    if not text.strip():
        raise BadInput(
            "standard input: no text; pipe a note in, as in python predict.py RUN_DIR - < note.txt"
        )
    return text


def output_path(args, task):
    """Where the predictions go. Raises BadInput if that is a directory, the notes themselves, or not writable."""
    out = Path(args.out or ("predictions.jsonl" if task.json_lines else "predictions.csv"))
    if out.is_dir():
        raise BadInput(f"--out {out}: is a directory; name a file")
    if out.exists() and Path(args.notes).exists() and out.samefile(args.notes):
        raise BadInput(f"--out {out}: is the file of notes itself; name another")
    writable_directory(out.parent)
    return out


def build_prediction_parser():
    """The parser of predict.py."""
    parser = Parser(prog="predict.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("run", help="run directory, such as results/symptoms/lowrank")
    add("notes", help="CSV or CSV.gz of notes; - reads one note from standard input")
    add("--out", default=None, help="file to write (predictions.csv, or predictions.jsonl for spans)")
    add("--text-columns", "--text-column", default=None, help="column of the note (as the run was trained)")
    add("--row-column", default=None, help="column of the row id (as the run was trained)")
    tokens = number(int, 1, 10**8)
    add(
        "--batch-tokens",
        type=tokens,
        default=None,
        help="tokens per batch, padding counted (2048; 65536 on a GPU)",
    )
    add(
        "--show-text",
        action="store_true",
        help="with -, print the words of each span beside its offsets (off)",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="int8 runs are always on cpu (auto)",
    )
    add(
        "--compile",
        action="store_true",
        help="predict through torch.compile, on CUDA; slow first batches (off)",
    )
    return parser


def main(argv=None):
    """Parse, predict, write."""
    args = build_prediction_parser().parse_args(argv)
    cpu.keep_memory()
    run = checkpoint.load(args.run)
    device = pick_device("cpu" if compress.cpu_only(run.compression) else args.device, args.compile)
    options = run.task.options
    options.text_columns = args.text_columns or options.text_columns
    options.row_column = args.row_column or options.row_column
    options.subject_column = None  # only a split needs it

    with reading(run.model.to(device), run.task, frozen=True):
        if args.compile:
            run = run._replace(model=torch.compile(run.model, dynamic=True))  # one graph for all lengths
        if args.notes == "-":
            print(json.dumps(predict_note(run, read_note(), args.show_text)))
            return
        out = output_path(args, run.task)
        counts = predict_file(run, args.notes, out, args.batch_tokens)
        print(", ".join(f"{count} {what}" for what, count in counts.items()), f"-> {out}")


if __name__ == "__main__":
    run_script(main)
