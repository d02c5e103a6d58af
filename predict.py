"""A run directory and notes -> labels, probabilities or spans.

python predict.py RUN_DIR notes.csv --out predictions.csv
python predict.py RUN_DIR notes.csv --embeddings vectors.npy
python predict.py RUN_DIR notes.csv --engine auto
python predict.py RUN_DIR - < note.txt
torchrun --nproc_per_node=2 predict.py RUN_DIR notes.csv

The file is read as a stream; the answers keep its order and row ids, and hold nothing of the text. The run
is rebuilt as it was saved, int8 as int8 (on another CPU its activations may have other bits). Tasks whose
answers are no row of numbers, such as spans, write JSON lines.
"""

import contextlib
import functools
import glob
import hashlib
import io
import itertools
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import compress
from cli import BadInput, Parser, run_script
from data import digest
from fast import cpu
from files import csv_bytes, locked, whole_file, writable_directory, write_csv, writing
from run import checkpoint, engine, processes
from run.arguments import add_reading_flags, take_columns
from run.forms import version_of
from run.inference import ahead, encode_examples, pick_device, predict_examples, reading
from run.machine import same_bits


def predict_file(run, path, out, tokens=None, chunk=2048, products=None):
    """Stream a file of notes into a file of predictions; rows without text are left out and counted.

    products: how answers are made beside the run, so that those by one way and by another are not mixed, such
    as by which library the model multiplies. Returns the counts.
    """
    task, call = run.task, f"{tokens} {products}"
    header = b"" if task.json_lines else csv_bytes([["row_id", *task.header()]])

    def answer(examples, encoded):
        return answer_bytes(task, examples, predict_examples(run, examples, tokens, encoded))

    return answer_file(run, path, out, chunk, call, answer, lambda kept, counts: kept.join(header))


def embed_file(run, path, out, tokens=None, chunk=2048, products=None):
    """Stream a file of notes into an .npy file of [CLS] vectors, (notes, H) float32. Returns the counts.

    Beside it the row ids, in the same order. A note that is read in several windows gets the mean of theirs.
    """
    ids, call, pad_id = [], f"[CLS] {tokens} {products}", run.tokenizer.pad_token_id

    def answer(examples, encoded):
        with reading(run.model, run.task):
            vectors = run.task.cls_vectors(run.model, encoded, pad_id, tokens or 4096)
        first = np.flatnonzero(np.diff(encoded.owner, prepend=-1))
        sums = np.add.reduceat(vectors, first, axis=0)  # over the rows of each note
        return (sums / np.bincount(encoded.owner)[:, None]).astype("<f4").tobytes()

    def finish(kept, counts):
        shape = counts["predicted"], run.model.config.hidden_size
        header, words = io.BytesIO(), {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, words)
        if processes.is_first():
            write_csv(ids_path(out), ["row_id"], ids, private=True)
        kept.join(header.getvalue())

    def each(examples):
        ids.extend([example.row_id] for example in examples)

    return answer_file(run, path, out, chunk, call, answer, finish, each)


def answer_file(run, path, out, chunk, call, answer, finish, each=lambda examples: None):
    """Answer a file by the chunk: answer(examples, encoded) -> bytes, at last finish(answers, counts).

    The next chunk is read and tokenised while the model reads this one. The answers to a chunk are a file of
    its own in a hidden directory beside `out`, named by what they answer: an interrupted call goes on from
    there, and so does one after a faulty row was corrected. call: what decides the answers beside the run
    and its options; each(examples) sees every chunk. Returns the counts.
    """
    counts = Counter({"rows": 0})
    notes = run.task.unlabelled(path, counts)
    kept = Answers(out, f"{run.facts['finished']} {run.task.options} {call}")

    def chunks():
        while waiting := list(itertools.islice(notes, chunk)):
            counts["predicted"] += len(waiting)
            each(waiting)
            if kept.wants(waiting):
                yield kept.names[-1], waiting, encode_examples(run, waiting)

    with locked(out) if processes.is_first() else contextlib.nullcontext():
        with processes.first_before_others():
            kept.open()
        try:
            for name, examples, encoded in ahead(chunks()):
                kept.write(name, answer(examples, encoded))
        except processes.Ended:
            raise  # what it says is true of the answers too
        except BadInput as error:
            kept.look()
            if done := chunk * kept.finished:
                kept_for = f"the answers to {done} notes before it are kept for the next call"
                raise BadInput(f"{error}; {kept_for}") from None
            with contextlib.suppress(OSError):  # another process has begun
                kept.directory.rmdir()
            raise
        processes.wait_for_all()
        finish(kept, counts)
    return counts


