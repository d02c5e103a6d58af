"""What everything costs, in one run: python benchmark.py; or what finished runs cost: python benchmark.py results/symptoms

Without a directory, these parts, each in a table of benchmark.md and a CSV under --out (bench/ has a file for each but accuracy):
    shape     BERT-base of random weights: every technique, chains, ONNX Runtime; bytes, milliseconds, notes/s
    accuracy  what strengths cost and save on real notes: sweep.py with --sweep's arguments (left out without; CSV and plot in its --out)
    training  notes/s beside the Hugging Face Trainer, on --training's notes (train.py's arguments; synthetic notes without)
    volume    predict.py over 20,000 and 200,000 notes: notes/s end to end, peak memory
    gpu       BERT-base in bf16, where there is a GPU

With directories, their runs are timed in one process, in rounds that alternate their order, so that a machine that slows down
slows them all. Input is random token ids at full length: no note is needed, and time does not depend on which words they are.
"""

import shlex
from importlib.util import find_spec
from pathlib import Path

import torch

import sweep
from bench import gpu, shape, training, volume
from bench.shape import measure, multiply_adds
from cli import BadInput, Parser, number, run_script
from fast import cpu
from files import writable_directory, write_csv, write_whole
from run import arguments, checkpoint
from run.inference import pick_device
from run.machine import this_machine
from run.results import find_runs, markdown_table, shown

COLUMNS = ("technique", "bytes", "parameters", "nonzero", "macs", "p50_ms", "p95_ms", "notes_per_s",
           "length", "batch", "rounds", "device", "threads", "cpu", "torch", "finished")  # fmt: skip
PARTS = ("shape", "accuracy", "training", "volume", "gpu")


def run_parts(parts, args):
    """Run the named parts, print each table as it comes, and write CSVs and benchmark.md into args.out."""
    calls, sweeps = ([shlex.split(words) for words in given] for given in (args.training or [""], args.sweep or []))
    for words in calls:
        training.arguments.parse(words)  # a slip there, or in --run, is said before the first part
    for words in sweeps:
        sweep.plan_sweep(words)
    if args.run and not checkpoint.is_finished(args.run):
        raise BadInput(f"--run {args.run}: no finished run; train one, e.g. python train.py")
    out = writable_directory(args.out or "results/benchmark")
    machine = this_machine()
    where = f"{machine['threads']} threads, {machine['cpu']}, GPU {machine['gpu'] or 'none'}, torch {machine['torch']}"
    lines = [f"# What everything costs: {where}, commit {machine['commit']}", ""]
    for part in parts:
        if part == "accuracy":
            for words in sweeps:
                lines.append(f"## accuracy, {(sweep.main(words) / 'sweep.md').read_text().removeprefix('# ')}")
                write_whole(out / "benchmark.md", "\n".join(lines))
            continue
        for at, words in enumerate(calls if part == "training" else calls[:1], 1):
            table, module, conditions = run_part(part, words, args, out)
            text = [*markdown_table(*module.as_markdown(table)), ""]
            lines += [f"## {part}", "", conditions, "", *text]
            print("\n".join(text), flush=True)
            write_csv(
                out / f"{part}{f'-{at}' if at > 1 else ''}.csv", list(table[0]), [[row.get(key) for key in table[0]] for row in table]
            )
            write_whole(out / "benchmark.md", "\n".join(lines))
    print(f"-> {out}/benchmark.md")


