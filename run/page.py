"""report.html: a report as one page that asks for nothing else, neither file nor network.

Its text and tables are the lines of results.md, so both say the same; before them the runs to choose from,
after them the data and the machine. page.html beside this file is its frame, with the style and the script
that sorts tables. Names of runs, labels and paths come from files of others: all of it is escaped, and the
page's own policy lets the browser run this one script and load nothing.
"""

import base64
import hashlib
import io
import re
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template
from typing import NamedTuple

from run.results import markdown_table
from run.tables import COSTS, cost_cells, formatted, p_value, report_page, split_sizes, with_interval

FRAME = Path(__file__).with_name("page.html")
NEAR = 0.01  # of the validation score: runs this close to the best may be chosen for their cost


class Figure(NamedTuple):
    """A picture of the page."""

    heading: str  # of the section that it stands in
    path: Path  # a PNG
    alt: str  # its figures in words


def html_page(rows, facts, figures=()):
    """The text of report.html. figures: Figures, which stand at the end of their sections."""
    title, before, parts = cut(report_page(rows, facts).split("\n"))
    bodies = {"In short": picks_html(rows, facts)} | {name: as_html(body, name) for name, *body in parts}
    bodies = {**bodies, **{figure.heading: bodies.get(figure.heading, "") for figure in figures}}
    bodies |= {"Data": data_html(facts), "Machine and arguments": machine_html(facts)}
    html = [line_html(title), as_html(before)]
    for name, body in bodies.items():
        pictures = figures_html([figure for figure in figures if figure.heading == name])
        html += [line_html(f"## {name}"), body, pictures]
    return framed(title, html)


def plain_page(lines):
    """A page of lines of Markdown with a heading on top, without pictures."""
    title, before, parts = cut(lines)
    html = [line_html(title), as_html(before)]
    for name, *body in parts:
        html += [line_html(f"## {name}"), as_html(body, name)]
    return framed(title, html)


def framed(title, html):
    """Pieces of HTML in page.html's frame."""
    frame = Template(FRAME.read_text(encoding="utf-8"))
    hashes = {f"{tag}_hash": source_hash(frame.template, tag) for tag in ("style", "script")}
    return frame.substitute(hashes, title=escape(title.lstrip("# ")), body="\n".join(filter(None, html)))


def source_hash(html, tag):
    """The SHA-256 of what stands in the one element of this tag, as a Content-Security-Policy names it."""
    inside = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[1]
    return f"sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}"


# --- Markdown of ours -> HTML -------------------------------------------------------------------------


def cut(lines):
    """(the # heading, lines before the first ## heading, [[heading without its marks, its lines], ...])."""
    title, *rest = lines
    found = [[]]
    for line in rest:
        if line.startswith("## "):
            found.append([line.removeprefix("## ")])
        else:
            found[-1].append(line)
    return title, found[0], found[1:]


def as_html(lines, name=""):
    """Lines of headings, tables, items and paragraphs, one line each, as HTML; name: of their tables."""
    html = []
    for kind, group in groupby(filter(None, lines), lambda line: "|" if line[0] == "|" else line[:2]):
        together = list(group)
        if kind == "|":
            html.append(table_html(together, name))
        elif kind == "- ":
            items = (f"<li>{inline(line[2:])}</li>" for line in together)
            html.append("\n".join(["<ul>", *items, "</ul>"]))
        else:
            html += map(line_html, together)
    return "\n".join(html)


def line_html(line):
    """A heading or a paragraph; a paragraph that is bold as a whole is a warning."""
    marks, _, words = line.partition(" ")
    if re.fullmatch("#{1,6}", marks):
        return f"<h{len(marks)}>{inline(words)}</h{len(marks)}>"
    warning = ' class="warning"' if re.fullmatch(r"\*\*.+\*\*", line) else ""
    return f"<p{warning}>{inline(line)}</p>"


def inline(text):
    """Text with **bold** and `code`; a chain's name may break after its +."""
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text))
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
    return re.sub(r"(?<=[a-z])\+(?=[a-z])", "+<wbr>", text)


def table_html(lines, name):
    """A table in a box of its own, which scrolls where it is too wide; the script makes it sortable."""
    header, _, *body = map(cells_of, lines)
    head = "".join(f'<th scope="col">{inline(text)}</th>' for text in header)
    rows = [
        f'<tr><th scope="row">{inline(first)}</th>{"".join(f"<td>{inline(c)}</td>" for c in rest)}</tr>'
        for first, *rest in body
    ]
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
    )


def cells_of(line):
    """The cells of a line of run.results.markdown_table."""
    return [
        cell.strip().replace("\\|", "|").replace("\\<", "<")
        for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])
    ]


def figures_html(figures):
    """Pictures side by side, as far as there is room."""
    tags = [
        f'<figure><img alt="{escape(f.alt)}" src="data:image/png;base64,{small_png(f.path)}"></figure>'
        for f in figures
    ]
    return "\n".join(['<div class="figures">', *tags, "</div>"]) if tags else ""


def small_png(path, colours=64):
    """A plot's PNG in base64, with a palette of so many colours, which takes a third of the bytes."""
    from PIL import Image  # comes with matplotlib

    with Image.open(path) as picture, io.BytesIO() as file:
        picture.convert("RGB").quantize(colours).save(file, "PNG", optimize=True)
        return base64.b64encode(file.getvalue()).decode()


