"""What everything costs: python benchmark.py; what finished runs cost: python benchmark.py results/symptoms

Without a directory it measures these parts (bench/ has a file for each):
    shape     BERT-base, random weights: every technique, chains, other engines; bytes, milliseconds, notes/s
    training  notes/s beside the Hugging Face Trainer, on the notes of --training
    memory    BERT-base on those notes: time and memory of LoRA beside training all weights
    processes train.py on those notes in one process and in two: tokens/s
    volume    predict.py over notes by the hundred thousand (--notes): notes/s end to end, peak memory
    reading   notes as in MIMIC, from CSV to labels (beside pandas) and to the first batch: notes/s, memory
    serving   serve.py at 1, 8 and 64 clients beside FastAPI around the transformers pipeline
    gpu       BERT-base in bf16, where there is a GPU
Each part writes a CSV into --out. benchmark.md has all tables, benchmark.json the machine, the conditions
and the arguments. What techniques cost in accuracy: see sweep.py.

With directories it times their runs in one process, in alternating order, so that a machine that slows
down slows them all; a results directory gets benchmark.csv, and the card of each run its latency. The input
is random token ids at full length: it needs no notes, and time does not depend on the words.
"""

import argparse
import contextlib
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

import compress
import train
from bench import gpu, memory, processes, serving, shape, training, volume
from cli import BadInput, Parser, number, run_script
from fast import cpu
from files import writable_directory, write_csv, write_json, write_whole
from run import arguments, baseline, checkpoint, engine, forms
from run.card import write_latency
from run.inference import pick_device
from run.machine import this_machine
from run.onnx_file import INSTALL
from run.results import find_runs, markdown_table, shown
from run.untrusted import read_run

OTHERS = tuple(name for name in engine.ENGINES if name != "torch")
COLUMNS = ("technique", "bytes", "parameters", "nonzero", "macs", "p50_ms", "p95_ms", "notes_per_s",
           "length", "batch", "rounds", "device", "threads", "cpu", "torch", "finished")  # fmt: skip


# --- the parts ------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """What a part measured: rows, a dict each; their table (header, cells); the conditions as text."""

    rows: list
    table: tuple
    conditions: str


def shape_part(args, words, out):
    """Every technique on BERT-base's shape."""
    rows = shape.shape_rows(args.length or 256, args.batch_size, args.rounds)
    conditions = (
        f"Medians of {args.rounds} alternating rounds; int8 rows compute attention in bf16 where the CPU "
        "multiplies it, as they do in use."
    )
    return Measured(rows, shape.shape_table(rows), conditions)