def run_part(part, words, args, out):
    """(rows, module, a line on the conditions) of one part."""
    if part == "shape":
        conditions = f"Medians of {args.rounds} alternating rounds; int8 rows compute attention in bf16 where the CPU multiplies it, as they do in use."
        return shape.run(args.length or 256, args.batch_size, args.rounds), shape, conditions
    if part == "training":
        rounds = max(3, args.rounds // 2)
        told = " ".join(map(shown, words)) or "the demonstration's synthetic notes and tiny model"
        return training.run(words, args.train_tokens, rounds=rounds), training, f"Medians of {rounds} alternating rounds; {told}."
    if part == "volume":
        told = shown(str(args.run)) if args.run else "a run of the demonstration's tiny model"
        return volume.measure(args.run or demo_run(out)), volume, f"One call a size, on the CPU; {told}."
    return gpu.run(), gpu, "Medians of 20 steps."


def demo_run(out):
    """A run of the demonstration, trained for one epoch if it is not there."""
    train = training.train
    return train.run(arguments.parse(["--out", str(out / "demo-run"), "--epochs", "1", "--max-length", "64"]))


def main(argv=None):
    """Benchmark runs; of a whole results directory, or with --out, write benchmark.csv."""
    parser = Parser(prog="benchmark.py", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help="run directories, or a results directory with several (none: the parts)")
    parser.add_argument("--out", default=None, help="directory to write (the results directory; results/benchmark for the parts)")
    parser.add_argument("--parts", default=None, help=f"of {','.join(PARTS)}, comma-separated (all that the machine allows)")
    parser.add_argument("--training", action="append", help="arguments of train.py that name notes and model; may be given twice")
    parser.add_argument("--sweep", action="append", help="arguments of sweep.py for the part accuracy; may be given several times")
    parser.add_argument(
        "--train-tokens", type=number(int, 100, 10**8), default=40_000, help="tokens of an epoch in the part training (40,000)"
    )
    parser.add_argument("--run", default=None, help="run directory for the part volume (one of the demonstration)")
    parser.add_argument("--length", type=number(int, 4, 10**6), default=None, help="tokens a note (what the runs were trained with)")
    parser.add_argument("--batch-size", type=number(int, 1, 10**5), default=16, help="notes a batch for the throughput (16)")
    parser.add_argument("--rounds", type=number(int, 2, 10**4), default=7, help="full batches a run; 10 single notes go with each (7)")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="int8 runs are always on cpu (cpu)")
    args = parser.parse_args(argv)

    cpu.keep_memory()
    if not args.runs:
        possible = {"gpu": torch.cuda.is_available(), "accuracy": bool(args.sweep)}
        parts = args.parts.split(",") if args.parts else [part for part in PARTS if possible.get(part, True)]
        if not args.parts and not find_spec("accelerate"):
            parts.remove("training")
            print("training is left out: the Hugging Face Trainer needs pip install -r requirements-peers.txt")
        if (args.length or 256) > 512:
            raise BadInput(f"--length {args.length}: BERT-base reads at most 512 tokens")
        if unknown := [part for part in parts if part not in PARTS]:
            raise BadInput(f"--parts: no part {unknown[0]!r}; there are {', '.join(PARTS)}")
        if "accuracy" in parts and not args.sweep:
            raise BadInput('--parts accuracy: name notes and a model, as in --sweep "--task trials --data FILE --model DIR --out DIR"')
        if "gpu" in parts and not torch.cuda.is_available():
            raise BadInput("--parts gpu: this machine or this build of torch has no GPU")
        return run_parts(parts, args)
    paths = find_runs(args.runs)
    out = args.out or (args.runs[0] if len(args.runs) == 1 and not checkpoint.is_finished(args.runs[0]) else None)
    if out:
        writable_directory(out)
    names = [path.name if path.parent == paths[0].parent else str(path) for path in paths]
    runs = dict(zip(names, map(checkpoint.load, paths)))
    pick_device(args.device)
    length = args.length or min(run.facts["arguments"]["max_length"] for run in runs.values())
    longest = min(getattr(run.model.config, "max_position_embeddings", None) or 10**6 for run in runs.values())
    if length > longest:
        raise BadInput(f"--length {length}: a model among them reads at most {longest} tokens")
    on_cpu = {name: any(f["technique"] == "quantization" for f in run.compression) for name, run in runs.items()}
    devices = {name: "cpu" if on_cpu[name] else args.device for name in runs}
    models = {name: cpu.for_inference(run.model.to(devices[name]), run.task) for name, run in runs.items()}
    macs = {name: multiply_adds(model, length) for name, model in models.items()}
    calls = {name: (model, model.config.vocab_size, devices[name]) for name, model in models.items()}
    timed = measure(calls, length, args.batch_size, args.rounds)

    machine = this_machine()
    table = []
    print(f"{length} tokens, batch {args.batch_size}, {args.rounds} rounds, {machine['threads']} threads, {machine['cpu']}")
    for name, path in zip(names, paths):
        row = {
            "technique": name, **checkpoint.sizes(path), "macs": macs[name], **timed[name], "length": length,
            "batch": args.batch_size, "rounds": args.rounds, "device": devices[name], **machine, "finished": runs[name].facts["finished"],
        }  # fmt: skip
        table.append([row[column] for column in COLUMNS])
        print(f"{name}: {row['bytes'] / 1e6:.1f} MB, {row['parameters']:,} parameters, {row['nonzero']:,} nonzero, "
              f"{macs[name] / 1e6:,.0f} M multiply-adds a note, batch 1 p50 {row['p50_ms']:.1f} ms p95 {row['p95_ms']:.1f} ms, "
              f"{row['notes_per_s']:.1f} notes/s ({row['notes_per_s'] / timed[names[0]]['notes_per_s']:.2f} x {names[0]})")  # fmt: skip
    if out:
        write_csv(Path(out) / "benchmark.csv", COLUMNS, table)


if __name__ == "__main__":
    run_script(main)
