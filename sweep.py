"""A grid of techniques and strengths, every seed, then what each saves and costs: python sweep.py --task trials --data FILE --model DIR

Arguments are those of train.py, for every run, and --seeds 1,2,3 and --grid FILE. Runs go to OUT/seedN/NAME; finished ones
are kept, so an interrupted sweep goes on where it was. At the end the runs of the first seed are timed on the validation
notes themselves, in rotating order, and sweep.csv, sweep.md and sweep.png say which are on the Pareto front: no other run is at
least as good and cheaper. The front is drawn by validation scores; test scores stand beside them.
"""

import statistics
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import LogLocator, NullFormatter
from tqdm import tqdm

import files
import train
from cli import BadInput, Parser, number, run_script
from data import collate
from fast import cpu
from files import writable_directory, write_csv, write_json, write_whole
from run import arguments, checkpoint
from run.inference import predict_rows
from run.machine import this_machine
from run.plots import save_figure
from run.results import markdown_table, shown
from tasks import demo

# What train.py is told for each run, beside the common arguments; {base} is the seed's base run, {runs} the directory of its
# runs, {1x} the common number of epochs, {2x} twice as many, {half} half. --grid takes a JSON file of the same form.
GRID = {
    "base": "--technique base",
    "base twice": "--technique base --start {base}",  # what longer training alone gains: a control for rows that start from base
    "pruning 50%": "--technique pruning --sparsity 0.5 --start {base} --epochs {half}",
    "structured 50%": "--technique pruning --structured --target-macs 0.5",
    "lowrank 25%": "--technique lowrank --activation-aware --target-macs 0.25 --start {base}",
    "distillation 3 layers": "--technique distillation --student-layers 3 --temperature 2",
    "quantization": "--technique quantization",
    "structured 50% + int8": "--technique quantization --start {runs}/structured-50%",
    "lowrank 25% + int8": "--technique quantization --start {runs}/lowrank-25%",
    "student 2x256": "--technique distillation --student-layers 2 --student-width 256 --temperature 2 --alpha 0.3 --augment 0.3 --lr 5e-4 --epochs {3x}",
    "student 2x256 + int8": "--technique quantization --start {runs}/student-2x256",
}  # fmt: skip


def directory_name(name):
    """'student 3x192 + int8' -> 'student-3x192+int8'."""
    return name.replace(" + ", "+").replace(" ", "-")


