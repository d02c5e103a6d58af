"""The text of sweeps and reports.

It is made from their rows (sweep.csv, results.csv) and their facts (sweep.json, results.json) alone, so
that docs/results.py can write it again from the files.
"""

from run.columns import column_lines
from run.results import markdown_table
from tasks import demo

FRONTS = {"speed": "seconds_per_row", "latency": "p50_ms", "bytes": "bytes"}  # wording: what the run costs


# --- cells ----------------------------------------------------------------------------------------


def formatted(value, form="{:.4f}"):
    """A number in a table; empty where there is none."""
    return "" if value is None else form.format(value)


def with_interval(row, score):
    """'0.9321 [0.907, 0.954]', the brackets only if the score has an interval."""
    text, low, high = formatted(row.get(score)), row.get(f"{score}_low"), row.get(f"{score}_high")
    return text if low is None else f"{text} [{low:.3f}, {high:.3f}]"


def times(text, better, worse):
    """'12.3 (4.56x)': a figure and how many times better it is than the first row's."""
    if not (better and worse):
        return text
    ratio = better / worse
    return f"{text} ({ratio:,.0f}x)" if ratio >= 100 else f"{text} ({ratio:.2f}x)"


def p_value(p):
    """'= 0.31', or '< 0.001'."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def counted(count, singular):
    """'1 run', '2 runs'."""
    return f"{count:,} {singular}{'s' * (count != 1)}"


def described(machine):
    """'2 threads of AMD EPYC, torch 2.13.0', with the GPU if there is one."""
    gpu = f", GPU {machine['gpu']}" if machine.get("gpu") else ""
    return f"{counted(int(machine['threads']), 'thread')} of {machine['cpu']}{gpu}, torch {machine['torch']}"


# --- a sweep --------------------------------------------------------------------------------------


def sweep_page(rows, facts):
    """sweep.md: the conditions, the tables, and what train.py was told for each row."""
    folds = f" in {folds_of(facts)} folds" * (folds_of(facts) > 1)
    title = f"# {facts['task']}: {len(rows)} runs, {counted(len(facts['seeds']), 'seed')}{folds}"
    banner = [f"**{demo.BANNER}**", ""] if facts["demonstration"] else []
    told = told_words(facts)
    lines = [title, "", *banner, sweep_conditions(facts), "", *sweep_table(rows, facts), ""]
    lines += [*told_lines(rows, facts), ""] if told_lines(rows, facts) else []
    lines += sweep_details(rows, facts, "##")
    return "\n".join([*lines, "What train.py was told for each run:", "", *told, ""])


def sweep_details(rows, facts, level):
    """Lines: the calibration of a sweep's rows, their scores by group; level: the marks of the headings."""
    lines, groups = [], facts.get("groups", [])
    if any("ECE" in row for row in rows) and "calibrated" in facts:
        lines += [f"{level} Calibration on the test split", "", calibration_reading(facts), ""]
        lines += [*sweep_calibration(rows), "", *calibration_told(rows)]
    for column in dict.fromkeys(row["column"] for row in groups):
        members = [row for row in groups if row["column"] == column]
        lines += [f"{level} By {column}", "", *sweep_groups(members, facts), ""]
    return lines


def sweep_calibration(rows):
    """Lines of a table: calibration of each row, as it is and scaled, with its distance from base."""
    tested = any("Brier_told" in row for row in rows)
    header = ["run", "ECE", "from base (points)", "ECE, scaled", "Brier score", "from base (points)"]
    header += [*["significant"] * tested, "Brier score, scaled"]
    body = []
    for row in rows:
        ece, brier = ("" if row["run"] == "base" else points_apart(row, name) for name in ("ECE", "Brier"))
        brier = [brier, *[""] * tested]
        if "Brier_told" in row:
            told = {"told": row["Brier_told"], "p_holm": row["Brier_p_holm"]}
            brier = distance_cells(row | told, "Brier_from_base")
        figures = [formatted(row.get(name)) for name in ("ECE", "ECE_scaled", "Brier", "Brier_scaled")]
        body.append([row["run"], figures[0], ece, figures[1], figures[2], *brier, figures[3]])
    return markdown_table(header, body)


