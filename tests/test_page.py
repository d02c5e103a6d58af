"""report.html: what it says, what it cannot load, how it looks to a browser; that one needs Chromium."""

import copy
import re
from html.parser import HTMLParser

import pytest

from conftest import read_csv
from files import read_json
from run import page
from run.results import as_cell, markdown_table, read_rows

HOSTILE = '"><script>document.title="ran"</script><img src=x onerror="document.title=1">|&**`'


@pytest.fixture(scope="module")
def hostile(reported, tmp_path_factory):
    """A page in which every name that comes from a file is markup, and its names are very long."""
    rows, facts = read_rows(reported / "results.csv"), read_json(reported / "results.json")
    name, facts = HOSTILE + "a" * 60, copy.deepcopy(facts)
    rows[0]["technique"], facts["runs"][0] = name, name
    facts["settings"] = dict.fromkeys(facts["settings"], name)
    facts["machine"]["cpu"] = facts["timing"]["cpu"] = name
    facts["differing"], facts["published"] = {name: {"seed": name}}, name
    label = facts["per_label"].pop("pain")
    label["F1"][name] = label["F1"].pop("base")
    facts["per_label"] = {name: label}
    facts["data"]["splits"] = {split: {name: 3} for split in facts["data"]["splits"]}
    score = {"count": 3, "score": dict.fromkeys(facts["runs"], 0.5)}
    facts |= {"groups": {name: {name: score}}, "group_score": name}
    figure = page.Figure(name, reported / "accuracy_latency.png", name)
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    path.write_text(page.html_page(rows, facts, [figure]), encoding="utf-8")
    return path


