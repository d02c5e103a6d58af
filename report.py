"""Results of many runs -> one table beside the paper's, and plots: python report.py results/symptoms

Writes results.csv, results.md and PNGs into the results directory. Reads run.json and predictions.csv of every finished
run there, and benchmark.csv if benchmark.py was run. Nothing is scored again.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import files
from cli import BadInput, Parser, run_script
from files import write_csv, write_whole
from metrics import OVERALL, calibration, mcnemar
from run import checkpoint
from run.plots import save_figure
from run.results import find_runs, markdown_table, read_table, shown
from tasks import TASKS, demo

REFERENCE = Path(__file__).parent / "reference"  # the paper's tables as data; SOURCE.md there says where they come from
ORDER = ("base", "lora", "pruning", "lowrank", "distillation", "quantization")






def collect(out):
    """(task, rows of the report, {run: run.json}, {run: timings}): scores, intervals, the test against base, sizes, the paper's figures."""
    directories = sorted(find_runs([out]), key=lambda p: (ORDER.index(p.name) if p.name in ORDER else len(ORDER), p.name))
    facts = {path.name: files.read_json(path / "run.json") for path in directories}
    tasks = [TASKS[run["task"]["task"]].from_facts(run["task"]) for run in facts.values()]
    if len({(task.name, *task.labels, *task.overall) for task in tasks}) > 1:
        raise BadInput(f"{out}: its runs have different tasks or labels; report them from separate results directories")
    task = tasks[0]
    paper = {row["technique"]: row for row in read_table(REFERENCE / "table1.csv") if task.name == "symptoms"}
    timings = {row["technique"]: row for row in read_table(Path(out) / "benchmark.csv")}
    for name in [name for name, row in timings.items() if name in facts and row.get("finished") != facts[name]["finished"]]:
        print(f"note: {name} was trained again after it was timed; its timings are left out, run benchmark.py again")
        del timings[name]
    right = {path.name: [row["label"] == row["predicted"] for row in read_table(path / "predictions.csv")] for path in directories}
    rows = []
    for name, run in facts.items():
        row = {"technique": name, **{score.lower(): run["test"]["overall"][score] for score in task.overall}}
        for score, (low, high) in run["test"]["intervals"].items():
            row[f"{score.lower()}_low"], row[f"{score.lower()}_high"] = low, high
        if name != "base" and right.get("base") and run["data"]["split"] == facts["base"]["data"]["split"]:
            row["only_base_right"], row["only_this_right"], row["mcnemar_p"] = mcnemar(right["base"], right[name])  # same order
        row.update({f"paper_{s.lower()}": float(paper[name][s.lower()]) for s in OVERALL if name in paper})
        row.update(run["sizes"], train_seconds=run["train_seconds"], test_notes=run["data"]["sizes"]["test"])
        row.update({column: float(timings[name][column]) for column in ("macs", "p50_ms", "p95_ms", "notes_per_s") if name in timings})
        rows.append(row)
    return task, rows, facts, timings


def cell(value, form="{:.4f}"):
    """A number in a table; empty where there is none."""
    return "" if value is None else form.format(value)


def times(text, better, worse):
    """'12.3 (4.56x)': a figure and how many times better it is than the first row's."""
    return f"{text} ({better / worse:.2f}x)" if better and worse else text