def points_apart(row, name):
    """'-0.46': a row's distance from base in a score, in points; empty if there is none."""
    found = row.get(f"{name}_from_base")
    return "" if found is None else in_points(found)


def calibration_told(rows):
    """Lines: which rows are calibrated significantly worse or better than base; none if none was tested."""
    if not any("Brier_told" in row for row in rows):
        return []
    found = [
        f"By Brier score significantly {way} than base: {', '.join(runs)}."
        for way in ("worse", "better")
        if (runs := [row["run"] for row in rows if row.get("Brier_told") == way])
    ]
    return [" ".join(found) or "By Brier score no row differs significantly from base.", ""]


def sweep_groups(rows, facts):
    """Lines: base's score on each group of a column, and how far the other rows are from it."""
    score, unit = facts["group_score"], row_unit(facts)
    runs = [name for name in dict.fromkeys(row["run"] for row in rows) if name != "base"]
    told = (
        f"Base: {facts['headline'].get(score, score)} [95% interval]; the others: points from base, bold "
        "where the difference is significant, with Holm's correction for all of this table. Groups of fewer "
        f"than ten {unit} are pooled; one of fewer than ten patients or documents is not tested."
    )
    body = []
    for value in dict.fromkeys(row["value"] for row in rows):
        cells = {row["run"]: row for row in rows if row["value"] == value}
        body.append([value, f"{cells['base']['notes']:,}", with_interval(cells["base"], score)])
        body[-1] += [group_points(cells[name], score) for name in runs]
    return [told, "", *markdown_table([rows[0]["column"], f"test {unit}", "base", *runs], body)]


def group_points(row, score):
    """'-0.46', in points from base, bold if that is significant; empty if the score is undefined."""
    text = points_apart(row, score)
    return f"**{text}**" if text and row.get("told", "no") != "no" else text


def sweep_scores(rows, facts):
    """The headline scores that every row has."""
    return [score for score in facts["headline"] if all(row.get(score) is not None for row in rows)]


def sweep_table(rows, facts):
    """Lines of the table: a row per entry of the grid, base as the measure of all."""
    scores, unit, base = sweep_scores(rows, facts), row_unit(facts), base_of(rows)
    means = [f"{facts['headline'][s]}, {mean_of(facts)}" for s in scores]
    heads = [head + " [95% interval]" * (f"{s}_low" in base) for head, s in zip(means, scores, strict=True)]
    points = f"{facts['headline'][scores[0]]} from base (points)"
    points = [points, "significant"] if f"{scores[0]}_p" in base else [points]  # as points_cells
    header = ["run", *heads, *points, "MB", f"{unit}/s", "p50 ms", "on the Pareto front of"]
    body = [
        [
            row["run"],
            *(with_interval(row, score) for score in scores),
            *sweep_costs(row, base, scores[0]),
            ", ".join(wording for wording, cost in FRONTS.items() if row[f"front_{cost}"]),
        ]
        for row in rows
    ]
    return markdown_table(header, body)


def points_cells(row, base, score):
    """Cells: points from base; if tested, with their interval, and whether they are significant."""
    points = in_points(row[f"{score}_from_base"])
    if f"{score}_p" not in base:
        return [points]
    return [points, ""] if row is base or "told" not in row else distance_cells(row, f"{score}_from_base")


def distance_cells(row, key):
    """'+0.52 [-0.40, +1.44]' and 'no, p = 0.270': points from base, and whether they are significant."""
    points, low, high = (in_points(row[f"{key}{end}"]) for end in ("", "_low", "_high"))
    told = row["told"] if row["told"] == "no" else f"**{row['told']}**"
    return [f"{points} [{low}, {high}]", f"{told}, p {p_value(row['p_holm'])}"]


def in_points(difference):
    """'-0.46', in hundredths; what rounds to zero is +0.00."""
    return f"{round(100 * difference, 2) + 0.0:+.2f}"


def sweep_costs(row, base, score):
    """Cells: points_cells; MB, rows per second, milliseconds, each with times better than base."""
    return [
        *points_cells(row, base, score),
        times(f"{row['bytes'] / 1e6:.1f}", base["bytes"], row["bytes"]),
        times(f"{row['rows_per_s']:,.0f}", row["rows_per_s"], base["rows_per_s"]),
        times(f"{row['p50_ms']:.2f}", base["p50_ms"], row["p50_ms"]),
    ]


