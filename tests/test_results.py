"""docs/results.py: the page of results and the README's table are what the files in docs/results/ say."""

import importlib.util
import json
import shutil

import pytest

from conftest import ROOT
from run.results import write_rows

HEADLINE = {"Accuracy": "accuracy", "F1": "macro-F1"}
MACHINE = {"cpu": "Some CPU", "threads": 2, "gpu": None, "torch": "9.9", "commit": "abc123"}
DATA = {"sizes": {"train": 7000, "validation": 100, "test": 200}, "mean_tokens": 12.6, "median_tokens": 12}


def script():
    """docs/results.py as a module; it is a script, so it is not on the path."""
    spec = importlib.util.spec_from_file_location("docs_results", ROOT / "docs" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sweep_row(run, techniques, accuracy, rows_per_s, size, fronts):
    row = {
        "run": run,
        "techniques": techniques,
        "seeds": 3,
        "validation": accuracy,
        "bytes": size,
        "p50_ms": 4.0,
    }
    for score in HEADLINE:
        row |= {score: accuracy, f"{score}_least": accuracy - 0.01, f"{score}_most": accuracy + 0.01}
        row |= {f"{score}_from_base": accuracy - 0.9}
    row |= {"Accuracy_low": accuracy - 0.02, "Accuracy_high": accuracy + 0.02, "rows_per_s": rows_per_s}
    row |= {"seconds_per_row": 1 / rows_per_s, "front_seconds_per_row": fronts, "front_p50_ms": False}
    return row | {"front_bytes": fronts}


def made_up_sweep(folder):
    folder.mkdir(parents=True)
    rows = [
        sweep_row("base", "base", 0.9, 1000.0, 90_000_000, False),
        sweep_row("quantization", "quantization", 0.91, 2500.0, 30_000_000, True),
    ]
    facts = {
        "task": "trials", "unit": "texts", "headline": HEADLINE, "demonstration": False, "seeds": [1, 2, 3],
        "grid": {"base": "--technique base", "quantization": "--technique quantization"}, "arguments": [],
        "data": DATA, "machine": MACHINE, "trained_at": {"base": ["aaa"] * 3, "quantization": ["bbb"] * 3},
        "timing": {"rows": 100, "length": 12, "rounds": 5, "seed": 1, "batch_tokens": 2048},
    }  # fmt: skip
    write_rows(folder / "sweep.csv", rows)
    (folder / "sweep.json").write_text(json.dumps(facts))


def made_up_report(folder):
    folder.mkdir(parents=True)
    row = {
        "technique": "base",
        "techniques": "base",
        "accuracy": 0.8,
        "accuracy_low": 0.7,
        "accuracy_high": 0.9,
    }
    row |= {"bytes": 10**6, "parameters": 10, "nonzero": 9, "train_seconds": 3.0, "front_p50_ms": False}
    settings = ("data", "model", "batch_size", "max_length", "seed", "split_seed")
    facts = {
        "task": "ner", "unit": "sentences", "scores": {"Accuracy": "accuracy"},
        "headline": {"Accuracy": "accuracy"}, "published": "Reference: 0.7.", "runs": ["base"],
        "demonstration": False, "other_test": False, "always": None, "differing": {}, "data": DATA,
        "per_label": {}, "support": "support",
        "settings": dict.fromkeys(settings, "x"),
        "machine": MACHINE, "trained_at": {"base": "ccc"}, "timing": None,
    }  # fmt: skip
    write_rows(folder / "results.csv", [row])
    (folder / "results.json").write_text(json.dumps(facts))


def made_up_benchmark(folder):
    folder.mkdir(parents=True)
    rows = [
        {"row": "base", "bytes": 4e8, "notes_per_s": 5.0},
        {"row": "half", "bytes": 2e8, "notes_per_s": 15.0},
    ]
    write_rows(folder / "shape.csv", rows)
    write_rows(folder / "training-2.csv", [{"row": "Trainer", "notes": 9, "notes_per_s": 5.0}])
    write_rows(folder / "volume.csv", [{"notes": 20_000, "seconds": 2.0, "peak_bytes": 5e8}])
    facts = {"machine": MACHINE, "conditions": {"shape": "Medians of 7.", "training-2": "Long notes."}}
    (folder / "benchmark.json").write_text(json.dumps(facts))


@pytest.fixture
def root(tmp_path):
    """A made-up repository with one result of each kind."""
    made_up_sweep(tmp_path / "docs" / "results" / "stop_reasons")
    made_up_report(tmp_path / "docs" / "results" / "entities")
    made_up_benchmark(tmp_path / "docs" / "results" / "speed")
    (tmp_path / "README.md").write_text("# Title\n\n<!-- results -->\nold\n<!-- /results -->\n\nThe rest.\n")
    return tmp_path


def test_page_and_readme_are_made_from_the_files(root):
    results = script()
    results.main([], root)
    page, readme = (root / "docs" / "results.md").read_text(), (root / "README.md").read_text()
    assert "## Stop reasons" in page and "python sweep.py @experiments/stop_reasons.args" in page
    assert "accuracy, mean of 3 seeds [95% interval]" in page and "0.9100 [0.890, 0.930]" in page
    assert "| +1.00 | 30.0 (3.00x) | 2,500 (2.50x) | 4.00 (1.00x) | speed, bytes |" in page
    assert (
        "Trained at commit aaa, bbb, timed at abc123." in page and "2 threads of Some CPU, torch 9.9" in page
    )
    assert "(results/stop_reasons/sweep.png)" in page
    assert (root / "docs" / "results" / "stop_reasons" / "sweep.png").stat().st_size > 10_000
    assert "## Entities" in page and "0.8000 [0.700, 0.900]" in page and "Reference: 0.7." in page
    assert (
        "| half | 200.0 (2.00x) | 15.0 (3.00x) |" in page
        and "### Training 2" in page
        and "Long notes." in page
    )
    assert (
        "| quantization | 0.9100 [0.890, 0.930] | +1.00 | 30.0 (3.00x) | 2,500 (2.50x) | 4.00 (1.00x) |"
        in readme
    )
    assert "7,000 train, 100 validation and 200 test texts" in readme and "old" not in readme
    assert readme.startswith("# Title\n\n<!-- results -->\n") and readme.endswith(
        "<!-- /results -->\n\nThe rest.\n"
    )


def test_check_says_what_differs_and_writes_nothing(root, capsys):
    results = script()
    with pytest.raises(SystemExit, match="docs/results.md and README.md: not what docs/results/ says"):
        results.main(["--check"], root)
    assert not (root / "docs" / "results.md").exists()
    results.main([], root)
    results.main(["--check"], root)
    readme = root / "README.md"
    readme.write_text(readme.read_text().replace("0.9100", "0.9200"))
    with pytest.raises(SystemExit, match=r"^README.md: not what"):
        results.main(["--check"], root)


def test_a_table_older_than_its_arguments_says_so(root):
    results, place = script(), root / "experiments"
    place.mkdir()
    path = root / "docs/results/stop_reasons/sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"arguments": ["--epochs", "3"]}))

    def said(name, words):
        (place / f"{name}.args").write_text("# a comment\n" + "\n".join(words))
        page = results.page(root)
        return page.partition("**Not made again since its arguments changed: ")[2].partition(".**")[0]

    assert said("stop_reasons", ["--epochs 3.0", "--seeds 3", "--out x"]) == ""
    assert said("stop_reasons", ["--seeds 3", "--baselines"]) == "--baselines, --epochs"
    assert said("stop_reasons", ["--epochs 4 --seeds 9"]) == "--epochs, --seeds"
    (place / "stop_reasons.args").unlink()
    path = root / "docs/results/speed/benchmark.json"
    words = ["--parts=shape,training", "--rounds=7", "--training=--task a --lr 2e-4", "--training=--task b"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"arguments": [*words, "--length=256"]}))
    asked = ["--parts shape,training --rounds 7", '--training "--task a --lr 2e-4" --training "--task b"']
    assert said("speed", asked) == "" and said("speed", [*asked, "--engine auto"]) == "--engine"


