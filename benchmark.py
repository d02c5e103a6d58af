"""Run directories -> bytes, parameters, nonzeros, multiply-adds, latency, throughput: python benchmark.py results/symptoms

All runs are timed in one process, in rounds that alternate their order, so that a machine that slows down slows them all.
Input is random token ids at full length: no note is needed, and time does not depend on which words they are.
"""

import statistics
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import checkpoint
from compress import cpu
from compress.quantization import is_int8
from data import BadInput, Parser, number, run_script, write_csv, writable_directory

COLUMNS = ("technique", "bytes", "parameters", "nonzero", "macs", "p50_ms", "p95_ms", "notes_per_s",
           "length", "batch", "rounds", "device", "threads", "cpu", "torch", "finished")  # fmt: skip


def find_runs(paths):
    """Finished run directories among the paths and one level below them, base first, the others as they come."""
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise BadInput(f"{path}: no such directory")
        inside = [path] if checkpoint.is_finished(path) else sorted(p for p in path.iterdir() if checkpoint.is_finished(p))
        found += [run for run in inside if run not in found and not run.name.startswith(".")]
    if not found:
        raise BadInput(f"{', '.join(map(str, paths))}: no finished run in there; train one with python train.py")
    return sorted(found, key=lambda run: run.name != "base")


def random_notes(model, notes, length, device):
    """Model inputs of random token ids, (notes, length), nothing padded."""
    ids = torch.randint(0, model.config.vocab_size, (notes, length), generator=torch.Generator().manual_seed(0)).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.inference_mode()
def multiply_adds(model, length):
    """Multiply-adds of one note of `length` tokens: matrix products and attention, zeros counted like other weights."""
    int8 = []
    hooks = [
        module.register_forward_hook(lambda m, x, y: int8.append(x[0].numel() * m.out_features))
        for module in model.modules()
        if is_int8(module)
    ]
    # the plain attention kernel, because the counter sees its products and not the fused CPU kernel's
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**random_notes(model, 1, length, next((p.device for p in model.parameters()), "cpu")))
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() // 2 + sum(int8)


@torch.inference_mode()
def seconds(model, inputs):
    """Wall seconds of one forward pass, the device's queue emptied."""
    began = time.perf_counter()
    model(**inputs)
    if (device := inputs["input_ids"].device.type) != "cpu":
        getattr(torch, device).synchronize()
    return time.perf_counter() - began


def measure(models, length, batch, rounds, singles=10):
    """Time models {name: (model, device)} in alternating rounds. Returns {name: {p50_ms, p95_ms, notes_per_s}}.

    p50 and p95 are of rounds * singles passes at batch 1; notes/s is batch over the median of `rounds` full batches. One
    pass of each kind goes before, uncounted.
    """
    inputs = {n: [random_notes(m, size, length, device) for size in (1, batch)] for n, (m, device) in models.items()}
    single, full = {name: [] for name in models}, {name: [] for name in models}
    for name, (model, _) in models.items():
        for example in inputs[name]:
            seconds(model, example)
    for turn in tqdm(range(rounds), desc="timing", unit="round", leave=False, disable=None):
        for name in list(models)[:: 1 if turn % 2 == 0 else -1]:
            model, (one, many) = models[name][0], inputs[name]
            single[name] += [1e3 * seconds(model, one) for _ in range(singles)]
            full[name].append(seconds(model, many))
    return {
        name: {
            "p50_ms": statistics.median(single[name]),
            "p95_ms": statistics.quantiles(single[name], n=20, method="inclusive")[-1],
            "notes_per_s": batch / statistics.median(full[name]),
        }
        for name in models
    }


def main(argv=None):
    """Benchmark runs; of a whole results directory, or with --out, write benchmark.csv."""
    parser = Parser(prog="benchmark.py", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="run directories, or a results directory with several")
    parser.add_argument("--out", default=None, help="directory of benchmark.csv (the results directory; for single runs none is written)")
    parser.add_argument("--length", type=number(int, 4, 10**6), default=None, help="tokens a note (what the runs were trained with)")
    parser.add_argument("--batch-size", type=number(int, 1, 10**5), default=16, help="notes a batch for the throughput (16)")
    parser.add_argument("--rounds", type=number(int, 2, 10**4), default=7, help="full batches a run; 10 single notes go with each (7)")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="int8 runs are always on cpu (cpu)")
    args = parser.parse_args(argv)

    cpu.keep_memory()
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
        {n: (cpu.for_inference(run.model.to(devices[n])), devices[n]) for n, run in runs.items()}, length, args.batch_size, args.rounds
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