def is_model(row, facts):
    """Whether a row of a sweep is a model; baselines have no words in its grid."""
    return bool(facts["grid"].get(row["run"], True))


def base_of(rows):
    """The row of the base run."""
    return next(row for row in rows if row["run"] == "base")


def folds_of(facts):
    """How many folds the notes were cut into; 1 = none."""
    return facts["evidence"]["folds"] if "evidence" in facts else 1


def mean_of(facts):
    """'mean of 3 seeds', or 'one seed'."""
    count = len(facts["seeds"])
    return f"mean of {count} seeds" if count > 1 else "one seed"


def row_unit(facts):
    """What was drawn and timed, in the plural: the task's unit, or that of its rows."""
    return facts.get("evidence", {}).get("unit", facts["unit"])


def told_lines(rows, facts):
    """Sentences on which runs differ from base, and how they stand to a regression on word counts."""
    score = facts["headline"][next(iter(facts["headline"]))]
    groups = {told: [row["run"] for row in rows if row.get("told") == told] for told in WORDING}
    lines = [
        wording.format(", ".join(names), score)
        for told, wording in WORDING.items()
        if (names := groups[told])
    ]
    if lines and len(facts.get("seeds", [1])) == 1:
        lines.append("This is said of these trained models: another seed may say otherwise.")
    lines += baseline_line(rows, next(iter(facts["headline"])), score)
    return [" ".join(lines)] if lines else []


WORDING = {
    "better": "Significantly better than base in {1}: {0}.",
    "worse": "Significantly worse than base in {1}: {0}.",
    "no": "Not significantly different from base, which does not mean equal to it: {0}.",
}


def split_sizes(data, unit):
    """'14,951 train, 2,145 validation and 4,280 test texts'."""
    *most, last = (f"{size:,} {split}" for split, size in data["sizes"].items())
    return f"{', '.join(most)} and {last} {unit}"


def sweep_conditions(facts):
    """How the figures of a sweep were obtained, in one paragraph."""
    data, timing, machine, unit = facts["data"], facts["timing"], facts["machine"], row_unit(facts)
    one, seeds = unit.removesuffix("s"), ", ".join(map(str, facts["seeds"]))
    return (
        f"{test_notes(facts)}; {data['mean_tokens']:.0f} tokens per {one} on average. "
        f"Test scores: {mean_of(facts)} ({seeds}). {tuning(facts)}{sweep_brackets(facts)} "
        f"MB: on disk. {unit.capitalize()}/s: the model alone, on the {timing['rows']:,} validation rows, "
        f"in batches of {timing['batch_tokens']:,} tokens. p50: one {one} of {timing['length']} tokens. "
        f"Medians of {counted(timing['rounds'], 'round')} in rotating order, seed {timing['seed']}, "
        f"{described(machine)}. {commits_of(facts)} "
        "Rows on the Pareto front: no other row has an equal or better validation score at a lower cost"
        f"{', the labelling rule aside' if 'rule' in facts['grid'] else ''}."
    )


def test_notes(facts):
    """How many notes each split has; with folds, that all of them are test notes once."""
    data, folds = facts["data"], folds_of(facts)
    sizes = split_sizes(data, facts["unit"]).capitalize()
    if folds == 1:
        return sizes
    every = f"{facts['evidence']['notes']:,} {row_unit(facts)}"
    return f"{every} in {folds} folds, each tested once (in the first: {sizes})"


def drawn_rows(facts):
    """'5,070 test admissions by their 3,599 patients or documents': what a bootstrap draws."""
    if "evidence" not in facts:
        return f"{facts['data']['sizes']['test']:,} test {facts['unit']}"
    evidence = facts["evidence"]
    drawn = f"{evidence['notes']:,} test {row_unit(facts)}"
    if evidence["clusters"] < evidence["notes"]:
        drawn += f" by their {evidence['clusters']:,} patients or documents"
    return drawn


