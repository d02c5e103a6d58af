"""Results of many runs -> one table beside the paper's, and plots: python report.py results/symptoms

Writes results.csv, results.md and PNGs into the results directory. Reads run.json and predictions.csv of every finished
run there, and benchmark.csv if benchmark.py was run. Nothing is scored again.
"""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import checkpoint
import demo
from benchmark import find_runs
from data import BadInput, Parser, run_script, write_csv, write_whole
from metrics import OVERALL, accuracy_of, bootstrap_interval, macro_f1_of, mcnemar

REFERENCE = Path(__file__).parent / "reference"  # the paper's tables as data; SOURCE.md there says where they come from
ORDER = ("base", "pruning", "lowrank", "distillation", "quantization")


def read_table(path):
    """A CSV as a list of dicts; empty if there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def collect(out):
    """Rows of the report, one a run: scores, intervals, the test against base, sizes, timings, the paper's figures."""
    directories = sorted(find_runs([out]), key=lambda p: (ORDER.index(p.name) if p.name in ORDER else len(ORDER), p.name))
    paper = {row["technique"]: row for row in read_table(REFERENCE / "table1.csv")}
    facts = {path.name: checkpoint.read_json(path / "run.json") for path in directories}
    timings = {row["technique"]: row for row in read_table(Path(out) / "benchmark.csv")}
    for name in [name for name, row in timings.items() if name in facts and row.get("finished") != facts[name]["finished"]]:
        print(f"note: {name} was trained again after it was timed; its timings are left out, run benchmark.py again")
        del timings[name]
    right = {path.name: [row["label"] == row["predicted"] for row in read_table(path / "predictions.csv")] for path in directories}
    rows = []
    for name, run in facts.items():
        confusion = run["test"]["confusion"]
        row = {"technique": name, **{score.lower(): run["test"]["overall"][score] for score in OVERALL}}
        row["accuracy_low"], row["accuracy_high"] = bootstrap_interval(confusion, accuracy_of)
        row["f1_low"], row["f1_high"] = bootstrap_interval(confusion, macro_f1_of)
        if name != "base" and "base" in facts and run["data"]["split"] == facts["base"]["data"]["split"]:
            row["only_base_right"], row["only_this_right"], row["mcnemar_p"] = mcnemar(right["base"], right[name])  # same order
        row.update({f"paper_{s.lower()}": float(paper[name][s.lower()]) for s in OVERALL if name in paper})
        row.update(run["sizes"], train_seconds=run["train_seconds"], test_notes=int(np.sum(confusion)))
        row.update({column: float(timings[name][column]) for column in ("macs", "p50_ms", "p95_ms", "notes_per_s") if name in timings})
        rows.append(row)
    return rows, facts, timings


def cell(value, form="{:.4f}"):
    """A number in a table; empty where there is none."""
    return "" if value is None else form.format(value)


def times(text, better, worse):
    """'12.3 (4.56x)': a figure and how many times better it is than the first row's."""
    return f"{text} ({better / worse:.2f}x)" if better and worse else text


def p_value(p):
    """'= 0.31', or '< 0.001'."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def markdown_table(header, rows):
    """Lines of a Markdown table, numbers to the right."""
    return [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def shown(source):
    """A path or a name as a report may show it: of an absolute path the last two parts."""
    return "/".join(Path(source).parts[-2:]) if Path(source).is_absolute() else source


def as_markdown(rows, facts, timings):
    """The report as text: accuracy beside the paper's, cost beside base's, per label."""
    first = next(iter(facts.values()))
    test = first["data"]["splits"]["test"]
    total, machine = sum(test.values()), first["machine"]
    lines = [f"# {first['task']['task']}: {len(rows)} runs on {total} test notes", ""]
    if any(run["demonstration"] for run in facts.values()):
        lines += [f"**{demo.BANNER}**", ""]
    if len({run["data"]["split"] for run in facts.values()}) > 1:
        lines += ["**Not all runs were tested on the same notes; those that differ from base are not tested against it.**", ""]
    arguments = first["arguments"]
    lines += [
        f"Data {shown(arguments['data'])}, model {shown(arguments['model'])}, "
        f"batch {arguments['batch_size']}, {arguments['max_length']} tokens, seed {arguments['seed']}, split seed {arguments['split_seed']}. "
        f"Always answering {max(test, key=test.get)!r} scores {max(test.values()) / total:.4f}.",
        "",
        "## Scores on the test split, the paper's beside them",
        "",
        f"Brackets: 95% interval, bootstrap over the {total} test notes. Differs from base: notes that only base, only this run "
        "gets right, and the exact McNemar p-value. The paper's figures are of other notes (MIMIC-III, 435 test notes).",
        "",
    ]
    lines += markdown_table(
        ("technique", "accuracy", "macro-F1", "precision", "recall", "AUROC", "differs from base", "paper: accuracy / F1 / AUROC"),
        [
            [
                row["technique"],
                f"{cell(row['accuracy'])} [{row['accuracy_low']:.3f}, {row['accuracy_high']:.3f}]",
                f"{cell(row['f1'])} [{row['f1_low']:.3f}, {row['f1_high']:.3f}]",
                cell(row["precision"]), cell(row["recall"]), cell(row["auroc"]),
                f"{row['only_base_right']} / {row['only_this_right']}, p {p_value(row['mcnemar_p'])}" if "mcnemar_p" in row else "",
                " / ".join(f"{row[f'paper_{score}']:.3f}" for score in ("accuracy", "f1", "auroc") if "paper_f1" in row),
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
    published = {(row["symptom"], row["technique"]): row["f1"] for row in read_table(REFERENCE / "table2.csv")}
    lines += ["", "## F1 per label on the test split", "", "In brackets: the manuscript's Table II, where it has the label.", ""]
    lines += markdown_table(
        ("label", "test notes", *facts),
        [
            [label, str(test[label]),
             *(cell(run["test"]["per_label"][label]["F1"], "{:.3f}") + (f" ({float(published[label, name]):.3f})" if (label, name) in published else "")
               for name, run in facts.items())]
            for label in test
        ],
    )  # fmt: skip
    lines += ["", f"Trained on {machine['cpu']}, {machine['threads']} threads, GPU {machine['gpu'] or 'none'}; commit {machine['commit']}.", ""]
    return "\n".join(lines)


def differing(facts):
    """Lines that name the arguments, other than a technique's own, in which runs differ from the first."""
    first = next(iter(facts.values()))["arguments"]
    lines = []
    for name, run in facts.items():
        other = [f"{key} {value}" for key, value in run["arguments"].items() if key in first and value != first[key]]
        if other:
            lines += ["", f"**{name} was trained with another {', '.join(other)}.**"]
    return lines


