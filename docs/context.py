"""docs/context.md, made from the files in docs/results/context/: python docs/context.py

Does compression hurt inference from context more than spotting a word? Two sweeps on the same notes, folds
and seeds answer it: in one the model sees every word, in the other --mask-labels hides the lexicon's words.
With --collect SPOTTING MASKED it makes the files first, from the results directories of the two sweeps. With
--check it writes nothing and exits with 1 if the page differs from what the files say.

    context.csv   a row per run and score: both sweeps' means, what each lost from base, and the difference
    facts.json    notes, seeds, folds, machine

With x a score of a row and b that of base, on the same seed and notes, the question is whether

    (x - b) masked  -  (x - b) spotting

is below 0. Seeds and resampled notes are paired throughout, so each note stands on both sides (stats.py).
"""

import functools
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cli import BadInput, Parser, run_script  # noqa: E402
from files import read_json, write_json, write_whole  # noqa: E402
from run import checkpoint  # noqa: E402
from run.baseline import BASELINES  # noqa: E402
from run.evidence import Bootstrap, Scored, base_cells, mark, read_answers, spread_cells  # noqa: E402
from run.results import markdown_table, read_rows, shown, write_rows  # noqa: E402
from run.tables import counted, described, p_value  # noqa: E402
from run.untrusted import COMPARED, read_run, read_task  # noqa: E402

SIDES = ("spotting", "masked")
TESTED = "F1"  # macro-F1: the classes differ in size by 20 times, and accuracy is mostly the largest one's
LOST = "more_from_base"  # what was lost without the words, less what was lost with them
SCORES = {"F1": "Macro-F1", "Accuracy": "Accuracy", "AUROC": "AUROC"}

# --- runs -> files ---------------------------------------------------------------------------------


def collect_sweeps(spotting, masked, folder):
    """Write the files of docs/results/context/ from two sweeps' results directories."""
    made = {side: runs_of_sweep(Path(out)) for side, out in zip(SIDES, (spotting, masked), strict=True)}
    seeds = shared_seeds(made)
    if "base" not in seeds:
        raise BadInput(f"{spotting}, {masked}: no seed of which both have base in every fold")
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "context.csv", compare_sides(made, seeds))
    write_json(folder / "facts.json", facts_of(made, seeds["base"]))


def runs_of_sweep(out):
    """{name: {seed: [run directory of each fold]}} of the runs of which a seed has every fold.

    Baselines are no compression of base, so they are left to the sweeps' own tables.
    """
    homes = sorted(out.glob("seed*"), key=lambda path: (len(path.name), path.name))
    if not homes:
        raise BadInput(f"{out}: holds no seed1, seed2 and so on; sweep.py makes them")
    found = {}
    for home in homes:
        folds = sorted(home.glob("fold*")) or [home]
        for name in sorted(path.name for path in folds[0].iterdir() if path.name not in BASELINES):
            runs = [fold / name for fold in folds]
            if all(map(checkpoint.is_finished, runs)):
                found.setdefault(name, {})[home.name] = runs
    return found


def shared_seeds(made):
    """{name: [seed]} of the runs, base first: the seeds in which both sweeps have the run and base."""
    spotting, masked = (made[side] for side in SIDES)
    bases = spotting.get("base", {}).keys() & masked.get("base", {}).keys()
    ordered = sorted(spotting.keys() & masked.keys(), key=lambda name: (name != "base", name))
    found = {name: [s for s in spotting[name] if s in masked[name] and s in bases] for name in ordered}
    return {name: seeds for name, seeds in found.items() if seeds}


