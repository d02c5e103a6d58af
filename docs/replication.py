"""docs/replication.md, made from the files in docs/results/replication/: python docs/replication.py

With --collect it makes these files first, from the runs that experiments/replication.sh made
(docs/replication_files.py). With --check it writes nothing and exits with 1 if the page differs from what the
files say.
"""

import sys
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from scipy import stats as scipy_stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import stats  # noqa: E402
from cli import BadInput, Parser, run_script  # noqa: E402
from docs.replication_files import FIVE, FROM_BASE, MADE_BY, collect  # noqa: E402
from docs.replication_others import adaptation_lines, readmission_lines  # noqa: E402
from files import read_json, write_whole  # noqa: E402
from metrics import single_label  # noqa: E402
from run import columns, plots  # noqa: E402
from run.evidence import LEVEL  # noqa: E402
from run.results import markdown_table, read_rows  # noqa: E402
from run.tables import described  # noqa: E402

KINDS = {"recipe": "the recipe", "rate": "the recipe at one higher rate", "proper": "done properly"}

# --- files -> scores over draws of seeds and test notes ----------------------------------------------


def answers_of(rows):
    """{technique: {seed: (labels (N,), probabilities (N, C))}}, texts (N,), in_train (N,) of one kind."""
    found, width = {}, sum(key.startswith("p") and key[1:].isdigit() for key in rows[0])
    for row in rows:
        found.setdefault(row["technique"], {}).setdefault(row["seed"], []).append(row)
    any_run = next(iter(next(iter(found.values())).values()))
    texts, copied = (np.array([row[key] for row in any_run]) for key in ("text", "in_train"))
    runs = {
        technique: {
            seed: (
                np.array([row["label"] for row in members]),
                np.array([[row[f"p{i}"] for i in range(width)] for row in members]),
            )
            for seed, members in seeds.items()
        }
        for technique, seeds in found.items()
    }
    return runs, texts, copied


def weighted_scores(labels, probabilities, weights):
    """{score: (R,)}: accuracy, macro-F1 and macro AUROC of one run under weights (R, N) of its notes."""
    predicted, classes = probabilities.argmax(1), range(probabilities.shape[1])
    f1, areas = [], []
    with np.errstate(invalid="ignore", divide="ignore"):
        for c in classes:
            true, called = labels == c, predicted == c
            sums = weights[:, true].sum(1) + weights[:, called].sum(1)
            f1.append(np.where(sums > 0, 2 * weights[:, true & called].sum(1) / np.maximum(sums, 1), 0))
            high, low = probabilities[true, c], probabilities[~true, c]
            wins = (high[:, None] > low) + 0.5 * (high[:, None] == low)  # (positives, negatives)
            pairs = weights[:, true].sum(1) * weights[:, ~true].sum(1)
            areas.append(((weights[:, true] @ wins) * weights[:, ~true]).sum(1) / pairs)
    return {
        "Accuracy": weights[:, labels == predicted].sum(1) / weights.sum(1),
        "F1": np.mean(f1, 0),
        "AUROC": np.mean(areas, 0),  # NaN where a class was not drawn
    }


class RowScore(NamedTuple):
    """A score of a row: of each seed (S,), on each resample of the test notes (R, S), how many were drawn."""

    values: list
    resampled: np.ndarray
    clusters: int


def scored_rows(runs, texts):
    """{technique: {score: RowScore}}; notes with the same text are drawn together."""
    count = {len(seeds) for seeds in runs.values()}
    if len(count) > 1:
        raise BadInput(
            f"answers.csv: techniques have different numbers of seeds, {sorted(count)}; run the rest"
        )
    once, drawn, found = np.ones((1, len(texts))), stats.cluster_weights(texts), {}
    for technique, members in runs.items():
        whole = [weighted_scores(*answers, once) for _, answers in sorted(members.items())]
        again = [weighted_scores(*answers, drawn) for _, answers in sorted(members.items())]
        found[technique] = {
            score: RowScore(
                [float(row[score][0]) for row in whole],
                np.stack([row[score] for row in again], 1),
                len(set(texts)),
            )
            for score in whole[0]
        }
    return found


