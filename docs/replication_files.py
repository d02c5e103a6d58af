"""Runs -> the files in docs/results/replication/, for docs/replication.py --collect.

epochs.csv    scores of the test notes after each epoch of each recipe run
answers.csv   probabilities of each run for each test note; no text, no row id
labels.csv    base by the recipe under other orders of the 40 symptoms
lowrank.csv   low rank and base, trained properly, by rank and epochs
facts.json    of the recipe, at one rate, done properly: data, labels, counts, rates, machine
"""

from pathlib import Path

from cli import BadInput
from files import read_json, write_json
from metrics import OVERALL
from run import checkpoint, columns
from run.results import read_table, shown, write_rows
from run.tables import described
from run.untrusted import LOADED, RERUN, read_run

FIVE = ("base", "distillation", "pruning", "lowrank", "quantization")  # the paper's order, best first
MADE_BY = ("machine", "commit")  # columns of labels.csv and lowrank.csv
FROM_BASE = "from base"  # further runs done properly: low rank that starts from the base run


def collect(source, folder):
    """Write the files of docs/results/replication/ from the runs in a results directory.

    What the files hold of runs that the directory lacks stays there.
    """
    source = Path(source)
    runs, further = runs_of_kinds(source), further_runs(source)
    if not (runs or further):
        raise BadInput(f"{source}: no runs in there; bash experiments/replication.sh makes them")
    folder.mkdir(parents=True, exist_ok=True)
    epochs = [row for kind in ("recipe", "rate") for row in epoch_rows(kind, runs.get(kind, ()))]
    answers = [row for kind in runs for row in answer_rows(kind, runs[kind])]
    write_files(folder, epochs, answers, label_rows(further), curve_rows(further))
    kept = read_json(path) if (path := folder / "facts.json").exists() else {}
    write_json(path, {**kept, **{kind: kind_facts(found) for kind, found in runs.items()}})


def runs_of_kinds(source):
    """{kind: [(path, its run.json)]}: the five by the recipe, at one rate, properly; low rank from base."""
    places = {"recipe": source, "rate": source / "rate"}
    runs = {
        kind: [(p, read_run(p, *RERUN)) for p in columns.recipe_runs(place)] for kind, place in places.items()
    }
    for kind, names in (("proper", FIVE), (FROM_BASE, ("lowrank-from-base",))):
        runs[kind] = [
            (path, read_run(path, *LOADED, "test.overall", "data.sizes", "machine"))
            for path in sorted(source.glob("proper-*/*"))
            if checkpoint.is_finished(path) and path.name in names
        ]
    return {kind: found for kind, found in runs.items() if found}


def further_runs(source):
    """The same of base under other orders of the symptoms, and of low rank by epochs."""
    orders = [run for out in numbered(source, "labels") for run in columns.recipe_runs(out)]
    curve = [run for run in sorted(source.glob("lowrank-*/*")) if checkpoint.is_finished(run)]
    runs = {
        "labels": [(path, read_run(path, *RERUN)) for path in orders],
        "lowrank": [(path, read_run(path, *LOADED, "test.overall", "machine")) for path in curve],
    }
    return {kind: found for kind, found in runs.items() if found}


def write_files(folder, epochs, answers, labels, curve):
    """Write the tables; rows of other runs stay as they are."""
    for name, rows, keys in (
        ("epochs.csv", epochs, ["kind"]),
        ("answers.csv", answers, ["kind"]),
        ("labels.csv", labels, ["label_seed"]),
        ("lowrank.csv", curve, ["rank", "epochs", "seed"]),
    ):
        write_rows(folder / name, with_other_rows(folder / name, rows, keys))


def with_other_rows(path, rows, keys):
    """Rows, behind those that a file has of other runs: the cells of these keys tell runs apart."""
    new = {tuple(str(row[key]) for key in keys) for row in rows}
    return [*(row for row in read_table(path) if tuple(row[key] for key in keys) not in new), *rows]


def epoch_rows(kind, runs):
    """One row per run and epoch."""
    return [
        {"kind": kind, "technique": run["technique"], "seed": run["arguments"]["seed"], "epoch": row["Epoch"]}
        | {score: row[score] for score in OVERALL}
        for _, run in runs
        for row in run["history"]
    ]


def answer_rows(kind, runs):
    """One row per run and test note; notes and texts are numbered, so that nothing leads to a row."""
    rows = []
    for path, run in runs:
        names = run["task"]["labels"]
        for number, row in enumerate(read_table(path / "predictions.csv")):
            rows.append(
                {
                    "kind": kind, "technique": run["technique"], "seed": run["arguments"]["seed"],
                    "note": number, "text": int(row.get("same_text", number)),
                    "in_train": int(row.get("in_train", 0)), "label": names.index(row["label"]),
                }
                | {f"p{i}": round(float(row[f"p_{name}"]), 5) for i, name in enumerate(names)}
            )  # fmt: skip
    return rows


def numbered(source, name):
    """The directories name-1, name-2 and so on, in order of the numbers."""
    return sorted(source.glob(f"{name}-*"), key=lambda path: (len(path.name), path.name))


def label_rows(further):
    """One row per order of the symptoms."""
    return [
        {"label_seed": run["arguments"]["label_seed"], "labels": ", ".join(run["task"]["labels"])}
        | {
            "notes": run["data"]["notes"],
            "test": run["data"]["sizes"]["test"],
            "copied": run["data"]["copied"],
        }
        | {score: run["test"]["overall"][score] for score in OVERALL}
        | {"lr": run["learning_rate"]}
        | made_by(run)
        for _, run in further.get("labels", ())
    ]


def curve_rows(further):
    """One row per low-rank run, and per base run of as many epochs."""
    return [
        {
            "technique": run["technique"],
            "rank": run["arguments"]["rank"] if run["technique"] == "lowrank" else 0,
        }
        | {"epochs": run["arguments"]["epochs"], "seed": run["arguments"]["seed"]}
        | {score: run["test"]["overall"][score] for score in OVERALL}
        | made_by(run)
        for _, run in further.get("lowrank", ())
    ]


def made_by(run):
    """Cells on the machine and the commit of a run."""
    return {"machine": described(run["machine"]), "commit": run["machine"]["commit"]}


def kind_facts(runs):
    """What the runs of a kind have in common."""
    first = runs[0][1]
    keys = ("epochs", "batch_size", "max_length", "label_seed", "split_seed")
    return {
        "data": shown(first["arguments"]["data"]),
        "model": shown(first["arguments"]["model"]),
        "arguments": {key: first["arguments"].get(key) for key in keys},
        "labels": first["task"]["labels"],
        "sizes": first["data"]["sizes"],
        "rows": first["data"].get("rows"),
        "copied": first["data"].get("copied"),
        "rates": {run["technique"]: run.get("learning_rate") for _, run in runs},
        "machine": first["machine"],
        "commits": sorted({str(run["machine"]["commit"]) for _, run in runs}),
    }
