"""docs/results.md, and a table each in README.md and docs/engines.md: python docs/results.py

All are made from the files in docs/results/. With --check it writes nothing and exits with 1 if one differs
from what these files say. It reads what is there:
    NAME/sweep.csv, sweep.json        as sweep.py writes them
    NAME/results.csv, results.json    as report.py writes them
    NAME/PART.csv, benchmark.json     as benchmark.py writes them
"""

import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cli import BadInput, Parser, run_script  # noqa: E402
from files import read_json, write_whole  # noqa: E402
from run import plots, tables  # noqa: E402
from run.results import markdown_table, read_rows  # noqa: E402

IN_README = "stop_reasons"  # the sweep whose table stands in README.md
MARKS = "<!-- results -->", "<!-- /results -->"
HEAD = """# Results

Made by `python docs/results.py` from the files in [docs/results/](results/), so do not edit this page.
Where the data come from: [experiments/data.md](../experiments/data.md). Run each command from the top folder.
"""


def found(folder, data):
    """{name: (rows, facts)} of the results of one kind, 'sweep' or 'results', by name."""
    paths = sorted(Path(folder).glob(f"*/{data}.csv"))
    return {path.parent.name: (read_rows(path), read_json(path.with_suffix(".json"))) for path in paths}


def heading(name):
    """'stop_reasons' -> 'Stop reasons'."""
    names = {
        "mtsamples": "MTSamples",
        "maccrobat": "MACCROBAT",
        "ncbi": "NCBI disease",
        "gender_20": "Gender, 20 epochs",
        "stop_reasons_sets_20": "Stop reasons sets, 20 epochs",
        "gpu": "GPU",
        "memory": "Training memory",
        "shape": "BERT-base beside other engines, on an EPYC of family 25",
        "shape_short": "BERT-base, 16 tokens, on an EPYC of family 25",
        "shape_amx": "BERT-base beside other engines, on a CPU with AMX",
        "shape_short_amx": "BERT-base, 16 tokens, on a CPU with AMX",
        "shape_zen5": "BERT-base beside other engines, on an EPYC of family 26",
        "shape_short_zen5": "BERT-base, 16 tokens, on an EPYC of family 26",
    }
    return names.get(name, name.replace("_", " ").capitalize())


PLACES = (
    "{base} is the base run of the same seed, {runs} the folder of that seed's runs, "
    "{half} half the number of epochs, {3x} three times that number:"
)

# --- docs/results.md ------------------------------------------------------------------------------


def page(root):
    """The text of docs/results.md."""
    folder = Path(root) / "docs" / "results"
    sections = [sweep_section(root, name, *data) for name, data in found(folder, "sweep").items()]
    sections += [report_section(root, name, *data) for name, data in found(folder, "results").items()]
    sections += [speed_section(root, path.parent) for path in sorted(folder.glob("*/benchmark.json"))]
    return "\n".join([HEAD, *("\n".join([*section, ""]) for section in sections)])


def published_name(name):
    """The name in experiments/ of figures: those of another kind of CPU, such as shape_amx, have the same."""
    for end in CPUS:
        name = name.removesuffix(end)
    return name


def command(root, name, script):
    """Lines of a code block: the command with the arguments in experiments/, if they are there."""
    name = published_name(name)
    if not (Path(root) / "experiments" / f"{name}.args").exists():
        return []
    return ["```bash", f"python {script} @experiments/{name}.args", "```", ""]


def flags_and_values(words):
    """{flag: its values in one text} of arguments; one with blanks is a value."""
    found, flag = {}, None
    for word in words:
        name, _, value = word.partition("=")
        flag, value = (name, value) if name.startswith("--") and " " not in name else (flag, word)
        found[flag] = f"{found.get(flag, '')} {value}".strip()
    return found