def compare_sides(made, seeds):
    """Rows of context.csv, base first. Raises BadInput if the two sweeps did not answer the same notes.

    seeds {name: [seed]}. A run is compared with base of its own seeds.
    """
    first = made["spotting"]["base"][seeds["base"][0]][0]
    task, bootstrap, rows = read_task(first, read_run(first, *COMPARED)), Bootstrap(), []
    answers = {
        (side, name, seed): read_answers(task, made[side][name][seed])
        for side in SIDES
        for name, of in seeds.items()
        for seed in of
    }
    if len({found.notes for found in answers.values()}) > 1:
        raise BadInput(
            "spotting and masked: their test notes differ; give both sweeps the same data, folds and seeds"
        )
    for score in SCORES:

        @functools.cache
        def scored(side, name, of, score=score):
            found = [answers[side, name, seed] for seed in of]
            return found, bootstrap.score(found, score)

        for name, of in seeds.items():
            pair = {(side, run): scored(side, run, tuple(of)) for side in SIDES for run in (name, "base")}
            rows.append(context_cells(name, score, pair, len(of)))
    mark({row["run"]: row for row in rows if row["score"] == TESTED}, "more")
    return rows


def context_cells(name, score, scored, seeds):
    """One row of context.csv: name, score, cells of both sides, the difference of what both lost.

    scored {(side, name): (SeedAnswers of each seed, Scored)}, of base on the same seeds.
    """
    row, lost = {"run": name, "score": score, "seeds": seeds}, {}
    for side in SIDES:
        (answers, own), (_, base) = scored[side, name], scored[side, "base"]
        cells, clusters = spread_cells(score, own, answers), len(set(answers[0].clusters))
        if name != "base":
            cells |= base_cells(score, own, base, clusters)
            lost[side] = lost_by(own, base)
        row |= {key.replace(score, side, 1): value for key, value in cells.items()}
    return row | (base_cells("more", lost["masked"], lost["spotting"], clusters) if lost else {})


def lost_by(scored, base):
    """A row less base, seed by seed and resample by resample."""
    return Scored(np.subtract(scored.values, base.values).tolist(), scored.resampled - base.resampled)


def facts_of(made, seeds):
    """What the runs have in common; seeds: those of base."""
    every = [
        read_run(path, *COMPARED, "machine", "data.sizes")
        for side in SIDES
        for name, of in made[side].items()
        for seed in seeds
        for path in of.get(seed, ())
    ]
    folds = made["masked"]["base"][seeds[0]]
    runs = [read_run(path, *COMPARED, "machine", "data.sizes") for path in folds]
    return {
        "data": shown(runs[0]["arguments"]["data"]),
        "model": shown(runs[0]["arguments"]["model"]),
        "epochs": runs[0]["arguments"]["epochs"],
        "labels": runs[0]["task"]["labels"],
        "seeds": len(seeds),
        "folds": len(folds),
        "notes": sum(run["data"]["sizes"]["test"] for run in runs),
        "machine": runs[0]["machine"],
        "commits": sorted({str(run["machine"]["commit"]) for run in every}),
    }


# --- files -> the page -------------------------------------------------------------------------------

TOP = """# Reading or spotting?

Made by `python docs/context.py` from the files in [docs/results/context/](results/context/), so do not edit
this page.

The label of a note is a word that stands in it, so a model can learn to spot words. With `--mask-labels`
every word of the lexicon is hidden, and the label must be inferred from the rest. Does compression hurt the
second more than the first? Each row was trained twice, with the words and without, on the same notes, folds
and seeds. Some rows start from base, so they train longer than base; "base-twice" is their control: what
longer training gains without any compression.

```bash
python sweep.py @experiments/mtsamples.args
python sweep.py @experiments/masked.args
python sweep.py @experiments/mtsamples.args --grid experiments/strengths.json --train-only # other strengths
python sweep.py @experiments/masked.args --grid experiments/strengths.json --train-only
python docs/context.py --collect results/mtsamples results/masked
```
"""


def context_page(folder):
    """The text of docs/context.md."""
    facts, rows = (
        read_json(folder / "facts.json"),
        read_rows(folder / "context.csv", names=("run", "score", "told")),
    )
    fewer = any(row.get("seeds", facts["seeds"]) < facts["seeds"] for row in rows)
    lines = [TOP, context_conditions(facts, fewer), "", *answer_lines(rows, facts)]
    for score, wording in SCORES.items():
        lines += ["", f"## {wording}", "", *context_table([row for row in rows if row["score"] == score])]
    return "\n".join([*lines, ""])