def training_part(args, words, out):
    """Training beside the Hugging Face Trainer. words: train.py's arguments."""
    rounds = max(3, args.rounds // 2)
    rows = training.training_rows(words, args.train_tokens, rounds=rounds)
    notes = " ".join(map(shown, words)) or "the demonstration's synthetic notes and tiny model"
    return Measured(rows, training.training_table(rows), f"Medians of {rounds} alternating rounds; {notes}.")


def memory_part(args, words, out):
    """LoRA beside training all weights. words: train.py's arguments."""
    rounds = max(3, args.rounds // 2)
    rows = memory.memory_rows(words, args.train_tokens, rounds)
    notes = " ".join(map(shown, words)) or "the demonstration's synthetic notes"
    return Measured(rows, memory.memory_table(rows), f"Medians of {rounds} alternating rounds; {notes}.")


def processes_part(args, words, out):
    """One process beside two. words: train.py's arguments."""
    rounds = max(3, args.rounds // 2)
    rows = processes.process_rows(words, rounds)
    notes = " ".join(map(shown, words)) or "the demonstration's synthetic notes"
    return Measured(rows, processes.process_table(rows), f"Medians of {rounds} alternating rounds; {notes}.")


def volume_part(args, words, out):
    """predict.py over many notes, by the run of --run, or one of the demonstration made for it."""
    rows = volume.volume_rows(run_to_use(args, out), args.notes)
    return Measured(rows, volume.volume_table(rows), f"One call per size, on the CPU; {shown_run(args)}.")


def reading_part(args, words, out):
    """Notes as many as MIMIC's from CSV to labels and to token ids, by the tokenizer of --run."""
    rows = volume.reading_rows(run_to_use(args, out), args.notes, args.rounds)
    conditions = f"Best of {args.rounds} by turns for labels; one call to the first batch; {shown_run(args)}."
    return Measured(rows, volume.reading_table(rows), conditions)


def serving_part(args, words, out):
    """serve.py under load: the run of --run, that of --chain, and a plain server of the first."""
    rounds = max(3, args.rounds // 2)
    run = run_to_use(args, out)
    rows = serving.serving_rows(run, args.chain, args.seconds, rounds, engine=args.engine)
    told = f"Medians of {rounds} alternating rounds of {args.seconds} s, on the loopback; {shown_run(args)}."
    return Measured(rows, serving.serving_table(rows), told)


def run_to_use(args, out):
    """The run of --run, or one of the demonstration, made for it."""
    flags = ["--out", str(out / "demo-run"), "--epochs", "1", "--max-length", "64"]
    return args.run or train.run_all(arguments.parse_arguments(flags))


def shown_run(args):
    """The run in words, as a published file may show it."""
    return shown(args.run) if args.run else "a run of the demonstration's tiny model"


def gpu_part(args, words, out):
    """BERT-base on a GPU."""
    rows = gpu.gpu_rows(length=args.length or 256, rounds=args.rounds)
    conditions = (
        f"Medians of {args.rounds} rounds of 5 steps; a bf16 product of 8192 x 8192 x 8192 reaches "
        f"{rows[0]['peak_flops_per_s'] / 1e12:.0f} TFLOP/s."
    )
    return Measured(rows, gpu.gpu_table(rows), conditions)


PARTS = {
    "shape": shape_part, "training": training_part, "memory": memory_part,
    "processes": processes_part, "volume": volume_part, "reading": reading_part, "serving": serving_part,
    "gpu": gpu_part,
}  # fmt: skip
TRAIN = ("training", "memory", "processes")


def possible_parts():
    """Names of the parts that this machine allows; says how to get the one that needs another package."""
    parts = [part for part in PARTS if part != "gpu" or torch.cuda.is_available()]
    if not find_spec("accelerate"):
        parts.remove("training")
        print("training is left out: the Hugging Face Trainer needs pip install -r requirements-peers.lock")
    if not find_spec("fastapi"):
        parts.remove("serving")
        print("serving is left out: it needs pip install -r requirements-serve.lock")
    return parts


def chosen_parts(args):
    """Names of the parts to measure: those of --parts, else all that this machine allows."""
    if args.parts is None:
        return possible_parts()
    parts = args.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        raise BadInput(f"--parts: no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if "gpu" in parts and not torch.cuda.is_available():
        raise BadInput("--parts gpu: this machine or this build of torch has no GPU")
    return parts


def check_parts(args):
    """Raises BadInput, before the first part begins, for what a later part would refuse."""
    if args.length and args.length > 512:
        raise BadInput(f"--length {args.length}: BERT-base reads at most 512 tokens")
    for words in args.training or []:
        arguments.parse_arguments(words)
    for flag, run in (("--run", args.run), ("--chain", args.chain)):
        if run and not checkpoint.is_finished(run):
            raise BadInput(f"{flag} {run}: no finished run; train one, e.g. python train.py")
    if args.engine not in (None, "auto") and not forms.installed(args.engine):
        raise BadInput(f"--engine {args.engine}: is not installed; {INSTALL}")


def planned_calls(parts, trainings):
    """[(name of the CSV, part, train.py's arguments)]; those that train come once for each --training."""
    calls = []
    for part in parts:
        for count, words in enumerate(trainings if part in TRAIN else [[]], 1):
            calls.append((part if count == 1 else f"{part}-{count}", part, words))
    return calls


def shown_arguments(args, parts):
    """The flags that the parts read, defaults included, as a published file may show them."""
    flags = {"--parts": ",".join(parts), "--length": args.length or 256, "--batch-size": args.batch_size,
             "--rounds": args.rounds, "--train-tokens": args.train_tokens}  # fmt: skip
    flags |= {"--run": shown(args.run)} if args.run else {}
    flags |= {"--notes": ",".join(map(str, args.notes))} if {"reading", "volume"} & set(parts) else {}
    told = [f"{flag}={value}" for flag, value in flags.items()]
    if "serving" in parts:
        told += [f"--chain={shown(args.chain)}"] if args.chain else []
        told += [f"--engine={args.engine}"] if args.engine else []
        told += [f"--seconds={args.seconds}"]
    return told + [f"--training={' '.join(map(shown, words))}" for words in args.training or []]


def measure_parts(args):
    """Measure the parts, print each table, and write the CSVs, benchmark.md and benchmark.json."""
    parts = chosen_parts(args)
    check_parts(args)
    out = writable_directory(args.out or "results/benchmark")
    machine, conditions = this_machine(), {}
    cpu_and_gpu = f"{machine['threads']} threads, {machine['cpu']}, GPU {machine['gpu'] or 'none'}"
    versions = f"torch {machine['torch']}, commit {machine['commit']}"
    lines = [f"# What everything costs: {cpu_and_gpu}, {versions}", ""]
    told = shown_arguments(args, parts)
    for name, part, words in planned_calls(parts, args.training or [[]]):
        measured = PARTS[part](args, words, out)
        table = [*markdown_table(*measured.table), ""]
        print("\n".join(table), flush=True)

        conditions[name] = measured.conditions
        lines += [f"## {name}", "", measured.conditions, "", *table]
        header = list(measured.rows[0])
        write_csv(out / f"{name}.csv", header, [[row.get(key) for key in header] for row in measured.rows])
        write_whole(out / "benchmark.md", "\n".join(lines))
        write_json(out / "benchmark.json", {"machine": machine, "conditions": conditions, "arguments": told})
    print(f"-> {out}/benchmark.md")


# --- finished runs --------------------------------------------------------------------------------


def note_length(args, runs):
    """Tokens per note for all runs: --length, else the least that any of them was trained with.

    Raises BadInput if a model cannot read so many.
    """
    models = [run for run in runs.values() if isinstance(run, checkpoint.Run)]
    length = args.length or min([run.facts["arguments"]["max_length"] for run in models], default=256)
    positions = [getattr(run.model.config, "max_position_embeddings", None) or 10**6 for run in models]
    longest = min(positions, default=10**6)
    if length > longest:
        raise BadInput(f"--length {length}: a model among them reads at most {longest} tokens")
    return length


def measure_runs(runs, args, length):
    """{name: what its row needs of COLUMNS: multiply-adds, times, conditions} of {name: Run, or baseline}.

    A baseline reads texts of so many random words: from text to answer, on the CPU.
    """
    facts, calls = {}, {}
    with contextlib.ExitStack() as opened:
        for name, run in runs.items():
            if not isinstance(run, checkpoint.Run):
                calls[name] = (baseline.reader(run, length, args.batch_size), 100, "cpu")
                facts[name] = {"macs": None, "device": "cpu"}
                continue
            device = "cpu" if compress.cpu_only(run.compression) else args.device
            model = opened.enter_context(shape.ready(run.model.to(device), run.task))
            calls[name] = (shape.without_mask(model), model.config.vocab_size, device)
            facts[name] = {"macs": shape.multiply_adds(model, length), "device": device}
        timed = shape.time_models(calls, length, args.batch_size, args.rounds)
    same = {"length": length, "batch": args.batch_size, "rounds": args.rounds}
    return {name: {**facts[name], **timed[name], **same} for name in runs}


def table_place(args):
    """The directory for benchmark.csv: --out, else the one results directory that was given, else None."""
    whole = len(args.runs) == 1 and not checkpoint.is_finished(args.runs[0])
    return args.out or (args.runs[0] if whole else None)


def time_runs(args):
    """Time finished runs, print a line for each, and write benchmark.csv if there is a place for it."""
    paths = find_runs(args.runs)
    if out := table_place(args):
        writable_directory(out)
    names = [path.name if path.parent == paths[0].parent else str(path) for path in paths]
    runs = {
        name: (baseline.load_baseline if baseline.is_baseline(path) else checkpoint.load)(path)
        for name, path in zip(names, paths, strict=True)
    }
    pick_device(args.device)
    length, machine = note_length(args, runs), this_machine()
    measured = measure_runs(runs, args, length)

    print(
        f"{length} tokens, batch {args.batch_size}, {args.rounds} rounds, "
        f"{machine['threads']} threads, {machine['cpu']}"
    )
    rows = []
    for name, path in zip(names, paths, strict=True):
        facts = read_run(path, "finished", "sizes.bytes", "sizes.parameters", "sizes.nonzero")
        row = {"technique": name, **facts["sizes"], **measured[name], **machine}
        row["finished"] = facts["finished"]
        rows.append(row)
        words = not isinstance(runs[name], checkpoint.Run)
        write_latency(path, row, "words, from text to answer," if words else "tokens")
        print(run_line(row, rows[0]))
    if out:
        write_csv(Path(out) / "benchmark.csv", COLUMNS, [[row[column] for column in COLUMNS] for row in rows])


def run_line(row, first):
    """What a timed run costs, in one line, its speed beside that of the first run."""
    return (
        f"{row['technique']}: {row['bytes'] / 1e6:.1f} MB, "
        f"{row['parameters']:,} parameters, {row['nonzero']:,} nonzero, "
        + (f"{row['macs'] / 1e6:,.0f} M multiply-adds per note, " if row["macs"] else "")
        + f"batch 1 p50 {row['p50_ms']:.1f} ms p95 {row['p95_ms']:.1f} ms, "
        f"{row['notes_per_s']:.1f} notes/s "
        f"({row['notes_per_s'] / first['notes_per_s']:.2f} x {first['technique']})"
    )


# --- the command line -----------------------------------------------------------------------------


def split_words(text):
    """An argparse type: the words of a command line."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be read as arguments: {error}") from None


def benchmark_arguments(argv):
    """Parsed arguments; --training as a list of words for each time it is given."""
    parser = Parser(prog="benchmark.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", nargs="*", help="run directories, or a results directory with several (none: the parts)")
    add("--out", help="directory to write (results/benchmark; for runs, the results directory)")
    add("--parts", help=f"parts to measure, comma-separated: {','.join(PARTS)} (all that the machine allows)")
    add(
        "--training",
        action="append",
        type=split_words,
        help="train.py's arguments that name notes and model; can be repeated (the demonstration)",
    )
    add(
        "--train-tokens",
        type=number(int, 100, 10**8),
        default=40_000,
        help="tokens per epoch in the part training (40000)",
    )
    add("--run", help="run directory for volume, reading and serving (a run of the demonstration)")
    add("--chain", help="further run directory for the part serving (none)")
    add("--engine", choices=OTHERS, help="--engine of one more server of --run, part serving (none)")
    add("--seconds", type=number(int, 1, 3600), default=10, help="of a round of the part serving (10)")
    add(
        "--notes",
        type=lambda text: [number(int, 1, 10**8)(each) for each in text.split(",")],
        default=[50_000, 200_000],
        help="how many notes the parts reading and volume read, comma-separated (50000,200000)",
    )
    add(
        "--length",
        type=number(int, 4, 10**6),
        help="tokens per note (256; for runs, what they were trained with)",
    )
    add(
        "--batch-size", type=number(int, 1, 10**5), default=16, help="notes per batch for the throughput (16)"
    )
    add(
        "--rounds",
        type=number(int, 2, 10**4),
        default=7,
        help="full batches per model; 10 single notes go with each (7)",
    )
    add(
        "--device",
        choices=("cpu", "cuda", "mps"),
        default="cpu",
        help="where runs are timed; int8 runs always on cpu (cpu)",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Time finished runs if there are any, else measure the parts."""
    args = benchmark_arguments(argv)
    cpu.keep_memory()
    if args.runs:
        time_runs(args)
    else:
        measure_parts(args)


if __name__ == "__main__":
    run_script(main)