def sweep_brackets(facts):
    """What the brackets after scores, points and costs are."""
    several = len(facts["seeds"]) > 1
    points = (
        "brackets after costs: how many times better than base. Points: distance from the same seed's base."
    )
    if "evidence" not in facts:
        average = "averaged over the seeds" if several else "of that seed"
        return f"Brackets after scores: 95% bootstrap interval, {average}; {points}"
    drawn = drawn_rows(facts)
    over = f"over seeds and {drawn} together" if several else f"over {drawn}, of that seed's models"
    return (
        f"Brackets after scores and points: 95% interval {over}; {points} Significant: paired test, "
        f"p after Holm's correction below {facts['evidence']['level']:g} (docs/evidence.md)."
    )


def told_words(facts):
    """Lines: what train.py was told for each row of a sweep, and what was chosen for it on validation."""
    chosen = (facts.get("search") or {}).get("chosen", {})
    lines = []
    for row, words in facts["grid"].items():
        found = ", ".join(f"{setting} ({times_})" for setting, times_ in chosen.get(row, {}).items())
        lines.append(
            f"- {row}: {f'`{words}`' if words else '`baselines.py`'}" + f"; chosen: {found}" * bool(found)
        )
    return lines


def tuning(facts):
    """A sentence on --search, ending in a blank; empty without it."""
    if not (search := facts.get("search")):
        return ""
    tried = ", ".join(f"{name} {', '.join(values)}" for name, values in search["given"].items())
    return (
        f"Tuned: for each seed and fold a row tried {search['trials']} settings of {tried}, as far as its "
        "technique has them; the best on validation was taken, below how often which. "
    )


def baseline_line(rows, score, wording):
    """A sentence on how the runs stand to the regression on word counts; none without it."""
    by_name = {row["run"]: row.get(score) for row in rows}
    if (reached := by_name.pop("tfidf", None)) is None:
        return []
    models = {name: value for name, value in by_name.items() if value is not None and name not in TRIVIAL}
    ahead = [name for name, value in models.items() if value < reached]
    than = f"higher than {', '.join(ahead)}" if ahead else "lower than every model here, or equal"
    return [f"TF-IDF and logistic regression, without a network, has {wording} {reached:.4f}: {than}."]


TRIVIAL = ("majority", "rule", "dictionary")  # the other baselines


def commits_of(facts):
    """A sentence on the commits at which the runs were trained and timed."""
    trained = dict.fromkeys(commit for commits in facts["trained_at"].values() for commit in commits)
    return f"Trained at commit {', '.join(map(str, trained))}, timed at {facts['machine']['commit']}."


# --- a report -------------------------------------------------------------------------------------


def report_page(rows, facts):
    """results.md: scores, cost beside base's, F1 per label, the paper's figures beside ours."""
    test = f"{facts['data']['sizes']['test']:,} test {facts['unit']}"
    title = f"# {facts['task']}: {counted(len(rows), 'run')} on {test}"
    return "\n".join([title, "", *report_body(rows, facts, "##"), ""])


def report_body(rows, facts, level):
    """Lines of a report below its title; level: the marks of its headings, such as '##'."""
    lines = [*report_warnings(facts), report_settings(facts), ""]
    lines += [f"{level} Scores on the test split", "", report_reading(facts), ""]
    lines += [facts["published"], ""] if facts["published"] else []
    first = next(iter(facts["headline"]))
    named = [{**row, "run": row["technique"], first: row.get(first.lower())} for row in rows]
    told = [line for sentence in told_lines(named, facts) for line in ("", sentence)]
    lines += [*score_table(rows, facts), *told, *differing_lines(facts), "", f"{level} Cost", ""]
    lines += [*timing_lines(facts), *cost_table(rows), ""]
    if any("temperature" in row or ("ece" in row and "ECE" not in facts["scores"]) for row in rows):
        lines += [f"{level} Calibration on the test split", "", calibration_reading(facts), ""]
        lines += [*calibration_table(rows), ""]
    if any(facts["per_label"].values()):
        lines += [f"{level} F1 per label on the test split", ""]
        lines += [PUBLISHED_LABELS, ""] * bool(facts.get("published_labels"))
        lines += [*label_table(facts), ""]
    for column in facts.get("groups", {}):
        lines += [f"{level} By {column}: {facts['group_score']} on the test split", ""]
        lines += [*group_table(facts, column), ""]
    if facts.get("columns"):
        lines += [*column_lines(facts["columns"], level), ""]
    first, commits = described(facts["machine"]), dict.fromkeys(facts["trained_at"].values())
    elsewhere = {}
    for name, where in facts.get("trained_on", {}).items():
        elsewhere.setdefault(where, []).append(name)
    others = [f"{', '.join(names)} on {where}" for where, names in elsewhere.items() if where != first]
    places = "; ".join([f"Trained on {first}", *others])
    return [*lines, f"{places}; commit {', '.join(map(str, commits))}."]


