"""docs/replication.py: its page from made-up files, its verdicts, and the files from runs."""

import importlib.util
import shutil

import numpy as np
import pytest
from scipy import stats as sp
from sklearn import metrics as sk

import stats
import train
from conftest import ROOT
from files import read_json, write_json
from run.results import read_rows, write_rows

SPEC = importlib.util.spec_from_file_location("replication", ROOT / "docs/replication.py")
replication = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(replication)

QUALITY = {"base": 2.0, "distillation": 2.0, "pruning": 2.0, "lowrank": 2.0, "quantization": 0.2}


def made_up_answers(seeds=3, notes=60, classes=5):
    """Rows of answers.csv: all rows are equally good but quantization, which is bad; notes stand in pairs."""
    generator, rows = np.random.default_rng(0), []
    labels = np.repeat(generator.integers(classes, size=notes // 2), 2)
    for technique, quality in QUALITY.items():
        for seed in range(1, seeds + 1):
            logits = generator.normal(size=(notes, classes)) + quality * np.eye(classes)[labels]
            p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            rows += [
                {"kind": "recipe", "technique": technique, "seed": seed, "note": i, "text": i // 2}
                | {"in_train": int(i < 20), "label": int(labels[i])}
                | {f"p{c}": round(float(p[i, c]), 5) for c in range(classes)}
                for i in range(notes)
            ]
    return rows


@pytest.fixture
def folder(tmp_path):
    """docs/results/replication/ of made-up runs, under a root of its own."""
    place = tmp_path / "docs/results/replication"
    place.mkdir(parents=True)
    scores = dict.fromkeys(("Precision", "Recall", "F1", "AUROC"), 0.5)
    write_rows(place / "answers.csv", made_up_answers())
    write_rows(place / "epochs.csv", [
        {"kind": "recipe", "technique": name, "seed": seed, "epoch": epoch,
         "Accuracy": 0.5 + 0.1 * epoch * (name == "lowrank"), **scores}
        for name in QUALITY for seed in (1, 2, 3) for epoch in (4, 5)
    ])  # fmt: skip
    write_rows(place / "labels.csv", [
        {"label_seed": seed, "labels": labels, "notes": 90, "test": 9, "copied": 5, "Accuracy": 0.5, **scores,
         "lr": 2e-4, "machine": "a CPU", "commit": "abc"}
        for seed, labels in ((1, "pain, rash"), (2, "pain, fever"))
    ])  # fmt: skip
    write_rows(place / "lowrank.csv", [
        {"technique": "lowrank" if rank else "base", "rank": rank, "epochs": epochs, "seed": seed,
         "Accuracy": 0.5, "F1": 0.5 + 0.01 * epochs * (rank > 0) + 0.001 * seed * epochs, "AUROC": 0.5,
         "machine": "a CPU", "commit": f"c{seed}"}
        for rank in (0, 32) for epochs in (5, 40) for seed in (1, 2)
    ])  # fmt: skip
    write_json(place / "facts.json", {"recipe": {
        "data": "corpora/x.csv", "model": "m", "arguments": {}, "labels": ["a", "b", "c", "d", "e"],
        "sizes": {"train": 500, "test": 60}, "rows": {}, "copied": 20,
        "rates": {**dict.fromkeys(QUALITY, 3e-5), "quantization": 2e-5},
        "machine": {"threads": 2, "cpu": "a CPU", "torch": "2"}, "commits": ["abc"],
    }})  # fmt: skip
    return place


def test_the_page_says_what_the_files_say(folder, tmp_path, capsys):
    replication.main([], root=tmp_path)
    text = (tmp_path / "docs/replication.md").read_text()
    assert (folder / "seeds.png").read_bytes()[:4] == b"\x89PNG"
    text, columns = text.split("## As published")
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    bad = [
        sk.accuracy_score(y, p.argmax(1))
        for y, p in replication.answers_of(read_rows(folder / "answers.csv", names=("kind", "technique")))[0][
            "quantization"
        ].values()
    ]
    line = f"| quantization | accuracy | 0.9126 | {np.mean(bad):.4f} ± {np.std(bad, ddof=1):.4f} |  |"
    assert line in columns and "| edema, pruning | 0.909 / 0.918 / 0.914 / 0.969 |" in columns
    assert "| **cannot be told** |" in rows["**Base has the best accuracy**"]
    assert "| **holds** |" in rows["**Quantization loses most (F1)**"]
    assert "| **contradicted** |" in rows["**Quantization's AUROC is above low rank's**"]
    assert "| -" in rows["quantization − lowrank"]
    assert (
        rows["the recipe, lowrank"].endswith("| not shown |")
        and "+10.00 [+10.00, +10.00]" in rows["the recipe, lowrank"]
    )
    assert "| 20 / 40 |" in text  # copies and other notes
    by_rate = float(rows["the recipe, accuracy"].split("|")[-2])  # the worst row has the lowest rate
    assert (
        0 < by_rate == pytest.approx(4 / 40**0.5, abs=0.02)
    )  # tau-b of 4 pairs of 10, 6 tied; seeds may tie more
    assert "| 0.5075 | 0.5600 | +5.2 [" in rows["base"] and "| +40.2 [" in rows["rank 32"]
    assert 'The claim "low rank needs more than 5 epochs": **holds** for rank 32.' in text
    assert "Seed 1: trained on a CPU; commit c1.\n\nSeed 2: trained on a CPU; commit c2." in text
    assert "2 different sets of five labels; in all of them: pain" in text
    assert "\nTrained on a CPU; commit abc." in text
    assert "The paper's rows, one seed each: 2.3." in text and "base (paper 0.9356)" in rows
    replication.main(["--check"], root=tmp_path)
    write_rows(folder / "labels.csv", [])
    with pytest.raises(SystemExit, match="not what"):
        replication.main(["--check"], root=tmp_path)


def test_weighted_scores_are_scikit_learns(folder):
    runs, texts, copied = replication.answers_of(
        read_rows(folder / "answers.csv", names=("kind", "technique"))
    )
    labels, probabilities = runs["lowrank"][2]
    weights = np.random.default_rng(1).integers(1, 4, size=(3, len(labels)))
    found = replication.weighted_scores(labels, probabilities, weights)
    for i, weight in enumerate(weights):
        drawn = np.repeat(np.arange(len(labels)), weight)
        called, normal = probabilities.argmax(1)[drawn], probabilities / probabilities.sum(1, keepdims=True)
        assert found["Accuracy"][i] == pytest.approx(sk.accuracy_score(labels[drawn], called))
        assert found["F1"][i] == pytest.approx(sk.f1_score(labels[drawn], called, average="macro"))
        area = sk.roc_auc_score(labels[drawn], normal[drawn], multi_class="ovr")
        assert found["AUROC"][i] == pytest.approx(area, abs=1e-3)
    assert copied.sum() == 20 and len(set(texts)) == 30


def test_copies_of_a_note_are_drawn_together(folder):
    runs, texts, _ = replication.answers_of(read_rows(folder / "answers.csv", names=("kind", "technique")))
    scored = replication.scored_rows(runs, texts)["base"]["Accuracy"]
    own = [(p.argmax(1) == y).mean() for y, p in runs["base"].values()]
    assert scored.values == pytest.approx(own) and scored.clusters == 30
    drawn = stats.cluster_weights(texts)
    assert (drawn[:, ::2] == drawn[:, 1::2]).all()  # notes stand in pairs
    right = np.stack([p.argmax(1) == y for y, p in runs["base"].values()])
    np.testing.assert_allclose(scored.resampled, drawn @ right.T / drawn.sum(1, keepdims=True), rtol=1e-5)


def test_verdicts():
    above, below, unsure = (stats.Difference(mean, 0, 0, p) for mean, p in ((1, 0.01), (-1, 0.03), (1, 0.2)))
    assert replication.verdict([above, above]) == replication.HOLDS
    assert replication.verdict([above, unsure]) == replication.OPEN
    assert replication.verdict([below]) == replication.AGAINST
    assert replication.verdict([below, above, unsure]) == replication.OPEN  # 0.06 after Holm's correction
    assert replication.over_seeds([1.0]) == (1, 1, 1, 0)
    mean, low, high, p = replication.over_seeds([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2, 2 - 2.484, 2 + 2.484), abs=1e-3)
    assert p == pytest.approx(sp.ttest_1samp([1.0, 2.0, 3.0], 0).pvalue)
    assert replication.tau([1, 2, 3], [1, 2, 3]) == 1 and replication.tau([1, 1, 1], [1, 2, 3]) == 0


def test_the_files_are_made_from_runs(small, runs, tmp_path, refuses):
    source, words = (
        tmp_path / "results",
        f"--data {small[0]} --model {small[1]} --max-length 16 --epochs 1".split(),
    )
    for technique in ("base", "pruning"):
        call = ["--recipe", "paper", *words, "--technique", technique, "--seed", "3"]
        train.main([*call, "--out", str(source)])
    train.main(["--recipe", "paper", *words, "--label-seed", "7", "--out", str(source / "labels-7")])
    for name in ("base", "lowrank"):
        shutil.copytree(runs / name, source / "proper-42" / name)
        shutil.copytree(runs / name, source / "lowrank-42" / f"{name}-2")
    shutil.copytree(runs / "lowrank", source / "proper-42/lowrank-from-base")
    replication.main(["--collect", str(source)], root=tmp_path)
    folder = tmp_path / "docs/results/replication"
    answers = read_rows(folder / "answers.csv", names=("kind", "technique"))
    made = {f"{row['kind']} {row['technique']} {row['seed']}" for row in answers}
    proper = {"proper base 42", "proper lowrank 42", "from base lowrank 42"}
    assert made == {"recipe base 3", "recipe pruning 3"} | proper
    facts = read_json(folder / "facts.json")
    assert facts["proper"]["sizes"] == read_json(runs / "base/run.json")["data"]["sizes"]
    assert facts["proper"]["copied"] is None
    assert [row["label_seed"] for row in read_rows(folder / "labels.csv", names=("labels",))] == [7]
    curve = {
        (row["technique"], row["rank"]) for row in read_rows(folder / "lowrank.csv", names=("technique",))
    }
    assert curve == {("base", 0), ("lowrank", 4)}
    shutil.rmtree(source / "lowrank-42/base-2")  # its row stays
    replication.main(["--collect", str(source)], root=tmp_path)
    assert len(read_rows(folder / "lowrank.csv")) == 2 and len(read_rows(folder / "answers.csv")) == len(
        answers
    )
    text = (tmp_path / "docs/replication.md").read_text()
    assert "not run: distillation, lowrank, quantization" in text and "Not enough seeds yet." in text
    held = read_json(source / "proper-42/base/run.json")["test"]["overall"]["Accuracy"]
    row = next(line for line in text.splitlines() if line.startswith("| base (paper"))
    assert f"| {held:.4f} [" in row
    held = read_json(source / "proper-42/lowrank-from-base/run.json")["test"]["overall"]["Accuracy"]
    row = next(line for line in text.splitlines() if line.startswith("| low rank, from the fine-tuned base"))
    assert row.split(" | ")[1].startswith(f"{held:.4f} [") and row.count("[") == 4
    assert "no runs in there" in refuses(replication.main, ["--collect", tmp_path / "none"])


def test_the_published_page_is_made_from_its_files():
    if not (ROOT / "docs/results/replication/facts.json").exists():
        pytest.skip("no runs are published yet")
    replication.main(["--check"])


def test_adaptation_stands_beside_the_published_on_all_and_on_held_out_rows():
    results = ROOT / "docs/results"
    text = "\n".join(replication.adaptation_lines(results))
    held = {row["technique"]: row for row in read_rows(results / "stop_reasons_sets_20/results.csv")}
    gained = 100 * (held["adapted"]["microf1"] - held["base"]["microf1"])
    whole = [
        read_json(results / f"stop_reasons_sets_20/all_rows_{name}.json")["eval_micro_f1"]
        for name in ("base", "adapted")
    ]
    ours = f"{whole[1]:.4f} | {held['adapted']['microf1']:.4f} ["
    assert f"micro-F1, adapted, seed 42 | 0.9585 | {ours}" in text
    assert f"points | +8.76 | {100 * (whole[1] - whole[0]):+.2f} | {gained:+.2f} [" in text
    assert "gender, macro-F1, plain, seed 1 | 0.7243 |" in text and "], not significant, Holm's p = " in text
    assert "gender, accuracy, plain, seed 2 |  | 0.97" in text and "times the tokens per second" in text
    assert "Not run yet." in "\n".join(replication.adaptation_lines(results / "nothing"))