def apart(ours, theirs):
    """The stats.Difference of two rows' scores on the same seeds and resamples."""
    return stats.difference(ours.values, theirs.values, ours.resampled, theirs.resampled, ours.clusters)


# --- the paper's claims ------------------------------------------------------------------------------

OTHERS = {name: [other for other in FIVE if other != name] for name in FIVE}
# claim: (score, [(better, worse)])
CLAIMS = {
    "Base has the best accuracy": ("Accuracy", [("base", other) for other in OTHERS["base"]]),
    "Base has the best F1": ("F1", [("base", other) for other in OTHERS["base"]]),
    "Distillation has the best AUROC": ("AUROC", [("distillation", o) for o in OTHERS["distillation"]]),
    "Pruning beats low rank and quantization (F1)": (
        "F1", [("pruning", "lowrank"), ("pruning", "quantization")],
    ),
    "Quantization loses most (F1)": ("F1", [(other, "quantization") for other in OTHERS["quantization"]]),
    "Quantization's AUROC is above low rank's": ("AUROC", [("quantization", "lowrank")]),
}  # fmt: skip
HOLDS, AGAINST, OPEN = "holds", "contradicted", "cannot be told"


def verdict(differences):
    """The verdict on a claim of several stats.Difference that should be above 0.

    It holds if all are significantly above 0, each at 5%. It is contradicted if one is significantly below 0
    after Holm's correction for all of them; else nothing can be told.
    """
    if all(found.mean > 0 and found.p < LEVEL for found in differences):
        return HOLDS
    corrected = stats.holm([found.p for found in differences])
    below = [p < LEVEL and found.mean < 0 for found, p in zip(differences, corrected, strict=True)]
    return AGAINST if any(below) else OPEN


def claim_rows(claim, scores):
    """Rows of cells: the claim with its verdict by each kind of runs, then its differences in points."""
    score, pairs = CLAIMS[claim]
    needed = {name for pair in pairs for name in pair}
    head, below = [f"**{claim}**"], [[f"{a} − {b}"] for a, b in pairs]
    for members in scores.values():
        if missing := needed - members.keys():
            head.append(f"not run: {', '.join(sorted(missing))}")
            below = [[*row, ""] for row in below]
            continue
        found = [apart(members[a][score], members[b][score]) for a, b in pairs]
        head.append(f"**{verdict(found)}**")
        below = [[*row, points(*each[:3])] for row, each in zip(below, found, strict=True)]
    return [head, *below]