def report_warnings(facts):
    """Lines in bold that come first: a demonstration, runs that cannot be compared."""
    lines = [f"**{demo.BANNER}**", ""] if facts["demonstration"] else []
    if facts["other_test"]:
        lines += [
            f"**Not all runs were tested on the same {facts['unit']}; "
            "those that differ from base are not tested against it.**",
            "",
        ]
    return lines


def report_settings(facts):
    """What the runs have in common, and the score of always giving the commonest label."""
    settings, data, always = facts["settings"], facts["data"], facts["always"]
    told = f"Data {settings['data']} ({split_sizes(data, facts['unit'])}), model {settings['model']}, "
    told += f"batch {settings['batch_size']}, "
    several = facts.get("seeds", [])[1:]
    seed = f"seeds {', '.join(map(str, facts['seeds']))}" if several else f"seed {settings['seed']}"
    told += f"{settings['max_length']} tokens, {seed}, split seed {settings['split_seed']}."
    return told + (f" Always answering {always[0]!r} scores {always[1]:.4f}." if always else "")


def report_reading(facts):
    """How to read the brackets and the comparisons of the score table."""
    unit = facts["unit"]
    seeds = len(facts.get("seeds", [1]))
    over = f"the {seeds} seeds and " if seeds > 1 else ""
    mcnemar = (
        f" Differs from base: the number of {unit} that only base gets right, the number that only this run "
        "gets right, and the exact McNemar p-value."
    )
    told = (
        f" Significant: by a paired test of {facts['headline'][next(iter(facts['headline']))]}, "
        f"p after Holm's correction below {facts['evidence']['level']:g} (docs/evidence.md)."
        if "evidence" in facts
        else ""
    )
    return (
        f"Brackets: 95% interval over {over}{drawn_rows(facts)}."
        + (
            mcnemar
            if seeds == 1
            else f" Scores: {mean_of(facts)}; costs, curves and confusion: the first seed."
        )
        + told
    )


def score_table(rows, facts):
    """Lines: every overall score, the test against base; last what another system published."""
    seeds, tested = len(facts.get("seeds", [1])), any("told" in row for row in rows)
    against = ["differs from base"] * (seeds == 1) + ["points from base", "significant"] * tested
    header = ["technique", *facts["scores"].values(), *against]
    body = []
    for row in rows:
        cells = [
            row["technique"],
            *(with_interval(row, score.lower()) for score in facts["scores"]),
            *[against_base(row)] * (seeds == 1),
            *told_cells(row) * tested,
        ]
        body.append(cells)
    if known := facts.get("published_scores"):
        cells = ["as published", *(formatted(known.get(score)) for score in facts["scores"])]
        body.append(cells + [""] * (len(header) - len(cells)))
    return markdown_table(header, body)


PUBLISHED_LABELS = (
    "As published: F1 (precision / recall) and support of another encoder, plain and adapted, on other test "
    "texts; reference/SOURCE.md. Compare within a column, not across."
)


def against_base(row):
    """'2 / 27, p < 0.001', or nothing for base itself."""
    if "mcnemar_p" not in row:
        return ""
    return f"{row['only_base_right']} / {row['only_this_right']}, p {p_value(row['mcnemar_p'])}"


def told_cells(row):
    """distance_cells of a report's row, empty for base and what was not tested."""
    return distance_cells(row, "from_base") if "told" in row else ["", ""]


def differing_lines(facts):
    """Lines that name the arguments, other than a technique's own, in which runs differ from the first."""
    lines = []
    for name, other in facts["differing"].items():
        lines += [
            "",
            f"**{name} was trained with another {', '.join(f'{k} {v}' for k, v in other.items())}.**",
        ]
    return lines


