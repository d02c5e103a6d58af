"""What a run directory says of itself: predictions.csv, eval_metrics.json and the model card, README.md.

The card is made from the run's own facts and holds no row and no path above a directory's name. Its latency
comes later: benchmark.py writes it in. Baselines and runs of --recipe paper have cards, too: what differs by
how a run was made is its CardText.
"""

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCardData

from files import write_json, write_whole
from metrics import Scores
from run.results import (
    as_cell,
    calibration_cells,
    eval_metrics,
    group_metrics,
    markdown_table,
    shown,
    snake_case,
    write_predictions,
)
from run.seen import KEYS
from run.tables import described, formatted, split_sizes, with_interval
from tasks import demo
from tasks.task import listed

MOST_LABELS = 50  # rows of the table of labels
LATENCY = "Latency: not measured; it depends on the machine. `python benchmark.py RUN` writes it here."
METRICS = {"AUROC": "roc_auc", "Brier": "brier_score"}  # names on the hub, where they are others


class CardText(NamedTuple):
    """What a card says by how its run was made."""

    library: str | None  # that opens it, by its name on the hub
    how: tuple  # it was made: items
    cost: str  # bytes and parameters; empty where nothing was kept
    use: str  # which program reads it
    privacy: str
    limits: tuple = ()  # beside the task's and LIMITS


def write_run_files(path, task, record, examples, predictions):
    """predictions.csv of the test examples, eval_metrics.json and README.md of a trained run's directory.

    record: what run.json will hold, sizes included.
    """
    write_predictions(path, task, examples, predictions)
    plain = (path / "model.safetensors").exists()
    write_card(path, task, record, card_of_model(task, record, plain))


def write_card(path, task, record, text):
    """eval_metrics.json and README.md of a run directory."""
    scores = eval_metrics(Scores(**record["test"]), record["data"]["sizes"]["test"])
    write_json(path / "eval_metrics.json", {**scores, **group_metrics(record.get("groups", {}))})
    write_whole(path / "README.md", model_card(task, record, text))


def model_card(task, record, text):
    """The text of a model card with its front matter."""
    limits = [*task.limits(), *text.limits, *LIMITS]
    parts = [
        ["---", front_matter(task, record, text), "---", ""],
        [f"# {record['name']}: {task.name}", ""],
        [f"**{demo.BANNER}**", ""] if record["demonstration"] else [],
        what_it_is(task, text),
        data_lines(task, record),
        score_lines(task, record),
        use_lines(text),
        ["## Limits", "", *(f"- {limit}" for limit in limits), ""],
        ["## Privacy", "", text.privacy, ""],
    ]
    return "\n".join(line for part in parts for line in part)


def card_facts(task, record):
    """The card's facts as JSON, for programs (serve.py): what a run is, its data, scores, sizes, limits."""
    told, origin = record["arguments"], record.get("start") or record.get("teacher")
    test, data = record.get("test") or {}, record.get("data") or {}
    intervals = test.get("intervals") or {}
    kept = ("rows", "unit", "notes", "subjects", "splits")
    return {
        "name": record.get("name"),
        "task": task.name,
        "what": task.purpose,
        "technique": record["technique"],
        "from_run": Path(origin).name if origin else None,
        "model": shown(str(told.get("model"))),
        "max_length": told["max_length"],
        "labels": task.labels,
        "demonstration": record.get("demonstration"),
        "data": {"source": shown(str(told.get("data"))), **{name: data.get(name) for name in kept}},
        "scores": {
            score: {"value": value, "interval_95": intervals.get(score)}
            for score, value in (test.get("overall") or {}).items()
        },
        "calibration": calibration_cells(test.get("calibration")),
        "sizes": record.get("sizes"),
        "checksum": record.get("checksum"),
        "limits": [*task.limits(), *ELSEWHERE, *LIMITS],
        "privacy": PRIVACY,
    }


def front_matter(task, record, text):
    """The YAML of the Hugging Face hub. Licence and language are no facts of a run: correct them."""
    model = record["arguments"]["model"]
    hub_name = text.library and model.count("/") == 1 and not Path(model).exists()
    return ModelCardData(
        language="en",
        license="other",
        license_name="unknown",
        library_name=text.library,
        pipeline_tag=task.pipeline_tag,
        tags=["clinical", task.name, *record["technique"].split("+")],
        base_model=model if hub_name else None,
        metrics=[METRICS.get(score, snake_case(score)) for score in task.headline],
    ).to_yaml()


def what_it_is(task, text):
    """Lines: the task, how the run was made, the labels."""
    lines = [task.purpose, "", *(f"- {item}" for item in text.how)]
    labels = [f"- labels: {as_cell(listed(task.labels, MOST_LABELS))}"] if task.labels else []
    return [*lines, *labels, ""]