# --- plots -------------------------------------------------------------------------------------------------------


def save_figure(figure, path):
    """Write a PNG under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, bbox_inches="tight", format="png")
    plt.close(figure)
    temporary.rename(path)


def plot_trade(rows, path):
    """Accuracy with its interval against latency; the area of a marker is its bytes."""
    timed = [row for row in rows if "p50_ms" in row]
    figure, axes = plt.subplots(figsize=(8, 5))
    largest = max(row["bytes"] for row in timed)
    for color, row in zip(plt.get_cmap("tab10").colors * 9, timed):
        x, y = row["p50_ms"], row["accuracy"]
        axes.errorbar(x, y, [[y - row["accuracy_low"]], [row["accuracy_high"] - y]], color="black", alpha=0.6, linewidth=1, capsize=3, zorder=3)
        axes.scatter(x, y, s=900 * row["bytes"] / largest, color=color, alpha=0.55, edgecolor="black", zorder=2)
        axes.scatter([], [], color=color, label=f"{row['technique']}: {row['bytes'] / 1e6:.1f} MB, {x:.1f} ms, {y:.3f}")
    axes.set(xlabel="latency, one note at batch 1, p50 (ms)", ylabel="accuracy on the test split, 95% interval",
             title="Accuracy against latency; marker area = bytes on disk")  # fmt: skip
    axes.margins(y=0.12)
    axes.set_xlim(-0.06 * max(row["p50_ms"] for row in timed), 1.12 * max(row["p50_ms"] for row in timed))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    save_figure(figure, path)


def plot_curves(facts, path):
    """Validation macro-F1 and training loss by epoch, for the runs that were trained."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for index, (name, run) in enumerate(facts.items()):
        style = {"marker": "o^sDvP*X"[index % 8], "markersize": 11 - 2 * (index % 4), "alpha": 0.7, "label": name}  # lines may coincide
        epochs = [row["Epoch"] for row in run["history"]]
        if epochs:
            left.plot(epochs, [row["F1"] for row in run["history"]], **style)
            right.plot(epochs, [row["Loss"] for row in run["history"]], **style)
    left.set(xlabel="epoch", ylabel="macro-F1 on validation", title="Validation")
    right.set(xlabel="epoch", ylabel="mean loss (a technique's own)", title="Training")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    left.legend()
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
    rows, facts, timings = collect(out)
    if len({tuple(run["task"]["labels"]) for run in facts.values()}) > 1:
        raise BadInput(f"{out}: its runs have different labels; report them from separate results directories")
    header = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(out / "results.csv", header, [[row.get(column) for column in header] for row in rows])
    text = as_markdown(rows, facts, timings)
    write_whole(out / "results.md", text)
    if any("p50_ms" in row for row in rows):
        plot_trade(rows, out / "accuracy_latency.png")
    plot_curves(facts, out / "learning_curves.png")
    for name, run in facts.items():
        plot_confusion(name, run["test"]["confusion"], run["task"]["labels"], out / f"confusion_{name}.png")
    print(text)


if __name__ == "__main__":
    run_script(main)