def test_engines_page_shares_are_of_one_cpu_and_shape(root, refuses):
    results = script()
    rows = [
        {"row": name, "notes_per_s": speed, "p50_ms": ms, "length": 16}
        for name, speed, ms in (
            ("base", 1, 9), ("quantization", 90, 3), ("OpenVINO, int8", 100, 6), (results.HALVED, 500, 2)
        )
    ]  # fmt: skip
    (folder := root / "docs" / "results" / "shape_short_amx").mkdir()
    write_rows(folder / "shape.csv", rows)
    (root / "docs" / "engines.md").write_text("no place\n")
    assert "engines.md: has no place for the table" in refuses(lambda words: results.main(words, root), [])
    (root / "docs" / "engines.md").write_text("Before\n<!-- results --><!-- /results -->\nAfter\n")
    results.main([], root)
    page = (root / "docs" / "engines.md").read_text()
    assert "| Xeon with AMX, 16 x 16 |  | 0.90 |  |  |  |  |  | 5.00 |" in page and page.endswith("After\n")
    assert "| Xeon with AMX, 1 x 16 |  | 2.00 |  |  |  |  |  | 3.00 |" in page and "EPYC" not in page


def test_results_that_are_not_there_are_left_out(root, refuses):
    results = script()
    shutil.rmtree(root / "docs" / "results" / "speed")
    shutil.rmtree(root / "docs" / "results" / "stop_reasons")
    before = (root / "README.md").read_text()
    results.main([], root)
    page = (root / "docs" / "results.md").read_text()
    assert "## Entities" in page and "Stop reasons" not in page and "Speed" not in page
    assert (root / "README.md").read_text() == before
    made_up_sweep(root / "docs" / "results" / "stop_reasons")
    (root / "README.md").write_text("no place\n")
    assert "has no place for the table" in refuses(lambda words: results.main(words, root), [])


@pytest.mark.skipif(not (ROOT / "docs" / "results").is_dir(), reason="no results are stored here")
def test_what_the_repository_publishes_is_what_its_files_say():
    assert script().differing_files(ROOT) == []


@pytest.mark.parametrize("page", ("README.md", "docs/results.md", "docs/replication.md", "docs/context.md"))
def test_every_row_of_a_table_has_as_many_cells_as_its_head(page):
    lines, width = (ROOT / page).read_text(encoding="utf-8").splitlines(), None
    for number, line in enumerate(lines, 1):
        cells = line.replace("\\|", "").count("|") if line.startswith("|") else None
        assert None in (cells, width) or cells == width, f"{page}, line {number}"
        width = cells