def p_value(p):
    """'= 0.31', or '< 0.001'."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"






def with_interval(row, score):
    """'0.9321 [0.907, 0.954]', the brackets only if the score has an interval."""
    name = score.lower()
    return cell(row[name]) + (f" [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]" if f"{name}_low" in row else "")


def as_markdown(task, rows, facts, timings):
    """The report as text: scores beside the paper's, cost beside base's, per label."""
    first = next(iter(facts.values()))
    test, total, machine = first["data"]["splits"]["test"], first["data"]["sizes"]["test"], first["machine"]
    lines = [f"# {task.name}: {len(rows)} run{'s' * (len(rows) != 1)} on {total} test {task.unit}", ""]
    if any(run["demonstration"] for run in facts.values()):
        lines += [f"**{demo.BANNER}**", ""]
    if len({run["data"]["split"] for run in facts.values()}) > 1:
        lines += [f"**Not all runs were tested on the same {task.unit}; those that differ from base are not tested against it.**", ""]
    arguments, paper = first["arguments"], any("paper_f1" in row for row in rows)
    always = f" Always answering {max(test, key=test.get)!r} scores {max(test.values()) / total:.4f}." if first["test"]["confusion"] else ""
    lines += [
        f"Data {shown(arguments['data'])}, model {shown(arguments['model'])}, batch {arguments['batch_size']}, {arguments['max_length']} "
        f"tokens, seed {arguments['seed']}, split seed {arguments['split_seed']}.{always}",
        "",
        "## Scores on the test split" + (", the paper's beside them" if paper else ""),
        "",
        f"Brackets: 95% interval, bootstrap over {task.resampled or f'the {total} test {task.unit}'}. "
        f"Differs from base: {task.unit} that only base, only this run "
        "gets right, and the exact McNemar p-value."
        + (" The paper's figures are of other notes (MIMIC-III, 435 test notes)." if paper else ""),
        "",
    ]
    lines += [task.published, ""] if task.published else []
    header = [
        "technique",
        *(task.headline.get(score, {"Precision": "precision", "Recall": "recall"}.get(score, score)) for score in task.overall),
        "differs from base",
    ]
    lines += markdown_table(
        header + ["paper: accuracy / F1 / AUROC"] * paper,
        [
            [
                row["technique"],
                *(with_interval(row, score) for score in task.overall),
                f"{row['only_base_right']} / {row['only_this_right']}, p {p_value(row['mcnemar_p'])}" if "mcnemar_p" in row else "",
                *[" / ".join(f"{row[f'paper_{score}']:.3f}" for score in ("accuracy", "f1", "auroc") if "paper_f1" in row)] * paper,
            ]
            for row in rows
        ],
    )  # fmt: skip
    conditions = next(iter(timings.values()), None)
    lines += differing(facts) + ["", "## Cost", ""]
    if conditions:
        places = {row["device"]: [name for name in timings if timings[name]["device"] == row["device"]] for row in timings.values()}
        where = " and ".join(place if len(places) == 1 else f"{place} ({', '.join(names)})" for place, names in places.items())
        lines += [
            f"{conditions['length']} tokens; latency at batch 1, throughput at batch {conditions['batch']}; medians of {conditions['rounds']} "
            f"alternating rounds on {where}, {conditions['threads']} threads, {conditions['cpu']}, torch {conditions['torch']}. "
            "In brackets: how many times better than the first row.",
            "",
        ]
    lines += markdown_table(
        ("technique", "MB on disk", "parameters", "nonzero", "multiply-adds a note", "p50 ms", "p95 ms", "notes/s", "training s"),
        [
            [
                row["technique"],
                times(f"{row['bytes'] / 1e6:.1f}", rows[0]["bytes"], row["bytes"]),
                f"{row['parameters']:,}", f"{row['nonzero']:,}",
                cell(row.get("macs"), "{:,.0f}"),
                times(cell(row.get("p50_ms"), "{:.1f}"), rows[0].get("p50_ms"), row.get("p50_ms")),
                cell(row.get("p95_ms"), "{:.1f}"),
                times(cell(row.get("notes_per_s"), "{:.1f}"), row.get("notes_per_s"), rows[0].get("notes_per_s")),
                cell(row["train_seconds"], "{:.0f}"),
            ]
            for row in rows
        ],
    )  # fmt: skip
    per_label = {name: run["test"]["per_label"] for name, run in facts.items()}
    if any(per_label.values()):
        published = {(row["symptom"], row["technique"]): row["f1"] for row in read_table(REFERENCE / "table2.csv") if paper}
        lines += ["", "## F1 per label on the test split", ""]
        lines += ["In brackets: the manuscript's Table II, where it has the label.", ""] if published else []
        lines += markdown_table(
            ("label", f"test {task.unit}" if "Support" not in task.per_label else "support", *facts),
            [
                [label, str(row.get("Support", test.get(label))),
                 *(cell(scores.get(label, {}).get("F1"), "{:.3f}") + (f" ({float(published[label, name]):.3f})" if (label, name) in published else "")
                   for name, scores in per_label.items())]
                for label, row in next(iter(per_label.values())).items()
            ],
        )  # fmt: skip
    lines += [
        "",
        f"Trained on {machine['cpu']}, {machine['threads']} threads, GPU {machine['gpu'] or 'none'}; commit {machine['commit']}.",
        "",
    ]
    return "\n".join(lines)


def differing(facts):
    """Lines that name the arguments, other than a technique's own, in which runs differ from the first."""
    first = next(iter(facts.values()))["arguments"]
    lines = []
    for name, run in facts.items():
        other = [f"{key} {shown(str(value))}" for key, value in run["arguments"].items() if key in first and value != first[key]]
        if other:
            lines += ["", f"**{name} was trained with another {', '.join(other)}.**"]
    return lines


# --- plots -------------------------------------------------------------------------------------------------------