class Answers:
    """The answers to chunks of notes, a file each, until they are joined.

    A file's name holds the chunk's number, a digest of its notes, and a digest of what is in the file.
    """

    def __init__(self, out, call):
        self.out = Path(out)
        self.directory = self.out.with_name(f".{self.out.name}.{digest(call):016x}.parts")
        self.names, self.found = [], {}  # chunks so far; {chunk: its file}

    @property
    def finished(self):
        """How many of the chunks so far have their answers."""
        return sum(name in self.found for name in self.names)

    def open(self):
        """Make the directory, or see what an interrupted call left in it; remove those of other calls."""
        digits = "[0-9a-f]" * 16  # no dot: those of p.csv are not p's
        for other in self.out.parent.glob(f".{glob.escape(self.out.name)}.{digits}.parts"):
            if other != self.directory:
                shutil.rmtree(other, ignore_errors=True)
        with writing(self.directory):
            self.directory.mkdir(mode=0o700, exist_ok=True)
        self.look()

    def look(self):
        """Find the chunks that are there whole."""
        for path in self.directory.glob("*.part"):
            name, _, content = path.stem.rpartition("-")
            if content == bytes_digest(path.read_bytes()):
                self.found[name] = path
            else:  # damaged
                path.unlink(missing_ok=True)

    def wants(self, examples):
        """Take the next chunk. Whether its answers are still to be made, and by this process."""
        rank, count = processes.world()
        self.names.append(f"{len(self.names):06}-{digest(*map(repr, examples)):016x}")
        return self.names[-1] not in self.found and len(self.names) % count == rank

    def write(self, name, content):
        """Keep a chunk's answers."""
        self.directory.mkdir(mode=0o700, exist_ok=True)  # a process that met a bad row may have removed it
        path = self.directory / f"{name}-{bytes_digest(content)}.part"
        with whole_file(path, private=True) as file:
            file.write(content)
        self.found[name] = path

    def join(self, header):
        """Write all answers in order into the file of predictions, whole; remove the directory."""
        if not processes.is_first():
            return
        if processes.world()[1] > 1:
            self.look()
        with whole_file(self.out, private=True) as file:
            file.write(header)
            for name in self.names:
                file.write(self.found[name].read_bytes())
        shutil.rmtree(self.directory)


def bytes_digest(content):
    """A digest of bytes, 16 hex digits."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def answer_bytes(task, examples, predictions):
    """A chunk's answers as they stand in the file."""
    if task.json_lines:
        rows = ({"row_id": e.row_id, **task.answer(e, p)} for e, p in zip(examples, predictions, strict=True))
        return "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    return csv_bytes([[e.row_id, *task.record(p)] for e, p in zip(examples, predictions, strict=True)])


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


def ids_path(out):
    """Where the row ids of vectors go."""
    return Path(out).with_suffix(".ids.csv")


def output_path(args, task):
    """Where the answers go. Raises BadInput for a directory, the notes themselves, or no permission."""
    if args.embeddings and (args.out or args.notes == "-" or not args.embeddings.endswith(".npy")):
        raise BadInput(
            "--embeddings: names an .npy file, takes the place of --out, and needs a file of notes"
        )
    flag = "--embeddings" if args.embeddings else "--out"
    out = args.embeddings or args.out or ("predictions.jsonl" if task.json_lines else "predictions.csv")
    for path in [Path(out), *([ids_path(out)] if args.embeddings else [])]:
        if path.is_dir():
            raise BadInput(f"{flag} {path}: is a directory; name a file")
        if path.exists() and Path(args.notes).exists() and path.samefile(args.notes):
            raise BadInput(f"{flag} {path}: is the file of notes itself; name another")
    writable_directory(Path(out).parent)
    return Path(out)


