"""A grid of techniques and strengths, every seed, then what each saves and costs.

python sweep.py --task trials --data FILE --model DIR --out results/stop

Arguments are train.py's, for every run, and those of the sweep itself (below "options" in --help). Runs go to
OUT/seedN/NAME, with --folds to OUT/seedN/foldK/NAME; finished ones are kept, so an interrupted sweep goes on
where it was. Several processes may train one sweep: each takes what no other is training.

for i in 1 2 3 4; do python sweep.py @FILE --train-only & done; wait; python sweep.py @FILE

At the end the runs of the first seed are timed on the validation notes. sweep.csv and sweep.json hold all
figures and their conditions; sweep.md and the plots are made from them. Rows on the Pareto front (no other
row is at least as good and cheaper) are chosen by validation scores; test scores stand beside them, with
intervals over seeds and test notes and a test against base (docs/evidence.md).

The grid is a JSON object {row name: arguments of train.py}. In its arguments {base} is the base run of the
seed, {runs} the directory of the seed's runs, {half} half the common number of epochs, {1x} to {9x} so many
times that number. In the default grid "base twice" is a control: what longer training alone gains, for rows
that start from base.
"""

import contextlib
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import train
from cli import BadInput, Parser, keyword, number, run_script, seed_list
from data import collate, digest
from fast import cpu
from files import Busy, read_json, writable_directory, write_json, write_whole
from run import arguments, baseline, checkpoint, inference, plots
from run.evidence import compare_groups, compare_runs, evidence_facts
from run.machine import this_machine
from run.results import pareto, read_rows, shown, techniques_of, write_rows
from run.tables import FRONTS, sweep_page
from run.tuning import combinations_of, search_facts, tune, values_of
from run.untrusted import COMPARED, read_run
from tasks import TASKS, demo
from tasks.groups import members_of, refuse_strange_groups

GRID = Path(__file__).parent / "experiments" / "grid.json"

# what must be the same throughout a sweep, or its rows cannot be compared
COMMON = (
    *("task", "data", "model", "fraction", "validation", "split_seed", "max_length", "balance"),
    *("mask_labels", "with_none", "multi_label", "negation"),
)
WAIT = 2.0  # seconds between looks at what other processes train


class Job(NamedTuple):
    """One row of the grid at one seed and fold."""

    row: str
    place: str  # 'seed 1, fold 2'
    args: Namespace  # of train.py; of a baseline those that say which notes
    trials: tuple = ()  # arguments of train.py, of which validation chooses

    def make(self):
        """Train it, or fit it if it is a baseline; nothing if that is done."""
        if self.row in baseline.BASELINES:
            baseline.make_baseline(self.args, self.row)
        elif self.trials:
            tune(self.directory, self.trials, train.run_all)
        else:
            train.run_all(self.args)

    @property
    def directory(self):
        """The run directory that it makes."""
        return Path(self.args.out) / self.args.name


class Sweep(NamedTuple):
    """A sweep whose arguments were checked."""

    common: list  # the arguments of train.py that all runs share
    seeds: list
    folds: int  # 1 = the notes are not cut into folds
    grid: dict  # {row name: its own arguments}
    out: Path
    rounds: int  # of the timing
    train_only: bool
    subgroups: str | None
    jobs: list  # seed by seed, fold by fold, in the grid's order
    search: dict  # {argument: values to try}

    @property
    def places(self):
        """The directory of each seed's runs, with folds one for each: [[Path]]."""
        return [run_places(self.out, seed, self.folds) for seed in self.seeds]


# --- what to run ----------------------------------------------------------------------------------


def directory_name(name):
    """'student 3x192 + int8' -> 'student-3x192+int8'."""
    return name.replace(" + ", "+").replace(" ", "-")


