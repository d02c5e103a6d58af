"""What everything costs, in one run: python benchmark.py; or what finished runs cost: python benchmark.py results/symptoms

Without a directory, four parts, each in a table of benchmark.md and a CSV under --out (bench/ has a file for each):
    shape     BERT-base of random weights: every technique, chains, ONNX Runtime; bytes, milliseconds, notes/s
    training  notes/s beside the Hugging Face Trainer, on --training's notes (train.py's arguments; synthetic notes without)
    volume    predict.py over 20,000 and 200,000 notes: notes/s end to end, peak memory
    gpu       BERT-base in bf16, where there is a GPU
What strengths cost in accuracy on real notes is sweep.py's table.

With directories, their runs are timed in one process, in rounds that alternate their order, so that a machine that slows down
slows them all. Input is random token ids at full length: no note is needed, and time does not depend on which words they are.
"""

from pathlib import Path

import torch

import checkpoint
from bench import gpu, shape, training, volume
from bench.shape import measure, multiply_adds
from compress import cpu
from data import BadInput, Parser, number, run_script, write_csv, write_whole, writable_directory
from report import find_runs, markdown_table, shown

COLUMNS = ("technique", "bytes", "parameters", "nonzero", "macs", "p50_ms", "p95_ms", "notes_per_s",
           "length", "batch", "rounds", "device", "threads", "cpu", "torch", "finished")  # fmt: skip


PARTS = ("shape", "training", "volume", "gpu")


def run_parts(parts, args):
    """Run the named parts, print each table as it comes, and write CSVs and benchmark.md into args.out."""
    out = writable_directory(args.out or "results/benchmark")
    machine = checkpoint.machine()
    where = f"{machine['threads']} threads, {machine['cpu']}, torch {machine['torch']}, commit {machine['commit']}"
    lines = [f"# What everything costs: {where}", ""]
    for part in parts:
        for words in args.training or [""] if part == "training" else [""]:
            table, module = run_part(part, words, args, out)
            text = [*markdown_table(*module.as_markdown(table)), ""]
            note = f"{args.rounds} alternating rounds, medians" + (f"; {' '.join(map(shown, words.split()))}" if words else "")
            lines += [f"## {part}", "", f"{note}.", "", *text]
            print("\n".join(text), flush=True)
            number_of = f"-{args.training.index(words) + 1}" if words and len(args.training) > 1 else ""
            write_csv(out / f"{part}{number_of}.csv", list(table[0]), [[row.get(key) for key in table[0]] for row in table])
            write_whole(out / "benchmark.md", "\n".join(lines))
    print(f"-> {out}/benchmark.md")


def run_part(part, words, args, out):
    """(rows, module) of one part."""
    if part == "shape":
        return shape.run(args.length or 256, args.batch_size, args.rounds), shape
    if part == "training":
        return training.run(words.split(), args.train_tokens, rounds=max(2, args.rounds // 2)), training
    if part == "volume":
        return volume.measure(args.run or demo_run(out)), volume
    return gpu.run(), gpu


def demo_run(out):
    """A run of the demonstration, trained for one epoch if it is not there."""
    import train  # a script itself; only this needs it

    return train.run(train.parse(["--out", str(out / "demo-run"), "--epochs", "1", "--max-length", "64"]))


def main(argv=None):
    """Benchmark runs; of a whole results directory, or with --out, write benchmark.csv."""
    parser = Parser(prog="benchmark.py", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help="run directories, or a results directory with several (none: the four parts)")
    parser.add_argument("--out", default=None, help="directory to write (the results directory; results/benchmark for the parts)")
    parser.add_argument("--parts", default=None, help=f"of {','.join(PARTS)}, comma-separated (all that the machine allows)")
    parser.add_argument("--training", action="append", help="arguments of train.py that name notes and model; may be given twice")
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
        parts = args.parts.split(",") if args.parts else PARTS if torch.cuda.is_available() else PARTS[:3]
        if unknown := [part for part in parts if part not in PARTS]:
            raise BadInput(f"--parts: no part {unknown[0]!r}; there are {', '.join(PARTS)}")
        if "gpu" in parts and not torch.cuda.is_available():
            raise BadInput("--parts gpu: this machine or this build of torch has no GPU")
        return run_parts(parts, args)
    paths = find_runs(args.runs)
    out = args.out or (args.runs[0] if len(args.runs) == 1 and not checkpoint.is_finished(args.runs[0]) else None)
    if out:
        writable_directory(out)
    names = [path.name if path.parent == paths[0].parent else str(path) for path in paths]
    runs = dict(zip(names, map(checkpoint.load, paths)))
    length = args.length or min(run.facts["arguments"]["max_length"] for run in runs.values())
    on_cpu = {name: any(f["technique"] == "quantization" for f in run.compression) for name, run in runs.items()}
    devices = {name: "cpu" if on_cpu[name] else args.device for name in runs}
    macs = {name: multiply_adds(run.model, length) for name, run in runs.items()}
    timed = measure(
        {n: (cpu.for_inference(run.model.to(devices[n])), run.model.config.vocab_size, devices[n]) for n, run in runs.items()},
        length,
        args.batch_size,
        args.rounds,
    )

    machine = checkpoint.machine()
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