def outdated(root, name, recorded, whole=False):
    """Lines: in which flags the arguments on record differ from those in experiments/ today.

    whole: the record holds nothing but what was told, so what it has besides differs, too.
    """
    path = Path(root) / "experiments" / f"{name}.args"
    if not path.exists():
        return []
    wanted, made = flags_and_values(shlex.split(path.read_text(), comments=True)), flags_and_values(recorded)
    flags = dict.fromkeys([*wanted, *(made if whole else ())])
    for flag in ("--out", *(["--only"] if "--only" not in wanted else [])):  # without it: all rows of a grid
        flags.pop(flag, None)
    other = [flag for flag in flags if not same_value(wanted.get(flag), made.get(flag))]
    return [f"**Not made again since its arguments changed: {', '.join(other)}.**", ""] if other else []


def same_value(ours, theirs):
    """Whether two values of a flag are the same, as text or as numbers."""
    try:
        return ours == theirs or float(ours) == float(theirs)
    except (TypeError, ValueError):  # one is no number, or not there
        return False


def sweep_arguments(rows, facts):
    """What a sweep was told, its own flags included."""
    seeds, models = facts["seeds"], [row["run"] for row in rows if tables.is_model(row, facts)]
    first = seeds == list(range(1, len(seeds) + 1))
    words = [*facts["arguments"], "--seeds", str(len(seeds)) if first else ",".join([*map(str, seeds), ""])]
    words += ["--folds", str(tables.folds_of(facts))] if tables.folds_of(facts) > 1 else []
    words += ["--subgroups", facts["subgroups"]] if facts.get("subgroups") else []
    words += ["--only", ",".join(models)]
    if facts.get("search"):
        words += ["--search", *(f"{name}={','.join(of)}" for name, of in facts["search"]["given"].items())]
    return words + ["--baselines"] * (len(models) < len(rows))


def sweep_section(root, name, rows, facts):
    """Lines on a sweep: command, conditions, tables, plots, what each row was told."""
    score = facts["headline"][next(iter(facts["headline"]))]
    told = tables.told_words(facts)
    plotted = (
        f"![{heading(name)}: {score} against speed](results/{name}/sweep.png)",
        f"![{heading(name)}: {score} against bytes](results/{name}/sweep_bytes.png)",
    )
    return [
        *(f"## {heading(name)}", ""),
        *("```bash", f"python sweep.py @experiments/{name}.args", "```", ""),
        *outdated(root, name, sweep_arguments(rows, facts), whole=True),
        *(tables.sweep_conditions(facts), ""),
        *(*tables.sweep_table(rows, facts), ""),
        *(line for sentence in tables.told_lines(rows, facts) for line in (sentence, "")),
        *(plotted if sum(tables.is_model(row, facts) for row in rows) > 1 else ()),
        *("", *tables.sweep_details(rows, facts, "###")),
        *(f"What train.py was told for each run; {PLACES}", "", *told),
    ]


def report_section(root, name, rows, facts):
    """Lines on one report: command, tables, the plot of latency if the runs were timed."""
    lines = [
        f"## {heading(name)}",
        "",
        *command(root, name, "train.py"),
        *tables.report_body(rows, facts, "###"),
    ]
    if facts["timing"]:
        lines += ["", f"![{heading(name)}: score against latency](results/{name}/accuracy_latency.png)"]
    return lines


# --- what benchmark.py wrote ----------------------------------------------------------------------