# --- sections that only the page has ------------------------------------------------------------------


def picks(rows):
    """{technique: why one may choose it}: the best on validation, the cheapest of those NEAR it."""
    scored = [row for row in rows if row.get("validation") is not None]
    if len(scored) < 2:
        return {row["technique"]: [] for row in rows[:1]}
    best = max(scored, key=lambda row: row["validation"])
    near = [row for row in scored if row["validation"] >= best["validation"] - NEAR]
    found = {best["technique"]: ["best on validation"]}
    for why, cost in (("fastest", "p50_ms"), ("smallest", "bytes")):
        if costed := [row for row in near if cost in row]:
            cheapest = min(costed, key=lambda row: (row[cost], -row["validation"]))
            found.setdefault(cheapest["technique"], []).append(why)
    return found


def picks_html(rows, facts):
    """A card for each run of picks, and how they were chosen."""
    chosen, by_name = picks(rows), {row["technique"]: row for row in rows}
    cards = [card_html(by_name[name], rows[0], whys, facts) for name, whys in chosen.items()]
    score = next(iter(facts["headline"].values()))
    rule = (
        f"Chosen by {score} on validation: the best run, and the fastest and the smallest of those within "
        f"{100 * NEAR:g} point of it. Scores: on the test split, with 95% intervals. Brackets after costs: "
        f"how many times better than {rows[0]['technique']}."
    )
    rule = line_html(rule) if any(chosen.values()) else ""
    return "\n".join(['<div class="cards picks">', *cards, "</div>", rule])


def card_html(row, first, whys, facts):
    """A run's name, why it may be chosen, its first score, what it costs, its test against base."""
    score, wording = next(iter(facts["headline"].items()))
    costs = dict(zip(COSTS, cost_cells(row, first), strict=True))
    told = {wording: with_interval(row, score.lower())}
    told |= {COSTS[key]: costs[key].removesuffix(" (1.00x)") for key in ("bytes", "p50_ms", "notes_per_s")}
    told |= {"against base": f"p {p_value(row['mcnemar_p'])}"} if "mcnemar_p" in row else {}
    return facts_html(row["technique"], told, ", ".join(whys).capitalize())


def facts_html(name, told, why=""):
    """A card: a name, why it is shown, and {what: text}, without empty texts."""
    lines = [f"<div><dt>{inline(k)}</dt><dd>{inline(v)}</dd></div>" for k, v in told.items() if v]
    why = f"<p>{inline(why)}</p>" if why else ""
    return f'<div class="card"><h3>{inline(name)}</h3>{why}<dl>{"".join(lines)}</dl></div>'


def data_html(facts):
    """Where the rows went, and how many examples of each label the splits hold."""
    data, unit = facts["data"], facts["unit"]
    rows = ", ".join(f"{count:,} {what}" for what, count in data["rows"].items() if count)
    of = f" of {data['subjects']:,} subjects" if data["subjects"] else ""
    splits = data["splits"]
    body = [[name, *(f"{counts.get(name, 0):,}" for counts in splits.values())] for name in splits["test"]]
    table = markdown_table(["label", *splits], body) if body else []
    told = f"{rows}: {data['notes']:,} {unit}{of}; {split_sizes(data, unit)}."
    return as_html([told, *table], f"{unit} by label")


def machine_html(facts):
    """What the first run was trained on and with, and what the runs were timed on and how."""
    told = {"Training": {**facts["machine"], **facts["settings"]}, "Timing": facts["timing"] or {}}
    cards = [
        facts_html(
            name, {k.replace("_", " "): formatted(v, "{}") for k, v in found.items() if k != "devices"}
        )
        for name, found in told.items()
        if found
    ]
    return "\n".join(['<div class="cards">', *cards, "</div>"])


# --- the pictures in words ----------------------------------------------------------------------------


def latency_alt(rows, facts):
    """The first score of each timed run, and its latency."""
    score, wording = next(iter(facts["headline"].items()))
    told = [
        f"{row['technique']} {formatted(row.get(score.lower()))} at {row['p50_ms']:.1f} ms"
        for row in rows
        if "p50_ms" in row
    ]
    return f"{wording} on test against the latency of one note: {', '.join(told)}"


def curves_alt(histories, key, wording):
    """The validation score of each run after its first epoch and its last. histories {run: rows by epoch}."""
    told = []
    for name, history in histories.items():
        if scores := [row[key] for row in history if key in row]:
            told.append(f"{name} {scores[0]:.3f} to {scores[-1]:.3f}")
    return f"{wording} on validation by epoch, first to last: {', '.join(told)}"


def calibration_alt(calibrations):
    """The calibration error of each run, plain and scaled. calibrations: as run.plots.plot_calibration."""
    told = [
        f"{name} {', '.join(f'{kind} {error:.3f}' for kind, (error, _) in kinds.items())}"
        for name, kinds in calibrations.items()
    ]
    return f"Expected calibration error: {'; '.join(told)}"


def confusion_alt(name, counts, labels):
    """How many of each true label are right. counts (C, C), true by predicted."""
    right = [
        f"{label} {row[i]} of {row.sum()}" for i, (label, row) in enumerate(zip(labels, counts, strict=True))
    ]
    return f"{name}, right answers by true label: {', '.join(right)}"
