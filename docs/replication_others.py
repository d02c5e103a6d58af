"""Sections of docs/replication.md on the other published systems, from their directories in docs/results/."""

from pathlib import Path

from files import read_json
from run.results import markdown_table, read_rows
from run.tables import described, formatted, in_points, p_value, with_interval

REFERENCE = Path(__file__).resolve().parent.parent / "reference"

READMISSION = {
    "readmission_layer0": "the recipe re-run: layer 0's [CLS], which no word changes, logistic regression",
    "readmission_last": "last layer's [CLS] of the encoder as it came, logistic regression",
    "readmission": "done properly: the encoder fine-tuned, its rate chosen on validation",
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
        made = results / name / "results.csv"
        for found in read_rows(made if made.exists() else results / name / "sweep.csv"):
            row = {column.lower(): cell for column, cell in found.items()}
            run = row.get("technique") or row["run"]  # of a report, of a sweep
            of = "" if run == "base" else f", {run}"
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

# directory: (name, published table, how the encoder was adapted, {run: published encoder or None},
#             {our score: (wording, published row, name in all_rows_RUN.json)}); the first run is plain
TRIALS = {
    "stop_reasons_sets_20": (
        "stop reasons, label sets", "stop reasons", "3 epochs on a quarter of the trials",
        {"base": "plain", "adapted": "adapted"},
        {"microf1": ("micro-F1", "micro avg", "micro_f1"), "macrof1": ("macro-F1", "macro avg", "macro_f1")},
    ),
    "gender_20": (
        "gender", "gender", "4 epochs on all trials",
        {"base": "plain", "plain-2": None, "learnt-1": "adapted"},
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
        "epochs. At that rate MiniLM, which comes without an output layer for masked words, learns next to "
        "nothing:",
        *("", *markdown_table(masked, masked_rows(results)), ""),
        "Then it trains classifiers on the encoder for 20 epochs. For stop reasons it scored all rows, those "
        "trained on included; the second column does that, too, the third scores held-out rows alone. Our "
        f"encoders were adapted at 1e-3: {'; '.join(f'{told[0]}, {told[2]}' for told in TRIALS.values())}. "
        "The brackets speak of these trained models, and of stop reasons the two were trained with other "
        "seeds and on other machines. Texts, encoders and labels are others than published: compare within a "
        "column.",
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


def trial_rows(folder, name, table, _, encoders, scores):
    """Rows of cells: each score of the plain and the adapted encoder, and what adaptation gained."""
    published = {
        (row["encoder"], row["label"]): row["f1"]
        for row in read_rows(REFERENCE / "trials.csv", names=("table", "encoder", "label"))
        if row["table"] == table
    }
    rows = read_rows(folder / "results.csv", ("technique", "techniques"))
    held, facts = {row["technique"]: row for row in rows}, read_json(folder / "results.json")
    whole, body = {run: read_json(folder / f"all_rows_{run}.json") for run in encoders}, []
    for score, (wording, average, stored) in scores.items():
        found = {}
        for run, encoder in encoders.items():
            seed = (facts["settings"] | facts["differing"].get(run, {}))["seed"]
            found[run] = published.get((encoder, average)), whole[run][f"eval_{stored}"], held[run][score]
            cells = [formatted(found[run][0]), formatted(found[run][1]), with_interval(held[run], score)]
            body.append([f"{name}, {wording}, {encoder or 'plain'}, seed {seed}", *cells])
        plain, last = list(encoders)[0], list(encoders)[-1]
        gained = [in_points(b - a) for a, b in zip(found[plain], found[last], strict=True)]
        body.append(["adapted less plain, points", *gained])
        if score == next(iter(scores)) and "told" in held[last]:  # the score that is tested
            low, high = (in_points(held[last][f"from_base_{end}"]) for end in ("low", "high"))
            told = "not significant" if held[last]["told"] == "no" else held[last]["told"]
            body[-1][-1] += f" [{low}, {high}], {told}, Holm's p {p_value(held[last]['p_holm'])}"
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
