"""Sections of docs/replication.md on the other published systems, from their directories in docs/results/."""

from pathlib import Path

from files import read_json
from run.results import markdown_table, read_rows
from run.tables import described, in_points, with_interval

REFERENCE = Path(__file__).resolve().parent.parent / "reference"

READMISSION = {
    "readmission_layer0": "the recipe re-run: layer 0's [CLS], which no word changes, logistic regression",
    "readmission_last": "last layer's [CLS] of the encoder as it came, logistic regression",
    "readmission": "done properly: the encoder fine-tuned",
}


def readmission_lines(results):
    """Lines: readmission as published, by its recipe, and with the encoder read and trained."""
    published = {
        row["score"]: row["value"]
        for row in read_rows(REFERENCE / "overall.csv", names=("task", "score"))
        if row["task"] == "readmission"
    }
    body = [["as published: MIMIC, 3 days", "", f"{published['Accuracy']:.2f}", "not given"]]
    for name, wording in READMISSION.items():
        for row in read_rows(results / name / "results.csv", names=("technique", "techniques")):
            of = "" if row["technique"] == "base" else f", {row['technique']}"
            cells = [with_interval(row, score) for score in ("auroc", "accuracy")]
            body.append(
                [f"[{wording}](results.md#{name.replace('_', '-')}){of}", *cells, f"{row['majority']:.3f}"]
            )
    told = (
        "The published system is not compressed; what it reads is the question. Encounters of diabetes "
        "patients in place of MIMIC's notes, 30 days in place of 3, one seed. Compare the rows below the "
        "first."
    )
    return [told, "", *markdown_table(["", "AUROC", "accuracy", "always the majority"], body)]


# --- LoRA adaptation, then classification ------------------------------------------------------------

# directory: (name, published table, {run: published encoder}, {score: (wording, published row, in all_rows)})
TRIALS = {
    "stop_reasons_sets_20": (
        "stop reasons, label sets", "stop reasons", {"base": "plain", "adapted": "adapted"},
        {"microf1": ("micro-F1", "micro avg", "micro_f1"), "macrof1": ("macro-F1", "macro avg", "macro_f1")},
    ),
    "gender_20": (
        "gender", "gender", {"base": "plain", "learnt-1": "adapted"},
        {"accuracy": ("accuracy", "micro avg", "accuracy"), "f1": ("macro-F1", "macro avg", "f1")},
    ),
}  # fmt: skip


def adaptation_lines(results):
    """Lines: adaptation as published and here; classification after it as published, re-run, properly."""
    made = {name: told for name, told in TRIALS.items() if (results / name / "results.csv").exists()}
    body = [row for name, told in made.items() for row in trial_rows(results / name, *told)]
    head = ["20 epochs", "as published", "re-run, all rows", "re-run, held-out rows"]
    masked = ["LoRA adaptation", "documents", "epochs", "rate", "masked words right"]
    return [
        "The reference adapts an encoder to trial texts with LoRA of rank 1 at a rate of 3e-6, 10 times 5 "
        "epochs, then trains classifiers on it for 20 epochs. For stop reasons it scored all rows, those "
        "trained on included; the second column does that, too, the third scores held-out rows alone. Here "
        "the encoder was adapted at a rate of 1e-3, at which it learns. One seed each, so the brackets speak "
        "of these trained models. Texts, encoders and labels are others than published: compare within a "
        "column.",
        *("", *markdown_table(masked, masked_rows(results))),
        *("", *(markdown_table(head, body) if body else ["Not run yet."])),
        *("", LABELS, *saving_lines(results / "memory")),
    ]


LABELS = (
    "F1 of each label beside the published: [stop reasons](results.md#stop-reasons-sets-20-epochs), "
    "[gender](results.md#gender-20-epochs). As published gender has a fourth class of 58 rows, never "
    "answered, which lowers its macro-F1."
)


def masked_rows(results):
    """Rows of cells: accuracy on masked words as published after 5 and 50 epochs, and of our runs."""
    published = {row["epochs"]: row["accuracy"] for row in read_rows(REFERENCE / "mlm.csv")}
    body = [
        ["as published", "not given", str(epochs), "3e-06", f"{published[epochs]:.4f}"]
        for epochs in (min(published), max(published))
    ]
    path = results / "adaptation_paper/results.csv"
    facts = read_json(path.with_suffix(".json")) if path.exists() else {}
    for row in read_rows(path, names=("technique", "techniques")):
        settings = facts["settings"] | facts["differing"].get(row["technique"], {})
        of = f"[{row['technique']}](results.md#adaptation-paper)"
        size, accuracy = f"{facts['data']['sizes']['train']:,}", with_interval(row, "accuracy")
        body.append([of, size, settings["epochs"], settings["lr"], accuracy])
    return body


def trial_rows(folder, name, table, encoders, scores):
    """Rows of cells: each score of the plain and the adapted encoder, and what adaptation gained."""
    published = {
        (row["encoder"], row["label"]): row["f1"]
        for row in read_rows(REFERENCE / "trials.csv", names=("table", "encoder", "label"))
        if row["table"] == table
    }
    held = {row["technique"]: row for row in read_rows(folder / "results.csv", ("technique", "techniques"))}
    whole = {run: read_json(folder / f"all_rows_{run}.json") for run in encoders}
    body = []
    for score, (wording, average, stored) in scores.items():
        gained = {"published": [], "whole": [], "held": []}
        for run, encoder in encoders.items():
            theirs, ours = published[encoder, average], whole[run][f"eval_{stored}"]
            cells = [f"{theirs:.4f}", f"{ours:.4f}", with_interval(held[run], score)]
            body.append([f"{name}, {wording}, {encoder}", *cells])
            for kind, value in zip(gained, (theirs, ours, held[run][score]), strict=True):
                gained[kind].append(value)
        body.append(["adapted less plain, points", *(in_points(b - a) for a, b in gained.values())])
        last = held[list(encoders)[-1]]
        if score == next(iter(scores)) and "from_base_low" in last:  # the score that is tested
            low, high = (in_points(last[f"from_base_{end}"]) for end in ("low", "high"))
            body[-1][-1] += f" [{low}, {high}]"
    return body


def saving_lines(folder):
    """Lines: what LoRA saves of a training's time and memory; none if that was not measured."""
    if not (folder / "memory.csv").exists():
        return []
    rows = {row["row"]: row for row in read_rows(folder / "memory.csv", names=("row",))}
    every, lora = rows["all weights"], rows["LoRA, rank 1"]
    faster = lora["tokens_per_s"] / every["tokens_per_s"]
    less = 100 * (1 - lora["peak_bytes"] / every["peak_bytes"])
    machine = described(read_json(folder / "benchmark.json")["machine"])
    return [
        "",
        f"In training LoRA of rank 1 takes {faster:.2f} times the tokens per second of all weights, and "
        f"{less:.0f}% less memory: {lora['peak_bytes'] / 1e9:.1f} of {every['peak_bytes'] / 1e9:.1f} GB "
        f"(BERT-base's size, {machine}; [results.md](results.md#training-memory)). The merged model is as "
        "large and as slow as base.",
    ]