def flags_of(words, runs, epochs):
    """A grid entry's words as arguments, the places filled in."""
    places = {"base": f"{runs}/base", "runs": str(runs), "half": max(1, epochs // 2), **{f"{n}x": n * epochs for n in range(1, 10)}}
    try:
        return [word.format(**places) for word in words.split()]
    except (KeyError, IndexError, ValueError) as error:
        raise BadInput(f"--grid: {words!r} has a place {error} that is none of {', '.join(places)}") from None


def read_grid(path):
    """A grid from a JSON file {name: arguments}. Raises BadInput if it is not of that form."""
    grid = files.read_json(path)
    if not isinstance(grid, dict) or "base" not in grid or not all(isinstance(words, str) for words in grid.values()):
        raise BadInput(f'--grid {path}: give a JSON object of names and arguments, with a "base" among them')
    return grid


# what must be the same throughout a sweep, or its rows say nothing of each other
COMMON = ("task", "data", "model", "fraction", "validation", "test", "split_seed", "max_length", "balance")


def plan(grid, common, seeds, out):
    """{name: [arguments of each seed's run]}, all parsed before the first is trained. Raises BadInput for what cannot be one sweep."""
    given, places = arguments.parse(common), [directory_name(name) for name in grid]
    if len(set(seeds)) < len(seeds) or len(set(places)) < len(places):
        raise BadInput("sweep: seeds, and names without their blanks, must differ from each other")
    planned = {name: [] for name in grid}
    for name in grid:
        for seed in seeds:
            runs = out / f"seed{seed}"
            own = flags_of(grid[name], runs, given.epochs)
            args = arguments.parse([*common, *own, "--seed", str(seed), "--out", str(runs), "--name", directory_name(name)])
            other = [key for key in COMMON if getattr(args, key, None) != getattr(given, key, None)]
            if other:
                raise BadInput(f"--grid: {name} has another {', '.join(other)} than the rest; give it to all, on the command line")
            planned[name].append(args)
    return planned


def train_all(planned, seeds):
    """Train what is not finished yet, seed by seed. Returns {name: [run directory of each seed]}."""
    made = {name: [] for name in planned}
    calls = [(at, name) for at in range(len(seeds)) for name in planned]
    for count, (at, name) in enumerate(calls, 1):
        print(f"--- {count}/{len(calls)}: {name}, seed {seeds[at]}", flush=True)
        made[name].append(train.run(planned[name][at]))
    return made


@torch.inference_mode()
def time_all(runs, task, encoded, rounds):
    """{name: (rows/s over all encoded rows, p50 ms of one row of median length)} of runs, in rounds that begin with another run each.

    Each visit begins with two passes that do not count: the first after other models' are slower than a model at work alone.
    """
    middle = np.argsort(encoded.lengths)[[len(encoded.lengths) // 2]]
    all_rows, single = {name: [] for name in runs}, {name: [] for name in runs}
    names = list(runs)
    for turn in tqdm(range(rounds), desc="timing", unit="round", leave=False, disable=None):
        for name in np.roll(names, -turn):  # not back and forth, or the outermost would be visited twice on end, and be warm
            run = runs[name]
            for counts in (False, False, True):
                began = time.perf_counter()
                predict_rows(run.model, task, encoded, run.tokenizer.pad_token_id)
                all_rows[name] += [time.perf_counter() - began] * counts
            one = collate(encoded, middle, run.tokenizer.pad_token_id)
            for _ in range(10):
                began = time.perf_counter()
                task.forward(run.model, one)
                single[name].append(time.perf_counter() - began)
    return {n: (len(encoded.lengths) / statistics.median(all_rows[n]), 1e3 * statistics.median(single[n])) for n in runs}


def pareto(rows, cost):
    """Names of the rows that no other beats: at least as good on validation and cheaper, or better and no dearer."""

    def beats(a, b):
        return a["validation"] >= b["validation"] and a[cost] <= b[cost] and (a["validation"] > b["validation"] or a[cost] < b[cost])

    return [row["run"] for row in rows if not any(beats(other, row) for other in rows)]


def collect(made, times, task):
    """One row a grid entry: means over the seeds, the bootstrap interval averaged, the test score's distance from the same seed's base."""
    rows = []
    facts = {name: [files.read_json(path / "run.json") for path in paths] for name, paths in made.items()}
    for name, seeds in facts.items():
        row = {"run": name, "seeds": len(seeds)}
        for score in task.headline:
            values = [run["test"]["overall"][score] for run in seeds]
            base = [run["test"]["overall"][score] for run in facts["base"]]
            if any(value is None for value in [*values, *base]):
                continue
            row[score], row[f"{score}_least"], row[f"{score}_most"] = statistics.mean(values), min(values), max(values)
            row[f"{score}_from_base"] = statistics.mean(a - b for a, b in zip(values, base))
            if score in seeds[0]["test"]["intervals"]:
                bounds = zip(*(run["test"]["intervals"][score] for run in seeds))
                row[f"{score}_low"], row[f"{score}_high"] = map(statistics.mean, bounds)
        row["validation"] = statistics.mean(run["validation"]["overall"][next(iter(task.headline))] for run in seeds)
        row["bytes"], row["parameters"] = seeds[0]["sizes"]["bytes"], seeds[0]["sizes"]["parameters"]
        row["train_seconds"] = statistics.mean(run["train_seconds"] for run in seeds)
        row["rows_per_s"], row["p50_ms"] = times[name]
        row["seconds_per_row"] = 1 / row["rows_per_s"]
        rows.append(row)
    for cost in ("seconds_per_row", "p50_ms", "bytes"):
        front = pareto(rows, cost)
        for row in rows:
            row[f"front_{cost}"] = row["run"] in front
    return rows


def as_markdown(rows, task, conditions, grid):
    """The table as text, and what each row was told."""
    base = next(row for row in rows if row["run"] == "base")
    scores = [score for score in task.headline if all(score in row for row in rows)]
    header = ["run", *(f"{task.headline[s]}, mean of {base['seeds']} [interval]" for s in scores), f"{task.headline[scores[0]]} from base (points)",
              "MB", f"{task.unit}/s", "p50 ms", "Pareto front"]  # fmt: skip
    lines = [f"# {task.name}: {len(rows)} runs, {base['seeds']} seeds", "", conditions, ""]
    body = []
    for row in rows:
        fronts = [what for what, cost in (("speed", "seconds_per_row"), ("latency", "p50_ms"), ("bytes", "bytes")) if row[f"front_{cost}"]]
        body.append([
            row["run"],
            *(f"{row[s]:.4f}" + (f" [{row[f'{s}_low']:.3f}, {row[f'{s}_high']:.3f}]" if f"{s}_low" in row else "") for s in scores),
            f"{100 * row[f'{scores[0]}_from_base']:+.2f}",
            f"{row['bytes'] / 1e6:.1f} ({base['bytes'] / row['bytes']:.2f}x)",
            f"{row['rows_per_s']:,.0f} ({row['rows_per_s'] / base['rows_per_s']:.2f}x)",
            f"{row['p50_ms']:.2f} ({base['p50_ms'] / row['p50_ms']:.2f}x)",
            ", ".join(fronts),
        ])  # fmt: skip
    told = [f"- {name}: `{words}`" for name, words in grid.items()]
    return "\n".join([*lines, *markdown_table(header, body), "", "What train.py was told for each:", "", *told, ""])


def plot(rows, task, path):
    """The first score against speed and against bytes, both logarithmic; the Pareto front as a line, bars from the least to the most."""
    score, wording = next(iter(task.headline.items()))
    figure, both = plt.subplots(1, 2, figsize=(13, 5), sharey=True)
    for axes, cost, label in zip(both, ("seconds_per_row", "bytes"), (f"milliseconds a {task.unit.rstrip('s')}, batched", "MB on disk")):
        scale = 1e3 if cost == "seconds_per_row" else 1e-6
        front = sorted((row for row in rows if row[f"front_{cost}"]), key=lambda row: row[cost])
        axes.plot([scale * row[cost] for row in front], [row[score] for row in front], color="black", linewidth=1, alpha=0.5, zorder=1)
        for at, row in enumerate(rows):
            look = {"color": plt.get_cmap("tab10")(at % 10), "marker": "oDs^v"[at // 10 % 5]}
            bars = [[row[score] - row[f"{score}_least"]], [row[f"{score}_most"] - row[score]]]
            axes.errorbar(scale * row[cost], row[score], bars, **look, markersize=8, capsize=3, label=row["run"])
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel=label, title=f"Pareto front by validation, test {wording} shown")
        axes.grid(alpha=0.3, which="both")
    both[0].set_ylabel(f"{wording}, mean of {rows[0]['seeds']} seeds, bars to the least and the most")
    both[1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    save_figure(figure, path)


def parse(argv=None):
    """(Parsed arguments, those for train.py, seeds, grid, directory, plan). Raises BadInput for what cannot be one sweep."""
    parser = Parser(prog="sweep.py", description=__doc__.splitlines()[0], epilog="All other arguments are train.py's.")
    parser.add_argument("--seeds", default="1,2,3", help="seeds of the runs, comma-separated (1,2,3)")
    parser.add_argument("--grid", default=None, help="JSON file {name: arguments of train.py} (the grid in sweep.py)")
    parser.add_argument("--only", default=None, help="names of the grid to run, comma-separated, base among them (all)")
    parser.add_argument(
        "--rounds", type=number(int, 1, 10**4), default=5, help="times that all validation notes are read for the timing (5)"
    )
    args, common = parser.parse_known_args(argv)
    taken = [flag for flag in ("--technique", "--seed", "--name") if flag in common]
    if taken:
        raise BadInput(f"{taken[0]}: the grid and --seeds say that; leave it out")
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        raise BadInput(f"--seeds {args.seeds}: give whole numbers, comma-separated") from None
    given = arguments.parse(common)
    grid = read_grid(args.grid) if args.grid else GRID
    if not args.grid and given.model == "demo":  # which has 128 channels
        grid = {name.replace("256", "64"): words.replace("256", "64") for name, words in grid.items()}
    if args.only:
        wanted = [name.strip() for name in args.only.split(",")]
        if unknown := [name for name in ["base", *wanted] if name not in grid or name not in wanted]:
            raise BadInput(f"--only: {unknown[0]} is missing; the grid has {', '.join(grid)}")
        grid = {name: words for name, words in grid.items() if name in wanted}
    out = Path(given.out)
    return args, common, seeds, grid, out, plan(grid, common, seeds, out)


def main(argv=None):
    """Train the grid, time it, write the table and the plot. Returns their directory."""
    args, common, seeds, grid, out, planned = parse(argv)
    cpu.keep_memory()
    writable_directory(out)

    made = train_all(planned, seeds)
    runs = {name: checkpoint.load(paths[0]) for name, paths in made.items()}
    for run in runs.values():
        cpu.for_inference(run.model, run.task)
    first = runs["base"]
    arguments = first.facts["arguments"]
    path = demo.make(out / f"seed{seeds[0]}" / "demo", first.task.name)[0] if arguments["data"] == "demo" else arguments["data"]
    where = (arguments[key] for key in ("fraction", "validation", "test", "split_seed"))
    notes = type(first.task).from_facts(first.facts["task"]).load(str(path), *where)[0]["validation"]
    encoded = first.task.encode(notes, first.tokenizer, arguments["max_length"])
    times = time_all(runs, first.task, encoded, args.rounds)

    rows = collect(made, times, first.task)
    machine = this_machine()
    conditions = (f"**{demo.BANNER}**\n\n" if first.facts["demonstration"] else "") + (
        f"Test scores: means over seeds {args.seeds}, brackets: 95% bootstrap interval, averaged over the seeds. {first.task.unit}/s: the model "
        f"alone on {len(encoded.lengths)} validation rows of {encoded.lengths.mean():.0f} tokens on average, batches of 2,048 tokens; p50: one "
        f"row of {int(np.median(encoded.lengths))} tokens; sizes and times of seed {seeds[0]}; medians of {args.rounds} rounds in rotating order, {machine['threads']} threads, "
        f"{machine['cpu']}, torch {machine['torch']}. Front: no run is at least as good on validation and cheaper. "
        f"Call: {' '.join(map(shown, common))}."
    )
    header = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(out / "sweep.csv", header, [[row.get(key) for key in header] for row in rows])
    write_whole(out / "sweep.md", as_markdown(rows, first.task, conditions, grid))
    write_json(out / "sweep.json", {"grid": grid, "arguments": list(map(shown, common)), "machine": machine})
    plot(rows, first.task, out / "sweep.png")
    print((out / "sweep.md").read_text())
    return out


if __name__ == "__main__":
    run_script(main)