# of each part: {column: (heading, form)}, the row to compare with, the columns in which it is compared
PARTS = {
    "shape": (
        {"row": ("BERT-base shape, random weights", "{}"), "bytes": ("MB", "{:.1f}"),
         "macs": ("M multiply-adds per note", "{:,.0f}"), "notes_per_s": ("notes/s", "{:,.1f}"),
         "p50_ms": ("p50 ms", "{:.1f}"), "p95_ms": ("p95 ms", "{:.1f}"),
         "peak_share": ("of fp32 peak", "{:.2f}")},
        "base, plain torch", ("notes_per_s", "p50_ms", "bytes"),
    ),
    "training": (
        {"row": ("training", "{}"), "notes": ("notes", "{:,}"),
         "tokens_per_note": ("tokens per note", "{:.0f}"),
         "notes_per_s": ("notes/s", "{:,.1f}"), "tokens_per_s": ("tokens/s", "{:,.0f}"),
         "peak_share": ("of fp32 peak", "{:.2f}")},
        "Trainer, its default padding", ("notes_per_s",),
    ),
    "memory": (
        {"row": ("training BERT-base", "{}"), "trained": ("trained parameters", "{:,}"),
         "tokens_per_s": ("tokens/s", "{:,.0f}"), "peak_bytes": ("peak memory, MB", "{:,.0f}")},
        "all weights", ("tokens_per_s", "peak_bytes"),
    ),
    "processes": (
        {"row": ("processes", "{}"), "tokens_per_s": ("tokens/s", "{:,.0f}"), "least": ("least", "{:,.0f}"),
         "most": ("most", "{:,.0f}"), "training_loss": ("training loss", "{:.4f}"),
         "test_loss": ("test loss", "{:.4f}")},
        "1 of one thread", ("tokens_per_s",),
    ),
    "volume": (
        {"notes": ("predict.py, notes", "{:,}"), "seconds": ("seconds", "{:.1f}"),
         "notes_per_s": ("notes/s", "{:,.0f}"), "peak_bytes": ("peak memory, MB", "{:.0f}")},
        None, (),
    ),
    "reading": (
        {"row": ("from CSV to", "{}"), "notes": ("notes", "{:,}"), "labelled": ("labelled", "{:,}"),
         "seconds": ("seconds", "{:,.1f}"), "cpu_seconds": ("CPU seconds", "{:,.1f}"),
         "notes_per_s": ("notes/s", "{:,.0f}"), "peak_bytes": ("peak memory, MB", "{:,.0f}")},
        None, (),
    ),
    "serving": (
        {"row": ("server", "{}"), "clients": ("clients", "{}"), "notes_per_s": ("notes/s", "{:,.1f}"),
         "p50_ms": ("p50 ms", "{:,.1f}"), "p99_ms": ("p99 ms", "{:,.1f}"),
         "cpu_ms": ("CPU ms per note", "{:,.1f}")},
        None, (),
    ),
    "gpu": (
        {"row": ("BERT-base shape, bf16", "{}"), "compiled": ("torch.compile", "{}"),
         "batch": ("batch", "{}"), "ms": ("ms", "{:,.2f}"), "tokens_per_s": ("tokens/s", "{:,.0f}"),
         "flops_per_s": ("TFLOP/s", "{:.0f}"), "peak_share": ("of bf16 peak", "{:.2f}"),
         "peak_bytes": ("peak memory, MB", "{:,.0f}")},
        None, (),
    ),
}  # fmt: skip
STUDENT = "distillation+quantization, 4 layers of 312"
HALVED = "distillation+pruning+quantization, 4 of 312, half"
BESIDE = {  # column of docs/engines.md: our row, OpenVINO's
    "base, bf16": ("bf16", "OpenVINO, bf16"),
    "base, int8": ("quantization", "OpenVINO, int8"),
    "structured half, int8": ("pruning+quantization", "OpenVINO, int8 of pruning+quantization"),
    "low rank, int8": ("lowrank+quantization", "OpenVINO, int8 of lowrank+quantization"),
    "low rank, bf16": ("lowrank+bf16", "OpenVINO, int8 of lowrank+quantization"),
    "4 x 312 student, int8": (STUDENT, f"OpenVINO, int8 of {STUDENT}"),
    "half of it, int8": (HALVED, f"OpenVINO, int8 of {HALVED}"),
    "half of it beside OpenVINO's base": (HALVED, "OpenVINO, int8"),
}
CPUS = {"": "EPYC, family 25", "_zen5": "EPYC, family 26", "_amx": "Xeon with AMX"}  # ends of folders' names
# what a column is shown in, if not in ones
UNITS = {"bytes": 1e6, "macs": 1e6, "peak_bytes": 1e6, "flops_per_s": 1e12}
LESS_IS_BETTER = ("bytes", "p50_ms", "peak_bytes")