def plot_trade(task, rows, path):
    """The task's first score with its interval against latency; the area of a marker is its bytes."""
    timed = [row for row in rows if "p50_ms" in row]
    score, wording = next(iter(task.headline.items()))
    name = score.lower()
    figure, axes = plt.subplots(figsize=(8, 5))
    largest = max(row["bytes"] for row in timed)
    for color, row in zip(plt.get_cmap("tab10").colors * 9, timed):
        x, y = row["p50_ms"], row[name]
        if y is None:
            continue
        bars = [[y - row[f"{name}_low"]], [row[f"{name}_high"] - y]] if f"{name}_low" in row else None
        axes.errorbar(x, y, bars, color="black", alpha=0.6, linewidth=1, capsize=3, zorder=3)
        axes.scatter(x, y, s=900 * row["bytes"] / largest, color=color, alpha=0.55, edgecolor="black", zorder=2)
        axes.scatter([], [], color=color, label=f"{row['technique']}: {row['bytes'] / 1e6:.1f} MB, {x:.1f} ms, {y:.3f}")
    axes.set(xlabel="latency, one note at batch 1, p50 (ms)", ylabel=f"{wording} on the test split, 95% interval",
             title=f"{wording[0].upper() + wording[1:]} against latency; marker area = bytes on disk")  # fmt: skip
    axes.margins(y=0.12)
    axes.set_xlim(-0.06 * max(row["p50_ms"] for row in timed), 1.12 * max(row["p50_ms"] for row in timed))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    save_figure(figure, path)


def plot_curves(task, facts, path):
    """The validation score that chooses the epoch, and training loss, by epoch, for the runs that were trained."""
    wording = task.headline.get(task.selection, task.selection)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for index, (name, run) in enumerate(facts.items()):
        style = {"marker": "o^sDvP*X"[index % 8], "markersize": 11 - 2 * (index % 4), "alpha": 0.7, "label": name}  # lines may coincide
        epochs = [row["Epoch"] for row in run["history"]]
        if epochs:
            left.plot(epochs, [row[task.selection] for row in run["history"]], **style)
            right.plot(epochs, [row["Loss"] for row in run["history"]], **style)
    left.set(xlabel="epoch", ylabel=f"{wording} on validation", title="Validation")
    right.set(xlabel="epoch", ylabel="mean loss (a technique's own)", title="Training")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    left.legend()
    save_figure(figure, path)


def plot_calibration(out, names, path):
    """Share of positives against the mean probability, in ten bins, a line a run; below, how many test rows each bin has."""
    figure, (axes, below) = plt.subplots(2, 1, figsize=(6, 7), sharex=True, height_ratios=(3, 1))
    axes.plot((0, 1), (0, 1), color="gray", linestyle="--", linewidth=1, label="perfect")
    for index, name in enumerate(names):
        rows = read_table(out / name / "predictions.csv")
        column = list(rows[0])[-1]  # the probability of the second class
        positive = np.array([column == f"p_{row['label']}" for row in rows])
        said, seen, count = zip(*calibration(positive, np.array([float(row[column]) for row in rows])))
        axes.plot(said, seen, marker="o^sDvP*X"[index % 8], alpha=0.7, label=name)
        below.plot(said, count, marker="o^sDvP*X"[index % 8], linestyle=":", alpha=0.7)
    axes.set(ylabel="share of positives among them", title="Calibration on the test split")
    below.set(xlabel="mean probability in the bin", ylabel="test rows", yscale="log", xlim=(0, 1))
    axes.legend()
    for part in (axes, below):
        part.grid(alpha=0.3)
    save_figure(figure, path)


def plot_confusion(name, confusion, labels, path):
    """Counts of true against predicted labels, shaded by the share of the true label."""
    counts = np.array(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(1.6 + 0.8 * len(labels), 1.2 + 0.8 * len(labels)))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(counts.shape):
        axes.text(j, i, counts[i, j], ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="label", title=f"{name}, test split")
    save_figure(figure, path)


def main(argv=None):
    """Write the report of a results directory."""
    parser = Parser(prog="report.py", description=__doc__.splitlines()[0])
    parser.add_argument("results", help="results directory, such as results/symptoms")
    args = parser.parse_args(argv)
    out = Path(args.results)
    if checkpoint.is_finished(out):
        raise BadInput(f"{out}: is a single run; name the results directory it stands in")
    task, rows, facts, timings = collect(out)
    header = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(out / "results.csv", header, [[row.get(column) for column in header] for row in rows])
    text = as_markdown(task, rows, facts, timings)
    write_whole(out / "results.md", text)
    if any("p50_ms" in row for row in rows):
        plot_trade(task, rows, out / "accuracy_latency.png")
    plot_curves(task, facts, out / "learning_curves.png")
    if "Brier" in task.overall:
        plot_calibration(out, list(facts), out / "calibration.png")
    for name, run in facts.items():
        if not run["test"]["confusion"] or len(task.labels) > 20:
            continue
        plot_confusion(name, run["test"]["confusion"], run["task"]["labels"], out / f"confusion_{name}.png")
    print(text)


if __name__ == "__main__":
    run_script(main)