def build_prediction_parser():
    """The parser of predict.py."""
    parser = Parser(prog="predict.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("run", help="run directory, such as results/symptoms/lowrank")
    add("notes", help="CSV, .tsv, .jsonl, plain or .gz; of ner also a word per line; - = standard input")
    add("--out", default=None, help="file to write (predictions.csv, or predictions.jsonl for spans)")
    add(
        "--embeddings", metavar="FILE.npy", help="write [CLS] vectors, and row ids beside, instead of answers"
    )
    add(
        "--calibrated",
        action="store_true",
        help="probabilities after temperature scaling; the answers stay the same (off)",
    )
    add(
        "--engine",
        choices=engine.ENGINES,
        default="torch",
        help="what computes; auto times what is installed and takes the fastest that answers alike (torch)",
    )
    add(
        "--show-text",
        action="store_true",
        help="with -, print the words of each span beside its offsets (off)",
    )
    add(
        "--compile",
        action="store_true",
        help="predict through torch.compile, on CUDA; slow first batches (off)",
    )
    add_reading_flags(parser)
    return parser


def main(argv=None):
    """Parse, predict, write."""
    args = build_prediction_parser().parse_args(argv)
    same_bits(args.deterministic)
    cpu.keep_memory()
    with processes.joined(args.device):
        predict(args)


def predict(args):
    """Load the run; answer one note or a file of them."""
    run = checkpoint.load(args.run)
    device = pick_device("cpu" if compress.cpu_only(run.compression) else args.device, args.compile)
    take_columns(run.task.options, args)
    if args.calibrated and not run.task.temperature:
        raise BadInput(
            f"--calibrated: {args.run} has no temperature, as no run of mlm or with --crf, nor an old one"
        )
    run.task.calibrated = args.calibrated
    text = read_note() if args.notes == "-" and not args.embeddings else None
    out = None if text else output_path(args, run.task)
    say = functools.partial(print, file=sys.stderr if text else sys.stdout)  # standard output has the answer
    asked = allowed_engine(args, device, say)
    notes = [] if asked == "torch" else first_examples(run.task, args.notes, text)
    with engine.chosen(asked, run, args.run, notes, args.batch_tokens, say) as form:
        torch_itself = form == "torch"
        onednn = processes.agreed(torch_itself and cpu.onednn_pays(run.model))
        with reading(run.model.to(device), run.task, frozen=torch_itself, onednn=onednn):
            if args.compile:
                run = run._replace(model=torch.compile(run.model, dynamic=True))  # one graph for all lengths
            if text:
                print(json.dumps(predict_note(run, text, args.show_text)))
                return
            products = f"{form} {version_of(form)}, oneDNN {onednn}" + ", calibrated" * args.calibrated
            answer = embed_file if args.embeddings else predict_file
            counts = answer(run, args.notes, out, args.batch_tokens, products=products)
            print(", ".join(f"{count} {what}" for what, count in counts.items()), f"-> {out}")


def allowed_engine(args, device, say):
    """--engine, or torch where only torch will do; raises BadInput if another was named there."""
    piped = args.notes != "-" and Path(args.notes).exists() and not Path(args.notes).is_file()
    torch_alone = {
        "--embeddings are torch's alone": args.embeddings,
        "--deterministic chooses nothing by timing": args.deterministic,
        f"other engines are for the CPU, not {device.type}": device.type != "cpu",
        "the first notes are read twice, so they must be a file": piped,
    }
    reason = next((reason for reason, so in torch_alone.items() if so), None)
    if args.engine == "torch" or reason is None:
        return args.engine
    if args.engine != "auto":
        raise BadInput(f"--engine {args.engine}: {reason}; leave it out")
    say(f"engine: torch; {reason}")
    return "torch"


def first_examples(task, path, text):
    """The first notes of a file, or the one note, on which an engine is chosen."""
    return [task.example("-", text)] if text else engine.notes_to_time(task, path)


if __name__ == "__main__":
    run_script(main)