def points(estimate, low, high, digits=1):
    """'+1.2 [+0.3, +2.2]', in points; a zero is +0.0."""
    texts = [f"{round(100 * value, digits) + 0.0:+.{digits}f}" for value in (estimate, low, high)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def rise(values):
    """Differences, one per seed, in points: their mean, with an interval if there are several."""
    return points(*over_seeds(values)[:3]) if len(values) > 1 else "".join(f"{100 * v:+.1f}" for v in values)


def over_seeds(values):
    """The stats.Difference from 0 of one value per seed, Student's; the mean alone for one seed."""
    mean = fmean(values)
    if len(values) < 2 or stdev(values) == 0:
        return stats.Difference(mean, mean, mean, float(mean == 0))
    student, error = scipy_stats.t(len(values) - 1), stdev(values) / len(values) ** 0.5
    half = student.ppf(0.975) * error
    return stats.Difference(mean, mean - half, mean + half, float(2 * student.sf(abs(mean) / error)))


# --- the page ----------------------------------------------------------------------------------------

TOP = """# Replication

Made by `python docs/replication.py` from the files in [docs/results/replication/](results/replication/), so
do not edit this page. The paper: F. Boabang, "Assessing Compression Strategies in Large Language Models for
Symptom Extraction from Clinical Notes". Its Table 1 gives five rows, one seed, 435 test notes of MIMIC-III;
from the best to the worst accuracy they span 2.3 points.

- **The recipe** (`--recipe paper`, [run/recipe.py](../run/recipe.py)) does what the authors' code does, its
  learning rates included.
- **Done properly** is this repository's way: copies folded, split by patient, the epoch chosen on validation
  notes, the test notes read once, real low rank, a smaller student of a trained teacher, int8 weights and
  products.

Brackets are 95% intervals. Unless said otherwise they allow for the draw of the seeds and that of the test
notes ([evidence.md](evidence.md)); notes with the same text are drawn together.

```bash
bash experiments/replication.sh                                # the runs, results/replication
python docs/replication.py --collect results/replication       # this page and its files
```

The second command takes what has been run so far; all of it is 218 runs. All seeds done properly share one
split. The notes are public ones, not MIMIC's: [data.md](../experiments/data.md) says where they come from.
"""


def replication_page(folder):
    """The text of docs/replication.md."""
    folder = Path(folder)
    facts, epochs = (
        read_json(folder / "facts.json"),
        read_rows(folder / "epochs.csv", names=("kind", "technique")),
    )
    kinds, scores, answers = [kind for kind in KINDS if kind in facts], {}, {}
    rows = read_rows(folder / "answers.csv", names=("kind", "technique"))
    for kind in kinds:
        answers[kind] = answers_of([row for row in rows if row["kind"] == kind])
        scores[kind] = scored_rows(*answers[kind][:2])
    paper = columns.published(ROOT / "reference")["overall"]
    labels = read_rows(folder / "labels.csv", names=("labels", *MADE_BY))
    curve = read_rows(folder / "lowrank.csv", names=("technique", *MADE_BY))
    sections = [
        *[TOP, *run_lines(facts, kinds)],
        *["## By seed alone", "", *spread_lines(answers, scores, paper)],
        *["", "![accuracy of each row by seed, beside the paper's](results/replication/seeds.png)"],
        *["", "## The order of the five rows", "", *order_lines(answers, paper, facts)],
        *["", "## The claims, one by one", "", *claim_lines(scores)],
        *start_lines([row for row in rows if row["kind"] == FROM_BASE], scores.get("proper", {}), facts),
        *["", "## Copies of training notes", "", *copy_lines(answers)],
        *["", "## All stable at the last epoch?", "", *stable_lines(epochs), "", *published_lines()],
        *["", "## Does low rank need more epochs?", "", *curve_lines(curve), *trained_lines(curve, "seed")],
        *[
            "",
            "## Another order of the same list",
            "",
            *label_lines(labels),
            *trained_lines(labels, "label_seed"),
        ],
        *["", *columns.column_lines(columns_of(facts, answers), "##")],
        *["", "## Readmission", "", *readmission_lines(folder.parent)],
        *["", "## LoRA adaptation, then classification", "", *adaptation_lines(folder.parent)],
    ]
    return "\n".join([*sections, ""])


def run_lines(facts, kinds):
    """Lines: what each kind was run on."""
    lines = []
    for kind in kinds:
        of = facts[kind]
        sizes = ", ".join(f"{size} {split}" for split, size in of["sizes"].items())
        copies = (
            f", {of['copied']} of the test notes copies of training notes" if of["copied"] is not None else ""
        )
        rates = ", ".join(f"{name} {rate:g}" for name, rate in of["rates"].items() if rate)
        lines.append(
            f"- {KINDS[kind]}: {of['data']}, {of['model']}; {sizes} notes{copies}; "
            f"labels {', '.join(of['labels'])}; rates {rates}; {described(of['machine'])}; "
            f"commit {', '.join(of['commits'])}."
        )
    if "recipe" in kinds and "rate" not in kinds:
        lines += [
            "",
            "The recipe's rows have different learning rates, as in the authors' code, and their order is "
            "nearly that of the rates (below): in so few steps a low rate is far from done. So differences "
            "between rows are not those of the techniques. At one rate (`replication.sh rate`): not run.",
        ]
    return [*lines, ""]


def columns_of(facts, answers):
    """The three columns of run/columns.py: published, the recipe's and the proper answers scored again."""
    found = {"published": columns.published(ROOT / "reference"), "rerun": None, "proper": None}
    for kind, column in (("recipe", "rerun"), ("proper", "proper")):
        if kind not in answers:
            continue
        runs, names = answers[kind][0], facts[kind]["labels"]
        tests = [
            (technique, single_label(*runs[technique][seed], names)._asdict())
            for technique in runs
            for seed in runs[technique]
        ]
        found[column] = columns.together(tests) | facts[kind] | {"intervals": {}}
        found[column]["label_seed"] = facts[kind]["arguments"].get("label_seed", 0)
        seeds = sorted(next(iter(runs.values())))
        found[column]["seeds"] = seeds if column == "rerun" else len(seeds)
    return found


def trained_lines(rows, seed):
    """Lines: on what the runs of some rows were trained; by seeds, the cells so named, if that differs."""
    places = {}
    for row in rows:
        places.setdefault((row["machine"], row["commit"]), set()).add(row[seed])
    lines = []
    for (machine, commit), seeds in places.items():
        plural = f"{seed.replace('_', ' ').capitalize()}{'s' * (len(seeds) > 1)}"
        whose = f"{plural} {', '.join(map(str, sorted(seeds)))}: trained"
        lines += ["", f"{whose if len(places) > 1 else 'Trained'} on {machine}; commit {commit}."]
    return lines


def spread_lines(answers, scores, paper):
    """Lines: accuracy of each row over seeds, and how far seeds and techniques move it."""
    head, body, spans = ["row"], [], {}
    for kind in scores:
        head += [f"{KINDS[kind]}, accuracy", "least to most over seeds"]
    for name in FIVE:
        cells = [f"{name} (paper {paper[name]['Accuracy'][0]:.4f})"]
        for kind, members in scores.items():
            if name not in members:
                cells += ["", ""]
                continue
            scored, each = members[name]["Accuracy"], members[name]["Accuracy"].values
            spans.setdefault(kind, []).append(max(each) - min(each))
            cells += [mean_cell(scored, len(answers[kind][1])), f"{min(each):.4f} to {max(each):.4f}"]
        body.append(cells)
    lines = [*markdown_table(head, body), ""]
    for kind, found in spans.items():
        means = [fmean(members["Accuracy"].values) for members in scores[kind].values()]
        count = len(next(iter(answers[kind][0].values())))
        lines.append(
            f"- {KINDS[kind]}: by seed alone a row moves by {100 * fmean(found):.1f} points on average "
            f"({100 * max(found):.1f} at most, {count} seeds); the means of the rows are "
            f"{100 * (max(means) - min(means)):.1f} points apart. The paper's rows, one seed each: 2.3."
        )
    return lines


def by_seed(seeds, score):
    """One value of a score per seed."""
    return [float(weighted_scores(*a, np.ones((1, len(a[0]))))[score][0]) for _, a in sorted(seeds.items())]


def order_lines(answers, paper, facts):
    """Lines: Kendall's tau of the rows' order, between seeds, with the paper's, and with the rates'."""
    lines = [
        "Kendall's tau is 1 for the same order of the five rows and -1 for the reverse; orders drawn at "
        "random have 0 on average. Friedman's test asks whether the rows differ at all on these test notes. "
        "The last column compares the rows' order with that of their learning rates alone.",
        "",
    ]
    body = [
        order_cells(kind, runs, score, paper, facts[kind]["rates"])
        for kind, (runs, *_) in answers.items()
        for score in ("Accuracy", "F1", "AUROC")
        if len(runs) > 2 and len(next(iter(runs.values()))) > 1
    ]
    head = [
        "",
        "tau between seeds, mean",
        "least to most",
        "Friedman's p",
        "tau with the paper",
        "with the rates",
    ]
    return [*lines, *(markdown_table(head, body) if body else ["Not enough seeds yet."])]


def order_cells(kind, runs, score, paper, rates):
    """The cells of order_lines for one kind of runs {technique: runs by seed} and one score."""
    names = [name for name in FIVE if name in runs]
    table = np.array([by_seed(runs[name], score) for name in names])  # (rows, seeds)
    between = [tau(a, b) for a, b in combinations(table.T, 2)]
    theirs = [tau(seed, [paper[name][score][0] for name in names]) for seed in table.T]
    rates = [rates.get(name) or 0 for name in names]
    test = scipy_stats.friedmanchisquare(*table) if np.ptp(table) else None
    by_rate = f"{fmean(tau(seed, rates) for seed in table.T):+.2f}" if len(set(rates)) > 1 else ""
    return [
        f"{KINDS[kind]}, {columns.WORDING[score]}", f"{fmean(between):+.2f}",
        f"{min(between):+.2f} to {max(between):+.2f}", f"{test.pvalue:.3g}" if test else "",
        f"{fmean(theirs):+.2f}", by_rate,
    ]  # fmt: skip


def tau(a, b):
    """Kendall's tau-b; 0 where one of the orders is all ties."""
    found = float(scipy_stats.kendalltau(a, b).statistic)
    return 0.0 if np.isnan(found) else found


def claim_lines(scores):
    """Lines: every claim on the order of the rows, for each kind a verdict and its differences in points."""
    body = [row for claim in CLAIMS for row in claim_rows(claim, scores)]
    rule = (
        "In points, better minus worse as the paper has it. A claim holds if every difference below it is "
        "significantly above 0 (paired t test, 5%). It is contradicted if one is significantly below 0 after "
        "Holm's correction for the differences of that claim. Else these runs cannot tell. Low rank done "
        "properly has five epochs here, as the paper's; they are too few for it (below), so what it loses is "
        "not what low rank must cost."
    )
    return [rule, "", *markdown_table(["the paper's claim", *(KINDS[kind] for kind in scores)], body)]


def start_lines(rows, proper, facts):
    """Lines: low rank that starts from the base run, beside the proper rows; none without such runs."""
    if not rows or not {"base", "lowrank"} <= proper.keys():
        return []
    runs, texts, _ = answers_of(rows)
    members = {
        "base": proper["base"],
        "low rank, from the pre-trained model": proper["lowrank"],
        "low rank, from the fine-tuned base": scored_rows(runs, texts)["lowrank"],
    }
    body = []
    for name, scored in members.items():
        found = apart(scored["F1"], proper["base"]["F1"])
        cells = [mean_cell(scored[score], len(texts)) for score in ("Accuracy", "F1", "AUROC")]
        body.append([name, *cells, "" if name == "base" else points(*found[:3])])
    header = ["done properly", "accuracy", "macro-F1", "AUROC", "macro-F1 from base, points"]
    told = (
        "The low-rank row above starts from the pre-trained model. Here it starts from the fine-tuned base "
        f"run and trains for {facts[FROM_BASE]['arguments']['epochs']} epochs more, on the same notes, with "
        "the same seeds and rank. So it is trained twice as long as base."
    )
    lines = ["", "## Low rank from the fine-tuned model", "", told, "", *markdown_table(header, body)]
    of = facts[FROM_BASE]
    return [*lines, "", f"Trained on {described(of['machine'])}; commit {', '.join(of['commits'])}."]


def mean_cell(scored, notes):
    """'0.9872 [0.961, 0.996]': a row's mean over seeds, with its interval; notes: how many were tested."""
    mean = fmean(scored.values)
    variance = stats.variance_of_mean(scored.values, scored.resampled, scored.clusters)
    low, high = stats.interval(mean, variance, notes)
    return f"{mean:.4f} [{low:.3f}, {high:.3f}]"


def copy_lines(answers):
    """Lines: accuracy on test notes whose text is in train, and on the others."""
    body = []
    for kind, (runs, _, copied) in answers.items():
        if not copied.any() or copied.all():
            continue
        for name in (name for name in FIVE if name in runs):
            cells = []
            for inside in (1, 0):
                right = [np.mean((p.argmax(1) == y)[copied == inside]) for y, p in runs[name].values()]
                cells.append(f"{fmean(right):.4f}")
            body.append([f"{KINDS[kind]}, {name}", *cells, f"{copied.sum()} / {(1 - copied).sum()}"])
    if not body:
        return ["No test note is a copy of a training note."]
    return markdown_table(["accuracy, mean over seeds", "copies", "other notes", "copies / others"], body)


def stable_lines(epochs):
    """Lines: how accuracy moves with the last epoch."""
    if not epochs:
        return ["Not run yet."]
    body, last = [], max(row["epoch"] for row in epochs)
    for kind in KINDS:
        for name in FIVE:
            runs = {}
            for row in epochs:
                if (row["kind"], row["technique"]) == (kind, name):
                    runs.setdefault(row["seed"], {})[row["epoch"]] = row["Accuracy"]
            moves = [run[last] - run[last - 1] for run in runs.values() if {last, last - 1} <= run.keys()]
            if moves:
                still = all(abs(bound) < 0.01 for bound in over_seeds(moves)[1:3])
                largest = f"{100 * max(map(abs, moves)):.1f}"
                cells = [points(*over_seeds(moves)[:3], digits=2), largest, HOLDS if still else "not shown"]
                body.append([f"{KINDS[kind]}, {name}", *cells])
    told = (
        f"Accuracy from epoch {last - 1} to {last}, in points: mean over seeds with Student's interval, and "
        "the largest move. It holds if the interval lies within one point. The learning rate falls to zero "
        "at the last step, so the last epoch hardly moves anything, whether or not more epochs would help."
    )
    return [told, "", *markdown_table(["row", "mean move", "largest", "stable"], body)]


def published_lines():
    """Lines: the authors' accuracy by epoch, one run each, and how far two of their base runs are apart."""
    rows, by_name = read_rows(ROOT / "reference" / "epochs.csv"), {}
    for row in rows:
        by_name.setdefault(row["technique"], {})[row["epoch"]] = row["accuracy"]
    epochs = sorted({row["epoch"] for row in rows})
    moves = {name: abs(run[epochs[-1]] - run[epochs[-2]]) for name, run in by_name.items()}
    far = max(moves, key=moves.get)
    told = (
        f"As published, one run each: in the last epoch no row moves by more than {100 * moves[far]:.1f} "
        f"points ({far}), {435 * moves[far]:.0f} of 435 notes. Table 1 has low rank at epoch 3, the "
        "other rows at epoch 5. The authors' files also hold two base runs on these notes: 401 and 407 right "
        "at epoch 5, 1.4 points apart, where the whole table spans 2.3; whether they had the same rate is "
        "not recorded."
    )
    body = [[name, *(f"{run[epoch]:.4f}" for epoch in epochs)] for name, run in by_name.items()]
    return [told, "", *markdown_table(["as published", *(f"epoch {epoch}" for epoch in epochs)], body)]


def curve_lines(rows):
    """Lines: macro-F1 of low rank and base by epochs, and what more epochs bring each."""
    if not rows:
        return ["Not run yet."]
    counts = sorted({row["epochs"] for row in rows})
    series = {}
    for row in rows:
        series.setdefault(row["rank"], {}).setdefault(row["epochs"], {})[row["seed"]] = row["F1"]
    body, rises, first, last = [], {}, counts[0], counts[-1]
    for rank, runs in sorted(series.items()):
        cells = [f"{fmean(runs[count].values()):.4f}" if count in runs else "" for count in counts]
        shared = sorted(runs.get(first, {}).keys() & runs.get(last, {}).keys())
        body.append([f"rank {rank}" if rank else "base", *cells])
        if last > first:
            moves = [runs[last][seed] - runs[first][seed] for seed in shared]
            body[-1].append(rise(moves))
            rises |= {rank: moves} if rank else {}
    told = f"{curve_conditions(rows)}{more_epochs(rises, first)}"
    head = ["", *(f"{count} epochs" for count in counts)]
    head += [f"{first} to {last} epochs, points"] if last > first else []
    return [told, "", *markdown_table(head, body)]


def curve_conditions(rows):
    """What the curve shows, in sentences."""
    seeds = len({row["seed"] for row in rows})
    brackets = "" if seeds == 1 else "; brackets: Student's interval over seeds"
    return (
        f"Macro-F1 on test, {'one seed' if seeds == 1 else f'mean of {seeds} seeds'}; in every run the "
        f"learning rate falls to zero at its end{brackets}. Another machine gives other figures for the same "
        "seed, above and here. Low rank here is real: each Linear of the encoder becomes two thin ones. In "
        "the authors' code it changes nothing, so its row there says nothing about epochs."
    )


def more_epochs(rises, first):
    """A sentence on the paper's claim, from {rank: gains by seed}; it opens with a blank."""
    if not rises:
        return ""
    claim = f' The claim "low rank needs more than {first} epochs"'
    judged = {rank: moves for rank, moves in rises.items() if len(moves) > 1}
    if not judged:
        return f"{claim} is not judged on one seed."
    found = verdict([over_seeds(moves) for moves in judged.values()])
    alone = [rank for rank, moves in judged.items() if over_seeds(moves)[1] > 0]
    together = " together" if len(judged) > 1 else ""
    if len(judged) > 1 and 0 < len(alone) < len(judged):
        together += f", though for rank {', '.join(map(str, alone))} alone more epochs do help"
    rest = "; the other ranks have one seed" if len(judged) < len(rises) else ""
    return f"{claim}: **{found}** for rank {', '.join(map(str, judged))}{together}{rest}."


def label_lines(rows):
    """Lines: which labels, how many notes and what scores other orders of the 40 symptoms give."""
    if not rows:
        return ["Not run yet."]
    body = [
        [str(row["label_seed"]), row["labels"], f"{row['notes']:,}", f"{row['copied']} / {row['test']}",
         f"{row['Accuracy']:.4f}", f"{row['F1']:.4f}"]
        for row in rows
    ]  # fmt: skip
    rates = ", ".join(sorted({f"{row['lr']:g}" for row in rows}))
    sets = [set(row["labels"].split(", ")) for row in rows]
    shared = sorted(set.intersection(*sets))
    told = (
        "The first symptom found is the label, and the order of the list is that of a Python `set`: it "
        f"changes with every process. {len(rows)} orders, one run of base each by the recipe but at a rate "
        f"of {rates} (so its scores are no match for the recipe's above), on the same file, give "
        f"{len(set(map(frozenset, sets)))} different sets of five labels; in all of them: "
        f"{', '.join(shared) or 'none'}."
    )
    head = ["label seed", "the five most frequent", "notes", "copies in test", "accuracy", "macro-F1"]
    return [told, "", *markdown_table(head, body)]


def draw_replication(folder):
    """seeds.png: each row's accuracy by seed, beside the paper's."""
    folder = Path(folder)
    rows = read_rows(folder / "answers.csv", names=("kind", "technique"))
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    paper = columns.published(ROOT / "reference")["overall"]
    figure, axes = plots.pyplot().subplots(
        1, len(kinds), figsize=(plots.WIDTH, 3.6), sharey=True, squeeze=False
    )
    for axis, kind in zip(axes[0], kinds, strict=True):
        runs, *_ = answers_of([row for row in rows if row["kind"] == kind])
        for place, name in enumerate(FIVE):
            look = {"color": plots.colour_of(name), "s": 22}
            if name in runs:
                values = by_seed(runs[name], "Accuracy")
                axis.scatter([place] * len(values), values, alpha=0.6, **look)
            axis.scatter([place + 0.3], [paper[name]["Accuracy"][0]], marker="x", **look)
        axis.set_xticks(range(len(FIVE)), FIVE, rotation=30, ha="right")
        axis.set_title(KINDS[kind], fontsize=11)
        axis.grid(alpha=0.2)
    axes[0][0].set_ylabel("accuracy by seed; x: the paper's")
    plots.save_figure(figure, folder / "seeds.png")


def main(argv=None, root=ROOT):
    """Write docs/replication.md and its plot, or check the page."""
    parser = Parser(prog="docs/replication.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--collect", default=None, help="results directory to make the files from first (none)"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if the page differs (off)"
    )
    args = parser.parse_args(argv)
    folder, page_path = Path(root) / "docs/results/replication", Path(root) / "docs/replication.md"
    if args.collect:
        collect(args.collect, folder)
    text = replication_page(folder)
    if args.check:
        if not page_path.exists() or page_path.read_text(encoding="utf-8") != text:
            sys.exit(
                "docs/replication.md: not what docs/results/replication/ says; run python docs/replication.py"
            )
        return
    plots.pyplot()  # said before anything is written, if matplotlib is missing
    write_whole(page_path, text)
    draw_replication(folder)
    print("docs/results/replication/ -> docs/replication.md and its plot")


if __name__ == "__main__":
    run_script(main)