def context_conditions(facts, fewer):
    """How the figures came about; fewer: whether some rows have fewer seeds than base."""
    seeds, folds = counted(facts["seeds"], "seed"), facts["folds"]
    joined = f" in {folds} folds, each tested once" if folds > 1 else ""
    seed = " One seed: the intervals speak of these trained models." if facts["seeds"] == 1 else ""
    if fewer:
        seed += " A row of fewer seeds is compared with base on those; of one, with those trained models."
    return (
        f"{facts['data']}, {facts['model']}, labels {', '.join(facts['labels'])}; {facts['epochs']} epochs; "
        f"{facts['notes']:,} test notes{joined}; {seeds}; {described(facts['machine'])}; commit "
        f"{', '.join(facts['commits'])}.{seed} Brackets are 95% intervals, points are hundredths; notes are "
        "paired throughout ([evidence.md](evidence.md)). The last points are the difference of both: below "
        "0, the row lost more where the words are hidden. A point near the top of a scale and one in its "
        "middle are not the same."
    )


def answer_lines(rows, facts):
    """The answer: which rows lose more without the words than with them, by the tested score."""
    tested = [row for row in rows if row["score"] == TESTED and row.get("p_holm") is not None]
    base = next(row for row in rows if row["score"] == TESTED and row["run"] == "base")
    told = [row for row in tested if row["told"] != "no"]
    sides = {"lost": [], "gained": []}
    for row in told:
        sides["lost" if row["told"] == "worse" else "gained"].append(f"{row['run']} ({signed(row, LOST)})")
    found = [
        f"compared with base, {', '.join(names)} {side} more without the words than with them"
        for side, names in sides.items()
        if names
    ]
    rest = len(tested) - len(told)
    found += ["no row is shown to lose more"] * (not sides["lost"])
    found += [f"for {counted(rest, 'row')} it cannot be told"] * (rest > 0)
    return [
        f"Base has a macro-F1 of {base['spotting']:.3f} with the words and {base['masked']:.3f} without. By "
        f"macro-F1, in points: {'; '.join(found)} (paired t test, Holm's correction for "
        f"{counted(len(tested), 'row')})."
    ]


def context_table(rows):
    """Lines: both sides' scores, what each lost from base, and the difference, in points."""
    head = ["run", "with the words", "from base", "without", "from base", "without less with"]
    corrected = any(row.get("p_holm") is not None for row in rows)
    body, most = [], max(row.get("seeds", 1) for row in rows)
    for row in rows:
        fewer = f", {counted(row['seeds'], 'seed')}" if row.get("seeds", most) < most else ""
        cells = [row["run"] + fewer]
        for side in SIDES:
            cells += [f"{row[side]:.4f} [{row[f'{side}_low']:.3f}, {row[f'{side}_high']:.3f}]"]
            cells += [signed(row, f"{side}_from_base") if row["run"] != "base" else ""]
        cells += [signed(row, LOST) if row["run"] != "base" else ""]
        if corrected:
            cells += [p_value(row["p_holm"]).removeprefix("= ") if row["run"] != "base" else ""]
        body.append(cells)
    return markdown_table([*head, *(["p, Holm's"] if corrected else [])], body)


def signed(row, name):
    """'-1.2 [-2.2, -0.3]', in points."""
    mean, low, high = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def main(argv=None, root=ROOT):
    """Write docs/context.md, or check it."""
    parser = Parser(prog="docs/context.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--collect",
        nargs=2,
        metavar=("SPOTTING", "MASKED"),
        help="results directories to make the files from first",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if the page differs (off)"
    )
    args = parser.parse_args(argv)
    folder, path = Path(root) / "docs/results/context", Path(root) / "docs/context.md"
    if args.collect:
        collect_sweeps(*args.collect, folder)
    text = context_page(folder)
    if args.check:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit("docs/context.md: not what docs/results/context/ says; run python docs/context.py")
        return
    write_whole(path, text)
    print("docs/results/context/ -> docs/context.md")


if __name__ == "__main__":
    run_script(main)