def flags_of(words, runs, epochs):
    """A grid entry's words as arguments, the places filled in."""
    places = {"base": f"{runs}/base", "runs": str(runs), "half": max(1, epochs // 2)}
    places |= {f"{n}x": n * epochs for n in range(1, 10)}
    try:
        return [word.format(**places) for word in words.split()]
    except (KeyError, IndexError, ValueError) as error:
        raise BadInput(f"--grid: {words!r} has a place {error} that is none of {', '.join(places)}") from None


def read_grid(path):
    """A grid from a JSON file {name: arguments}. Raises BadInput if it is not of that form."""
    grid = read_json(path)
    if (
        not isinstance(grid, dict)
        or "base" not in grid
        or not all(isinstance(words, str) for words in grid.values())
    ):
        raise BadInput(f'--grid {path}: give a JSON object of names and arguments, with a "base" among them')
    return grid


def chosen_grid(path, only, model):
    """The grid of a sweep: of a file, or the default; of it only the rows asked for."""
    grid = read_grid(path or GRID)
    if not path and model == "demo":  # which has 128 channels
        grid = {name.replace("256", "64"): words.replace("256", "64") for name, words in grid.items()}
    if not only:
        return grid
    wanted = [name.strip() for name in only.split(",")]
    if unknown := [name for name in ["base", *wanted] if name not in grid or name not in wanted]:
        raise BadInput(f"--only: {unknown[0]} is missing; the grid has {', '.join(grid)}")
    return {name: words for name, words in grid.items() if name in wanted}


def with_baselines(grid, task):
    """A grid with the task's baselines, which train.py does not make."""
    if taken := [name for name in grid if name in baseline.BASELINES]:
        raise BadInput(f"--grid: {taken[0]} is the name of a baseline; give the row another")
    return {**grid, **dict.fromkeys(TASKS[task].baselines, "")}


def run_places(out, seed, folds):
    """Where the runs of a seed stand: [Path], one for each fold."""
    home = out / f"seed{seed}"
    return [home / f"fold{k}" for k in range(1, folds + 1)] if folds > 1 else [home]


def plan_jobs(grid, common, seeds, folds, out):
    """[Job] of every seed, fold and row, all parsed before the first is trained.

    Raises BadInput for what cannot be one sweep.
    """
    names = [directory_name(name) for name in grid]
    if len(set(names)) < len(names):
        raise BadInput("sweep: names of rows, without their blanks, must differ from each other")
    jobs = []
    for seed in seeds:
        for k, runs in enumerate(run_places(out, seed, folds), 1):
            fold = ["--fold", f"{k}/{folds}"] if folds > 1 else []
            given = arguments.parse_arguments([*common, *fold])
            for name in grid:
                own = flags_of(grid[name], runs, given.epochs)
                place = ["--seed", str(seed), "--out", str(runs), "--name", directory_name(name)]
                args = arguments.parse_arguments([*common, *fold, *own, *place])
                refuse_other(name, args, given)
                jobs.append(Job(name, f"seed {seed}" + f", fold {k}" * bool(fold), args))
    return jobs


def refuse_other(name, args, given):
    """Raises BadInput if a row's arguments differ from the common ones in what all rows must share."""
    keys = (*COMMON, "test")
    if other := [key for key in keys if getattr(args, key, None) != getattr(given, key, None)]:
        raise BadInput(
            f"--grid: {name} has another {', '.join(other)} than the rest; "
            "give it to all, on the command line"
        )


def plan_sweep(argv=None):
    """The Sweep that a command line asks for. Raises BadInput for what cannot be one."""
    parser = Parser(
        prog="sweep.py", description=__doc__.splitlines()[0], epilog="All other arguments are train.py's."
    )
    add = parser.add_argument
    add("--seeds", type=seed_list, default=[1, 2, 3], help="how many seeds, or which: 3 or 1,2,3 (3)")
    fold = number(int, 2, 100)
    add("--folds", type=fold, default=1, help="cut the notes into so many folds, test on each (none)")
    add("--grid", default=None, help="JSON file {row name: arguments of train.py} (experiments/grid.json)")
    add("--only", default=None, help="rows of the grid to run, comma-separated, base among them (all)")
    add(
        "--rounds",
        type=number(int, 1, 10**4),
        default=5,
        help="times that all validation notes are read for the timing (5)",
    )
    add(
        "--search", nargs="+", type=values_of, default=[], metavar="NAME=VALUES",
        help="tune each row on validation in arguments of train.py, such as lr=1e-5,3e-5 rank=8,32 (off)",
    )  # fmt: skip
    add("--trials", type=number(int, 2, 10**4), default=None, help="settings tried for each row (all it has)")
    add("--baselines", action="store_true", help="rows of baselines.py, too (off)")
    add("--subgroups", default=None, help="columns, comma-separated: scores of each of their values (none)")
    add(
        "--train-only",
        action="store_true",
        help="train what no other process is training, and stop when all is trained (off)",
    )
    args, common = parser.parse_known_args(argv)

    taken = [flag for flag in ("--technique", "--seed", "--name", "--fold") if flag in common]
    if taken:
        raise BadInput(f"{taken[0]}: the grid, --seeds and --folds say that; leave it out")
    given = arguments.parse_arguments(common)
    grid, out = chosen_grid(args.grid, args.only, given.model), Path(given.out)
    if args.baselines:
        grid = with_baselines(grid, given.task)
    jobs, search = plan_jobs(grid, common, args.seeds, args.folds, out), dict(args.search)
    if search:
        jobs = with_trials(jobs, search, args.trials, common, grid)
    if args.subgroups and "--subgroups" not in TASKS[given.task].OPTIONS:
        raise BadInput(f"--subgroups: {given.task} has no groups by column; leave it out")
    told = args.rounds, args.train_only, args.subgroups
    return Sweep(common, args.seeds, args.folds, grid, out, *told, jobs, search)


# --- tuning ---------------------------------------------------------------------------------------


def with_trials(jobs, search, count, common, grid):
    """The jobs with the settings to try: as many for each row that has any of them, drawn from its own.

    A row is tuned in what its technique uses and its words in the grid do not fix. count: of trials; None =
    as many as the row with the fewest combinations has.
    """
    alike = {*COMMON, "test", "seed", "fold", "out", "name", "start", "recipe"}
    if shared := [name for name in search if keyword(name) in alike]:
        raise BadInput(
            f"--search {shared[0]}: is the same for all runs; search what a technique has, as lr or rank"
        )
    combinations = {
        row: combinations_of(job.args, search, flags_of(grid[row], job.args.out, 2))
        for row, job in {job.row: job for job in jobs}.items()
        if row not in baseline.BASELINES
    }
    fewest = min((len(found) for found in combinations.values() if found), default=0)
    if not fewest:
        raise BadInput(f"--search: no row is tuned in {', '.join(search)}")
    if (count or 1) > fewest:
        raise BadInput(
            f"--trials {count}: a row has only {fewest} combinations of --search; give more values"
        )
    count, tuned = count or fewest, []
    for job in jobs:
        found = sorted(combinations.get(job.row, ()), key=lambda words: digest(job.row, *words))[:count]
        tuned.append(job._replace(trials=tuple(trial(job, words, common, grid) for words in sorted(found))))
    return tuned


def trial(job, words, common, grid):
    """The arguments of train.py for a job with these settings, under a name of its own."""
    flags = [f"--{word}" for word in words]
    given = job.args
    fold = ["--fold", "/".join(map(str, given.fold))] if given.fold else []
    own = flags_of(grid[job.row], given.out, arguments.parse_arguments(common).epochs)
    name = f"{directory_name(job.row)}@{','.join(words)}"
    place = ["--seed", str(given.seed), "--out", given.out, "--name", name]
    return arguments.parse_arguments([*common, *fold, *own, *flags, *place])


# --- training -------------------------------------------------------------------------------------


def train_all(jobs):
    """Make the runs that are not finished yet, in order; what another process is making comes later."""
    ours, left = {job.directory for job in jobs}, jobs
    while left:
        waiting = []
        for job in left:
            if any(not checkpoint.is_finished(path) for path in needed(job) & ours):
                waiting.append(job)
                continue
            try:
                print(f"--- {job.row}, {job.place}", flush=True)
                job.make()
            except Busy:
                waiting.append(job)
        if waiting == left:
            time.sleep(WAIT)
        left = waiting


def needed(job):
    """Directories of the runs that must be finished before a job can begin: base, where it starts from."""
    if job.row in baseline.BASELINES:
        return set()
    base = job.directory.with_name("base")
    return {Path(path) for path in (base, job.args.start, job.args.teacher) if path} - {job.directory}


def made_runs(sweep):
    """{row: [[run directory of each fold] of each seed]}."""
    return {
        row: [[place / directory_name(row) for place in folds] for folds in sweep.places]
        for row in sweep.grid
    }


# --- timing ---------------------------------------------------------------------------------------


class Calls(NamedTuple):
    """How a run reads all validation notes, and one of them."""

    every: Callable
    one: Callable


def model_calls(run, task, encoded):
    """The Calls of a checkpoint.Run: the model alone, from token ids to answers."""
    middle = np.argsort(encoded.lengths)[[len(encoded.lengths) // 2]]
    one = collate(encoded, middle, run.tokenizer.pad_token_id)
    return Calls(
        lambda: inference.predict_rows(run.model, task, encoded, run.tokenizer.pad_token_id),
        lambda: task.forward(run.model, one),
    )


def baseline_calls(found, examples, encoded):
    """The Calls of a baseline: from texts to answers, on one thread."""
    middle = encoded.owner[np.argsort(encoded.lengths)[len(encoded.lengths) // 2]]
    return Calls(lambda: found.predict(examples), lambda: found.predict([examples[middle]]))


def validation_notes_of(run, out):
    """(validation examples, their encoded rows) of a base run of the sweep in `out`, read again."""
    settings, task = run.facts["arguments"], run.task
    path = demo.make(out / "demo", task.name)[0] if settings["data"] == "demo" else settings["data"]
    where = (settings[key] for key in ("fraction", "validation", "test", "split_seed"))
    notes = type(task).from_facts(run.facts["task"]).load(str(path), *where)[0]["validation"]
    return notes, task.encode(notes, run.tokenizer, settings["max_length"])


@torch.inference_mode()
def time_all(runs, rows, rounds):
    """{name: (rows/s over all rows, p50 ms of one row of median length)} of {name: Calls}.

    Each round begins with another run. Each visit begins with two passes that do not count: the first ones
    after other models are slower than a model at work alone.
    """
    all_rows, single = {name: [] for name in runs}, {name: [] for name in runs}
    names = list(runs)
    for turn in tqdm(range(rounds), desc="timing", unit="round", leave=False, disable=None):
        for name in np.roll(
            names, -turn
        ):  # not back and forth: the outermost would be visited twice in a row, and be warm
            run = runs[name]
            for counts in (False, False, True):
                began = time.perf_counter()
                run.every()
                all_rows[name] += [time.perf_counter() - began] * counts
            for _ in range(10):
                began = time.perf_counter()
                run.one()
                single[name].append(time.perf_counter() - began)
    return {n: (rows / statistics.median(all_rows[n]), 1e3 * statistics.median(single[n])) for n in runs}


def timed(made, base, first, rounds):
    """({name: times}, encoded validation rows): the first seed's runs, in one process."""
    examples, encoded = validation_notes_of(base, first)
    with contextlib.ExitStack() as opened:
        calls = {}
        for name, seeds in made.items():
            if name in baseline.BASELINES:
                calls[name] = baseline_calls(baseline.load_baseline(seeds[0][0]), examples, encoded)
                continue
            run = checkpoint.load(seeds[0][0])
            opened.enter_context(inference.reading(run.model, run.task, frozen=True))
            calls[name] = model_calls(run, base.task, encoded)
        return time_all(calls, len(encoded.lengths), rounds), encoded


# --- the data of the tables -----------------------------------------------------------------------


def sweep_rows(task, made, times):
    """One row per grid entry: scores over the seeds, sizes, times, whether it is on a Pareto front.

    made {name: [[run directory of each fold] of each seed]}, times {name: (rows/s, p50 ms)}. The task's first
    headline score decides the front; the labelling rule, right by construction, is left out of it.
    """
    rows, first, cells = [], next(iter(task.headline)), compare_runs(task, made)
    for name, seeds in made.items():
        runs = [read_run(path, *COMPARED) for folds in seeds for path in folds]
        row = {"run": name, "techniques": techniques_of(seeds[0][0]), "seeds": len(seeds), **cells[name]}
        row["validation"] = statistics.mean(run["validation"]["overall"][first] for run in runs)
        row["bytes"], row["parameters"] = (runs[0]["sizes"]["bytes"], runs[0]["sizes"]["parameters"])
        row["train_seconds"] = statistics.mean(run["train_seconds"] for run in runs)
        row["rows_per_s"], row["p50_ms"] = times[name]
        row["seconds_per_row"] = 1 / row["rows_per_s"]
        rows.append(row)
    competing = [row for row in rows if row["run"] != "rule"]  # which made the labels
    for cost in FRONTS.values():
        front = pareto(competing, cost)
        for row in rows:
            row[f"front_{cost}"] = row["run"] in front
    return rows


def groups_of(sweep):
    """{column: {value: row ids of its test notes, those of all folds}}; {} without groups.

    Raises BadInput for a column that there is not, or whose values look like text.
    """
    given = arguments.parse_arguments(sweep.common)
    cls = TASKS[given.task]
    own = {"subgroups": sweep.subgroups} if sweep.subgroups else {}
    task, examples = cls(**{**arguments.options_of(cls, given), **own}), []
    if not sweep.subgroups and not task.marks:
        return {}
    path = demo.make(sweep.out / "demo", task.name)[0] if given.data == "demo" else given.data
    for fold in range(1, sweep.folds + 1):
        test = [fold, sweep.folds] if sweep.folds > 1 else given.test
        splits, _ = task.load(str(path), given.fraction, given.validation, test, given.split_seed)
        examples += splits["test"]
    refuse_strange_groups(examples)  # a value may be rare in each fold, and shown of all
    return {
        column: {value: {examples[i].row_id for i in numbers} for value, numbers in groups.items()}
        for column, groups in members_of(examples).items()
    }


def sweep_facts(sweep, made, base, encoded):
    """What the tables need beside the rows, for sweep.json."""
    task, data = base.task, base.facts["data"]
    return {
        "task": task.name,
        "unit": task.unit,
        "headline": task.headline,
        "calibrated": task.sure_of,
        "group_score": task.group_score,
        "subgroups": sweep.subgroups,
        "demonstration": base.facts["demonstration"],
        "grid": sweep.grid,
        "arguments": list(map(shown, sweep.common)),
        "seeds": sweep.seeds,
        "evidence": evidence_facts(task, made),
        "search": search_facts(sweep.search, {job.row: job.trials for job in sweep.jobs}, made),
        "data": {
            **{key: data[key] for key in ("rows", "notes", "subjects", "sizes", "splits")},
            "mean_tokens": float(encoded.lengths.mean()),
            "median_tokens": int(np.median(encoded.lengths)),
        },
        "timing": {
            "rows": len(encoded.lengths),
            "length": int(np.median(encoded.lengths)),
            "rounds": sweep.rounds,
            "seed": sweep.seeds[0],
            "batch_tokens": inference.batch_tokens(torch.device("cpu")),
        },
        "machine": this_machine(),
        "trained_at": {
            name: [read_run(path, "machine.commit")["machine"]["commit"] for folds in seeds for path in folds]
            for name, seeds in made.items()
        },
    }


def main(argv=None):
    """Train the grid, time it, write the data, the table and the plots. Returns their directory."""
    sweep = plan_sweep(argv)
    plots.pyplot()  # said before the first run is trained, if matplotlib is missing
    cpu.keep_memory()
    out = writable_directory(sweep.out)

    groups = {} if sweep.train_only else groups_of(sweep)  # a wrong column is refused before the training
    train_all(sweep.jobs)
    made, first = made_runs(sweep), sweep.places[0][0]
    if sweep.train_only:
        return out
    base = checkpoint.load(made["base"][0][0])
    times, encoded = timed(made, base, first, sweep.rounds)

    write_rows(out / "sweep.csv", sweep_rows(base.task, made, times))
    models = {name: runs for name, runs in made.items() if name not in baseline.BASELINES}
    facts = sweep_facts(sweep, made, base, encoded)
    write_json(out / "sweep.json", facts | {"groups": compare_groups(base.task, models, groups)})
    rows, facts = read_rows(out / "sweep.csv"), read_json(out / "sweep.json")  # as docs/results.py does
    write_whole(out / "sweep.md", sweep_page(rows, facts))
    plots.plot_sweep(rows, facts, out)
    print(sweep_page(rows, facts))
    return out


if __name__ == "__main__":
    run_script(main)