def speed_section(root, folder):
    """Lines on what benchmark.py measured: its machine, then a table for each part and file."""
    facts = read_json(folder / "benchmark.json")
    lines = [f"## {heading(folder.name)}", "", *command(root, folder.name, "benchmark.py")]
    lines += outdated(root, published_name(folder.name), facts.get("arguments", []))
    lines += [f"{tables.described(facts['machine'])}; commit {facts['machine']['commit']}."]
    files = [
        (part, path)
        for part in PARTS
        for path in sorted(folder.glob(f"{part}*.csv"), key=lambda path: (len(path.name), path.name))
    ]
    for part, path in files:
        told = facts["conditions"].get(path.stem, facts["conditions"].get(part, ""))
        named = len(files) > 1 and path.stem != folder.name
        lines += ["", *([f"### {heading(path.stem.replace('-', ' '))}", ""] if named else [])]
        lines += speed_table(part, read_rows(path, names=("row",)), told)
    return lines


def speed_table(part, rows, told):
    """Lines of one table of benchmark.py, its conditions first; columns that a file lacks are left out."""
    columns, name, compared = PARTS[part]
    columns = {key: column for key, column in columns.items() if any(key in row for row in rows)}
    other = next((row for row in rows if row.get("row") == name), rows[0])
    if compared:
        told = f'{told} In brackets: how many times better than "{other["row"]}".'.strip()
    body = [
        [speed_cell(key, form, row, other if key in compared else {}) for key, (_, form) in columns.items()]
        for row in rows
    ]
    table = markdown_table([wording for wording, _ in columns.values()], body)
    return [*([told, ""] if told else []), *table]


def speed_cell(key, form, row, other):
    """One figure of a row, with how many times better it is than another row's; empty if the row has none."""
    value, theirs = row.get(key), other.get(key)
    if value is None:
        return ""
    better, worse = (theirs, value) if key in LESS_IS_BETTER else (value, theirs)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return tables.times(form.format(value / UNITS[key] if key in UNITS else value), better, worse)


# --- README.md ------------------------------------------------------------------------------------


def between_marks(path, lines):
    """The text of a page with lines between its marks. Raises BadInput if it lacks the marks."""
    before, opened, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, closed, after = rest.partition(MARKS[1])
    if not (opened and closed):
        raise BadInput(f"{path.name}: has no place for the table; put it between {MARKS[0]} and {MARKS[1]}")
    return "\n".join([before + MARKS[0], *lines, MARKS[1]]) + after


def readme(root):
    """README.md with the table of one sweep; as it is if that sweep is not there."""
    path, sweeps = Path(root) / "README.md", found(Path(root) / "docs" / "results", "sweep")
    if IN_README not in sweeps:
        return path.read_text(encoding="utf-8")
    return between_marks(path, short_table(*sweeps[IN_README]))


def short_table(rows, facts):
    """Lines: run, first score, points from base, bytes and times; what differs significantly; the conditions.

    Models and TF-IDF; the other baselines stand in docs/results.md.
    """
    base, score = tables.base_of(rows), tables.sweep_scores(rows, facts)[0]
    rows = [row for row in rows if tables.is_model(row, facts) or row["run"] == "tfidf"]
    scored, tested = f"{facts['headline'][score]} [95% interval]", any("told" in row for row in rows)
    header = ["run", scored, "points from base", "MB", f"{tables.row_unit(facts)}/s", "p50 ms"]
    body = []
    for row in rows:
        points, *more = tables.sweep_costs(row, base, score)
        body.append([row["run"], tables.with_interval(row, score), points, *more[tested:]])
    timing, data, machine = facts["timing"], facts["data"], tables.described(facts["machine"])
    conditions = (
        f"{tables.split_sizes(data, facts['unit'])}, {data['mean_tokens']:.0f} tokens on average; "
        f"{tables.mean_of(facts)}; times: seed {timing['seed']}, medians of "
        f"{tables.counted(timing['rounds'], 'round')}, {machine}; in brackets: times better than base."
    )
    return ["", *markdown_table(header, body), "", *told_in_short(rows, facts, score), conditions, ""]