def timing_lines(facts):
    """How the runs were timed; nothing if they were not."""
    if not (timing := facts["timing"]):
        return []
    places = timing["devices"]
    where = " and ".join(
        place if len(places) == 1 else f"{place} ({', '.join(names)})" for place, names in places.items()
    )
    text = (
        f"{timing['length']} tokens; latency at batch 1, throughput at batch {timing['batch']}; medians of "
        f"{timing['rounds']} alternating rounds on {where}, {described(timing)}. "
        "In brackets: how many times better than the first row."
    )
    return [text, ""]


def calibration_reading(facts):
    """What the columns of the calibration table are."""
    return (
        f"Of the probability of {facts['calibrated']}. ECE: its mean gap to the share that is right, over 15 "
        "bins of equal width. Brier score: the mean squared error of the probabilities, summed over the "
        "classes where there are several. Scaled: with the logits divided by the temperature, one number per "
        "run, fitted on validation; above 1 the run was too sure. Scaling changes no answer."
    )


CALIBRATION_HEADS = {
    "technique": "technique", "ece": "ECE", "ece_scaled": "ECE, scaled", "brier": "Brier score",
    "brier_scaled": "Brier score, scaled", "temperature": "temperature",
}  # fmt: skip


def calibration_table(rows):
    """Lines: calibration of each run, as it is and after temperature scaling."""
    names = list(CALIBRATION_HEADS)[1:]
    body = [[row["technique"], *(formatted(row.get(name)) for name in names)] for row in rows]
    return markdown_table(list(CALIBRATION_HEADS.values()), body)


COSTS = {
    "technique": "technique", "bytes": "MB on disk", "parameters": "parameters", "nonzero": "nonzero",
    "macs": "multiply-adds per note", "p50_ms": "p50 ms", "p95_ms": "p95 ms", "notes_per_s": "notes/s",
    "train_seconds": "training s",
}  # fmt: skip


def cost_table(rows):
    """Lines: bytes, parameters, multiply-adds, times; with how many times better than the first row."""
    return markdown_table(list(COSTS.values()), [cost_cells(row, rows[0]) for row in rows])


def cost_cells(row, first):
    """The cells of COSTS for one run."""
    figure = row.get
    return [
        row["technique"],
        times(f"{row['bytes'] / 1e6:.1f}", first["bytes"], row["bytes"]),
        f"{row['parameters']:,}",
        f"{row['nonzero']:,}",
        formatted(figure("macs"), "{:,.0f}"),
        times(formatted(figure("p50_ms"), "{:.1f}"), first.get("p50_ms"), figure("p50_ms")),
        formatted(figure("p95_ms"), "{:.1f}"),
        times(formatted(figure("notes_per_s"), "{:.1f}"), figure("notes_per_s"), first.get("notes_per_s")),
        formatted(figure("train_seconds"), "{:.0f}"),
    ]


def label_table(facts):
    """Lines: F1 of each run on each label; then the published cells, where the labels are the same."""
    names, published = facts["runs"], facts.get("published_labels", {})
    encoders = list(dict.fromkeys(encoder for rows in published.values() for encoder in rows))
    body = [
        [
            label,
            formatted(row.get("Support"), "{:,}"),
            *(formatted(row["F1"].get(name), "{:.3f}") for name in names),
            *(published_cell(published.get(label, {}).get(encoder)) for encoder in encoders),
        ]
        for label, row in facts["per_label"].items()
    ]
    return markdown_table(
        ["label", facts["support"], *names, *(f"as published, {encoder}" for encoder in encoders)], body
    )


def published_cell(scores):
    """'0.916 (0.961 / 0.874), 199' of a label's published scores; nothing without any."""
    if scores is None:
        return ""
    f1, precision, recall = (f"{scores[key]:.3f}" for key in ("f1", "precision", "recall"))
    return f"{f1} ({precision} / {recall}), {scores['support']:,}"


def group_table(facts, column):
    """Lines: the score that suits groups, of each run on each group of a column."""
    body = [
        [value, f"{group['count']:,}", *(formatted(group["score"][name], "{:.3f}") for name in facts["runs"])]
        for value, group in facts["groups"][column].items()
    ]
    return markdown_table([column, f"test {facts['unit']}", *facts["runs"]], body)