class Tags(HTMLParser):
    """The tags of a page, and the addresses in it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.alts, self.levels = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.sources += [found[name] for name in ("src", "href", "style", "onerror") if name in found]
        self.alts += [found["alt"]] if tag == "img" else []
        self.levels += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []


def test_it_names_no_other_file_and_says_its_pictures_in_words(reported):
    text = (reported / "report.html").read_text(encoding="utf-8")
    found = Tags(text)
    pictures = [path.name for path in reported.glob("*.png")]
    assert len(pictures) == 9 and len(text) < 1_500_000
    assert len(found.sources) == len(pictures) == len(found.alts)
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert not {"link", "iframe", "object", "form", "base"} & set(found.tags) and "url(" not in text
    assert found.levels[0] == 1 and all(b - a <= 1 for a, b in zip(found.levels, found.levels[1:]))
    base = read_csv(reported / "results.csv")[0]
    assert f"base {float(base['accuracy']):.4f} at {float(base['p50_ms']):.1f} ms" in found.alts[0]
    ece = f"base plain {float(base['ece']):.3f}, scaled {float(base['ece_scaled']):.3f}"
    assert any(ece in alt for alt in found.alts)
    counts = read_json(reported / "base" / "run.json")["test"]["confusion"]
    labels = list(read_json(reported / "results.json")["per_label"])
    right = ", ".join(f"{label} {row[i]} of {sum(row)}" for i, (label, row) in enumerate(zip(labels, counts)))
    assert f"base, right answers by true label: {right}" in found.alts


def test_names_from_files_stay_text(hostile):
    text = hostile.read_text(encoding="utf-8")
    found = Tags(text)
    assert found.tags.count("script") == 1 and found.tags.count("img") == 1
    assert [source[:22] for source in found.sources] == ["data:image/png;base64,"]


def test_a_cell_of_a_table_is_what_it_was():
    cells = ["a|b", "\\|", "c\nd", "", "| |"]
    assert [page.cells_of(line) for line in markdown_table(cells, [cells])[::2]] == [
        [cell.replace("\n", " ") for cell in cells]
    ] * 2
    assert as_cell("a|b") == "a\\|b" and as_cell("<b>") == "\\<b>"  # which Markdown shows as it was
    assert page.cells_of(f"| {as_cell('<b>|c')} | d |") == ["<b>|c", "d"]


def test_the_runs_to_choose_are_chosen_on_validation():
    scores = {"a": (0.950, 9, 90), "b": (0.945, 3, 50), "c": (0.941, 5, 20), "d": (0.9, 1, 1)}
    rows = [
        {"technique": name, "validation": v, "p50_ms": ms, "bytes": size, "accuracy": 1 - v}
        for name, (v, ms, size) in scores.items()
    ]
    assert page.picks(rows) == {"a": ["best on validation"], "b": ["fastest"], "c": ["smallest"]}
    untimed = [{key: value for key, value in row.items() if key != "p50_ms"} for row in rows]
    assert page.picks(untimed) == {"a": ["best on validation"], "c": ["smallest"]}
    assert page.picks(rows[3:]) == {"d": []}


# --- in a browser

TABLES = """return [...document.querySelectorAll("table")].map((table) =>
  [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent)))"""
COLUMN = """return [...document.querySelectorAll("table")[arguments[0]].tBodies[0].rows]
  .map((row) => row.cells[arguments[1]].textContent)"""
HEAD = 'const head = document.querySelectorAll("table")[arguments[0]].tHead.rows[0].cells[arguments[1]];'
CLICK = f'{HEAD} head.querySelector("button").click(); return head.getAttribute("aria-sort")'


def test_a_browser_shows_the_figures_of_results_csv(chromium, reported):
    chromium.open(reported / "report.html")
    rows, (scores, costs, calibration, *_) = read_csv(reported / "results.csv"), chromium.run(TABLES)
    assert scores[0][:2] == ["technique", "accuracy"] and costs[0][:2] == ["technique", "MB on disk"]
    assert [row[0] for row in scores[1:]] == [row["technique"] for row in rows]
    for row, score, cost, sure in zip(rows, scores[1:], costs[1:], calibration[1:], strict=True):
        names = ("accuracy", "precision", "recall", "f1", "auroc")
        assert [cell.split()[0] for cell in score[1:6]] == [f"{float(row[name]):.4f}" for name in names]
        found = f"{float(row['accuracy_low']):.3f}, {float(row['accuracy_high']):.3f}"
        assert f"[{found}]" in score[1] and sure[1] == f"{float(row['ece']):.4f}"
        assert cost[1].split()[0] == f"{int(row['bytes']) / 1e6:.1f}"
        assert cost[5].split()[0] == f"{float(row['p50_ms']):.1f}"
        assert (row["mcnemar_p"] == "") == (score[6] == "")


def test_a_click_sorts_and_so_does_the_keyboard(chromium, reported):
    chromium.open(reported / "report.html")
    first = chromium.run(COLUMN, 0, 0)
    values = [float(cell.split()[0]) for cell in chromium.run(COLUMN, 1, 1)]
    for order, wanted in (
        ("ascending", sorted(values)),
        ("descending", sorted(values)[::-1]),
        (None, values),
    ):
        assert chromium.run(CLICK, 1, 1) == order
        assert [float(cell.split()[0]) for cell in chromium.run(COLUMN, 1, 1)] == wanted
    for column in (6, 0):  # by p, then by name: the cell of base has no p and stays last
        chromium.run(CLICK, 0, column)
        if column:
            cells = chromium.run(COLUMN, 0, column)
            ps = [float(cell.split()[-1]) for cell in cells[:-1]]
            assert ps == sorted(ps) and cells[-1] == ""
    assert chromium.run(COLUMN, 0, 0) == sorted(first)
    chromium.open(reported / "report.html")
    for _ in range(3):  # to the first table's box, its first heading, its second
        chromium.press("Tab")
    assert chromium.run("return document.activeElement.textContent") == "accuracy"
    for key, order in (("Enter", "ascending"), (" ", "descending")):
        chromium.press(key)
        assert chromium.run(f'{HEAD} return head.getAttribute("aria-sort")', 0, 1) == order
    scores = [float(cell.split()[0]) for cell in chromium.run(COLUMN, 0, 1)]
    assert scores == sorted(scores)[::-1]


@pytest.mark.parametrize("width", (1280, 390))
def test_nothing_is_loaded_nothing_fails_and_the_page_is_no_wider_than_the_window(
    chromium, reported, hostile, width
):
    for path in (reported / "report.html", hostile):
        chromium.log("browser"), chromium.log("performance")
        chromium.open(path, width)
        inside = chromium.run("return [document.documentElement.scrollWidth, innerWidth, document.title]")
        assert inside[0] <= inside[1] and inside[2].startswith("symptoms: 6 runs")
        addresses = [url for url in chromium.addresses() if not url.startswith("data:")]
        assert addresses == [path.resolve().as_uri()] and chromium.log("browser") == []
        assert chromium.run("return [...document.images].every((image) => image.naturalWidth > 0)")


def test_the_policy_forbids_the_network(chromium, reported, tmp_path):
    text = (reported / "report.html").read_text(encoding="utf-8")
    more = '<img src="http://127.0.0.1:9/a.png"><script>document.title = "ran"</script></main>'
    (tmp_path / "changed.html").write_text(text.replace("</main>", more), encoding="utf-8")
    chromium.open(tmp_path / "changed.html")
    assert chromium.run("return document.title") != "ran"
    assert len([line for line in chromium.log("browser") if "Content Security Policy" in line]) == 2