def told_in_short(rows, facts, score):
    """Lines: which rows differ from base significantly, in one sentence; none if nothing was tested."""
    told = {way: [row["run"] for row in rows if row.get("told") == way] for way in ("better", "worse", "no")}
    if not any(told.values()):
        return []
    named = [
        f"significantly {way} than base: {', '.join(told[way])}" for way in ("better", "worse") if told[way]
    ]
    named += (
        ["the others do not differ from it significantly, which does not mean equal"] if told["no"] else []
    )
    said = f"By {facts['headline'][score]} {'; '.join(named)} ([evidence.md](docs/evidence.md))."
    return [said, ""]


# --- engines.md -----------------------------------------------------------------------------------


def beside_openvino(folder):
    """Lines: our speed as a share of OpenVINO's, by CPU and shape; [] without figures."""
    body = []
    for end, cpu in CPUS.items():
        for path in (folder / f"shape{end}" / "shape.csv", folder / f"shape_short{end}" / "shape.csv"):
            rows = {row["row"]: row for row in read_rows(path, names=("row",))} if path.exists() else {}
            for key, batch in (("notes_per_s", 16), ("p50_ms", 1)) if rows else ():
                length = rows["base"]["length"]
                cells = [speed_share(rows, ours, theirs, key) for ours, theirs in BESIDE.values()]
                body.append([f"{cpu}, {batch} x {length:.0f}", *cells])
    return ["", *markdown_table(["CPU, notes x tokens", *BESIDE], body), ""] if body else []


def speed_share(rows, ours, theirs, key):
    """'0.94': the speed of one row over another's; empty if one was not measured."""
    if not {ours, theirs} <= rows.keys():
        return ""
    first, second = rows[ours][key], rows[theirs][key]
    return f"{second / first if key in LESS_IS_BETTER else first / second:.2f}"


# --- all of it ------------------------------------------------------------------------------------


def wanted(root):
    """{path: the text it should have}."""
    docs = Path(root) / "docs"
    pages = {docs / "results.md": page(root), Path(root) / "README.md": readme(root)}
    lines = beside_openvino(docs / "results")
    return pages | ({docs / "engines.md": between_marks(docs / "engines.md", lines)} if lines else {})


def differing_files(root):
    """Names of the files that are not what docs/results/ says."""
    return [
        str(path.relative_to(root))
        for path, text in wanted(root).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def draw(root):
    """Draw the plots that the page shows, from the same files."""
    folder = Path(root) / "docs" / "results"
    for name, (rows, facts) in found(folder, "sweep").items():
        plots.plot_sweep(rows, facts, folder / name)
    for name, (rows, facts) in found(folder, "results").items():
        if facts["timing"]:
            plots.plot_latency(rows, facts, folder / name / "accuracy_latency.png")


def main(argv=None, root=ROOT):
    """Write docs/results.md, README.md's table and the plots, or check them."""
    parser = Parser(prog="docs/results.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 if a file differs from its data (off)",
    )
    if parser.parse_args(argv).check:
        if differing := differing_files(root):
            sys.exit(f"{' and '.join(differing)}: not what docs/results/ says; run python docs/results.py")
        return
    plots.pyplot()  # said before anything is written, if matplotlib is missing
    for path, text in wanted(root).items():
        write_whole(path, text)
    draw(root)
    print("docs/results/ -> docs/results.md, README.md, docs/engines.md and the plots")


if __name__ == "__main__":
    run_script(main)