def data_lines(task, record):
    """Lines: where the rows went, and how many examples of each label the splits hold."""
    data = record["data"]
    rows = ", ".join(f"{count:,} {what}" for what, count in data["rows"].items() if count)
    of = f" of {data['subjects']:,} subjects" if data["subjects"] else ""
    lines = [
        *("## Data", ""),
        f"{shown(str(record['arguments']['data']))}: {rows} -> {data['notes']:,} {task.unit}{of}; "
        f"{split_sizes(data, task.unit)}.",
        "",
    ]
    splits, names = data["splits"], list(data["splits"]["train"])[:MOST_LABELS]
    body = [[name, *(f"{counts[name]:,}" for counts in splits.values())] for name in names]
    return [*lines, *(markdown_table(["label", *splits], body) if body else []), ""]


def score_lines(task, record):
    """Lines: the scores of the test split with their intervals, and calibration."""
    test = record["test"]
    row = dict(test["overall"])
    for score, (low, high) in (test["intervals"] or {}).items():
        row |= {f"{score}_low": low, f"{score}_high": high}
    body = [[task.headline.get(score, score), with_interval(row, score)] for score in task.overall]
    lines = [
        *("## Scores on the test split", ""),
        f"Brackets: 95% interval over the test {task.row_unit or task.unit}, those of one patient or "
        "document together; none of fewer than ten patients or documents.",
        "",
        *markdown_table(["score", "value"], body),
        "",
    ]
    if cells := calibration_cells(test["calibration"]):
        ece, brier = (formatted(cells[name]) for name in ("ece", "brier"))
        told = f"Calibration: of {task.sure_of}, ECE {ece}, Brier score {brier}"
        if "temperature" in cells:
            after = f"{formatted(cells['ece_scaled'])} and {formatted(cells['brier_scaled'])}"
            told += f"; after temperature scaling by {cells['temperature']:g}, fitted on validation, {after}"
        lines += [f"{told}.", ""]
    return lines


def use_lines(text):
    """Lines: bytes and latency, where anything was kept, and how to use it."""
    cost = [text.cost, "", LATENCY, ""] if text.cost else []
    return ["## Cost and use", "", *cost, text.use, ""]


def card_of_model(task, record, plain):
    """The CardText of a model that train.py trained. plain: whether plain transformers loads it, too."""
    told, origin, sizes = record["arguments"], record["start"] or record["teacher"], record["sizes"]
    loads = f"`{task.auto_class.__name__}.from_pretrained` loads it too." if plain else "transformers cannot."
    return CardText(
        library="transformers" if plain else "pytorch",
        how=(
            f"technique: {record['technique']}" + (f", from the run {Path(origin).name}" if origin else ""),
            f"model: {shown(str(told['model']))}; {told['max_length']} tokens per row",
        ),
        cost=f"{sizes['bytes']:,} bytes of weights, {sizes['parameters']:,} parameters, "
        f"{sizes['nonzero']:,} of them not zero.",
        use="`python predict.py RUN notes.csv` and `python evaluate.py RUN --data labelled.csv` load it; "
        + loads,
        privacy=PRIVACY,
        limits=ELSEWHERE,
    )


def write_latency(directory, row, unit="tokens"):
    """Replace the line on latency in a run's card by what benchmark.py measured.

    row: of benchmark.csv; unit: of its length. A card without that line, or in a directory that cannot be
    written, stays as it is.
    """
    path = Path(directory) / "README.md"
    if not path.exists() or not os.access(directory, os.W_OK):
        return
    measured = (
        f"Latency: one row of {row['length']} {unit} {row['p50_ms']:.1f} ms (median; 95% within "
        f"{row['p95_ms']:.1f}), batches of {row['batch']} {row['notes_per_s']:,.1f} rows/s; "
        f"{described(row)}, {row['device']}; {time.strftime('%Y-%m-%d')}."
    )
    before = path.read_text(encoding="utf-8")
    after = re.sub(r"^Latency: .*$", lambda _: measured, before, count=1, flags=re.MULTILINE)
    if after != before:
        write_whole(path, after)


ELSEWHERE = ("Before it reads notes of another source, score it there with evaluate.py.",)
LIMITS = (
    "The test notes are of the same source as the training notes. Notes of another hospital, another kind or "
    "another time are another matter.",
    "It is no medical device. Nobody has checked that its answers are safe to act on.",
)
PRIVACY = (
    "Weights can give parts of the training notes away to a determined reader. A model trained on "
    "credentialed notes, such as MIMIC's, must not be published: their data use agreement covers it. "
    f"`predictions.csv` and `{KEYS}` are about single notes; remove both before you pass this directory on, "
    "which works without them."
)
