"""docs/context.py: what it says of two sweeps whose difference is known."""

import csv
import importlib.util
import shutil

import pytest
from sklearn import metrics as sk

from conftest import ROOT
from files import read_json, write_json
from run.results import read_rows, read_table, write_rows

SPEC = importlib.util.spec_from_file_location("context", ROOT / "docs/context.py")
context = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(context)

NAMES = "base", "lowrank", "quantization"


@pytest.fixture
def sweeps(runs, tmp_path):
    """Two sweeps of one seed on the same notes: every run errs on each 7th note, masked low rank on half."""
    for side in context.SIDES:
        for name in NAMES:
            place = tmp_path / side / "seed1" / name
            shutil.copytree(runs / name, place)
            answer(place, every=2 if (side, name) == ("masked", "lowrank") else 7)
    return tmp_path


def answer(place, every):
    """Let a run be right but for each `every`-th note, where it gives the next label."""
    rows, facts = read_table(place / "predictions.csv"), read_json(place / "run.json")
    labels = facts["task"]["labels"]
    for at, row in enumerate(rows):
        called = labels[(labels.index(row["label"]) + (at % every == 0)) % len(labels)]
        row |= {f"p_{label}": 0.6 if label == called else 0.1 for label in labels} | {"predicted": called}
    with open(place / "predictions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    facts["test"]["overall"] |= scores(rows, labels)
    write_json(place / "run.json", facts)


def scores(rows, labels):
    true, called = ([row[key] for row in rows] for key in ("label", "predicted"))
    shares = [[float(row[f"p_{label}"]) for label in labels] for row in rows]
    return {
        "Accuracy": sk.accuracy_score(true, called),
        "F1": sk.f1_score(true, called, average="macro"),
        "AUROC": sk.roc_auc_score([labels.index(label) for label in true], shares, multi_class="ovr"),
    }


def test_what_two_sweeps_lost_is_compared(sweeps, capsys):
    call = ["--collect", str(sweeps / "spotting"), str(sweeps / "masked")]
    context.main(call, root=sweeps)
    rows = read_rows(sweeps / "docs/results/context/context.csv", names=("run", "score", "told"))
    found = {(row["run"], row["score"]): row for row in rows}
    for score in context.SCORES:
        held = {
            side: {
                name: read_json(sweeps / side / "seed1" / name / "run.json")["test"]["overall"][score]
                for name in NAMES
            }
            for side in context.SIDES
        }
        row = found["lowrank", score]
        lost = {side: held[side]["lowrank"] - held[side]["base"] for side in context.SIDES}
        assert row["masked_from_base"] == pytest.approx(lost["masked"], abs=1e-6)
        assert row["more_from_base"] == pytest.approx(lost["masked"] - lost["spotting"], abs=1e-6)
        assert row["more_from_base_low"] < row["more_from_base"] < row["more_from_base_high"]
        same = found["quantization", score]  # answers alike on both sides
        assert (
            same["more_from_base"] == same["more_from_base_low"] == same["more_from_base_high"] == 0
            and same["more_p"] == 1
        )
    assert found["lowrank", "F1"]["p_holm"] == pytest.approx(2 * found["lowrank", "F1"]["more_p"], abs=1e-6)
    assert found["lowrank", "Accuracy"].get("p_holm") is None

    text = (sweeps / "docs/context.md").read_text()
    assert "lowrank (-" in text and "lost more without the words" in text and "One seed:" in text
    context.main(["--check"], root=sweeps)
    write_rows(sweeps / "docs/results/context/context.csv", [row for row in rows if row["run"] != "lowrank"])
    with pytest.raises(SystemExit, match="not what"):
        context.main(["--check"], root=sweeps)


def test_sweeps_that_cannot_be_compared_are_refused(sweeps, refuses):
    call = ["--collect", str(sweeps / "spotting"), str(sweeps / "masked")]
    assert "holds no seed1" in refuses(context.main, [*call[:2], str(sweeps / "none")])
    for name in NAMES:
        path = sweeps / "masked/seed1" / name / "predictions.csv"
        path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    assert "their test notes differ" in refuses(context.main, call)
    shutil.rmtree(sweeps / "masked/seed1/base")
    assert "no seed of which both have base" in refuses(context.main, call)


def test_the_published_page_is_made_from_its_files():
    if not (ROOT / "docs/results/context/facts.json").exists():
        pytest.skip("no runs are published yet")
    context.main(["--check"])


def test_a_run_of_fewer_seeds_is_compared_with_base_of_its_own(sweeps):
    for side in context.SIDES:
        shutil.copytree(sweeps / side / "seed1", sweeps / side / "seed2")
        answer(sweeps / side / "seed2" / "base", every=3)
        shutil.rmtree(sweeps / side / "seed2" / "lowrank")
    context.main(["--collect", str(sweeps / "spotting"), str(sweeps / "masked")], root=sweeps)
    rows = read_rows(sweeps / "docs/results/context/context.csv", names=("run", "score", "told"))
    found = {row["run"]: row for row in rows if row["score"] == "Accuracy"}
    assert [found[name]["seeds"] for name in NAMES] == [2, 1, 2]
    first = read_json(sweeps / "spotting/seed1/base/run.json")["test"]["overall"]["Accuracy"]
    assert found["base"]["spotting"] < first and found["lowrank"]["spotting_from_base"] == 0
    text = (sweeps / "docs/context.md").read_text()
    assert "| lowrank, 1 seed |" in text and "2 seeds;" in text
