"""--recipe paper: what the authors' code does, and the report's three columns."""

import re
import shutil
from collections import Counter
from html import escape
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import report
import train
from conftest import ROOT, read_csv, write_notes
from files import read_json, write_json
from run import columns, recipe
from run.arguments import parse_arguments
from tasks import TASKS, demo
from tasks.symptoms import LEXICON

FIVE = TASKS["symptoms"].techniques


@pytest.fixture(scope="module")
def call(small):
    """The command line of a recipe's run of seconds."""
    return f"--recipe paper --data {small[0]} --model {small[1]} --epochs 2 --max-length 32 --lr 2e-3".split()


@pytest.fixture(scope="module")
def made(call, tmp_path_factory):
    """A results directory with the five, seed 1, and base with seed 2 as well."""
    out = tmp_path_factory.mktemp("recipe")
    for technique in FIVE:
        train.main([*call, "--technique", technique, "--out", str(out), "--seed", "1"])
    train.main([*call, "--out", str(out), "--seed", "2"])
    return out


def plain_model():
    """Something with the head of a BERT classifier."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.body, model.classifier = nn.Linear(40, 40), nn.Linear(40, 5)
    model.config = SimpleNamespace(initializer_range=0.02)
    return model


# --- notes


def read(tmp_path, texts, *words):
    """read_notes of a file of texts."""
    path = write_notes(tmp_path / "n.csv", [(i, i, text) for i, text in enumerate(texts)])
    return recipe.read_notes(parse_arguments(["--recipe", "paper", "--data", str(path), *words]), str(path))


def test_the_order_decides_and_a_seed_decides_the_order(tmp_path):
    orders = [recipe.label_order(seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[2]) == sorted(LEXICON)
    texts = [f"fever and cough {i}" for i in range(20)] + [f"rash {i}" for i in range(20)]
    for seed in (0, 1, 2, 3):
        task, _, facts = read(tmp_path, texts, "--label-seed", str(seed))
        first = min("fever", "cough", key=recipe.label_order(seed).index)
        assert set(task.labels) == {first, "rash"} and facts["order"] == recipe.label_order(seed)
    assert {min("fever", "cough", key=recipe.label_order(seed).index) for seed in range(9)} == {
        "fever",
        "cough",
    }


def test_copies_stay_and_classes_are_cut_to_the_smallest(tmp_path, capsys):
    texts = (
        ["pain"] * 30 + [f"cough {i}" for i in range(20)] + [f"rash {i}" for i in range(20)] + ["well", " "]
    )
    task, splits, facts = read(tmp_path, texts, "--top-k", "3")
    assert Counter(task.labels[n.label] for notes in splits.values() for n in notes) == dict.fromkeys(
        ("pain", "cough", "rash"), 20
    )
    assert facts["sizes"] == {"train": 54, "test": 6} and facts["notes"] == 60 and facts["distinct"] == 41
    copied = sum(note.text == "pain" for note in splits["test"])
    assert facts["copied"] == copied > 0
    assert f"{copied} of 6 test notes are copies of training notes" in capsys.readouterr().out
    assert facts["rows"] == {"rows": 72, "without text": 1, "without label": 1, "of a rarer label": 0,
                             "removed by balancing": 10}  # fmt: skip
    again = read(tmp_path, texts, "--top-k", "3")[1]
    other = read(tmp_path, texts, "--top-k", "3", "--split-seed", "43")[1]
    ids = [[note.row_id for note in found["test"]] for found in (splits, again, other)]
    assert ids[0] == ids[1] != ids[2]


def test_a_share_of_the_rows_is_read_as_the_authors_did(tmp_path):
    texts = [f"cough {i}" for i in range(400)] + [f"rash {i}" for i in range(400)]
    _, splits, facts = read(tmp_path, texts, "--fraction", "0.1")
    again = read(tmp_path, texts, "--fraction", "0.1")[1]
    assert 40 < 800 - facts["rows"]["not sampled"] < 130 and facts["rows"]["rows"] == 800
    assert [note.row_id for note in splits["test"]] == [note.row_id for note in again["test"]]


def test_too_few_notes_are_one_line(tmp_path, refuses, call):
    path = write_notes(tmp_path / "n.csv", [(1, 1, "pain"), (2, 2, "well")])
    words = [path if word == call[3] else word for word in call]
    assert "too few labelled notes" in refuses(train.main, [*words, "--out", tmp_path / "out"])
    assert not (tmp_path / "out" / "recipe").exists()


# --- the five


def test_thirty_percent_masks_stay_on_every_linear():
    model = plain_model()
    recipe.mask_weights(model)
    for module in (model.body, model.classifier):
        assert int((module.weight == 0).sum()) == round(0.3 * module.weight.numel())
        assert module.weight_mask.shape == module.weight_orig.shape


def test_their_low_rank_changes_nothing():
    model = plain_model()
    before = model.classifier.weight.clone()
    recipe.change_nothing(model)
    torch.testing.assert_close(model.classifier.weight, before)


def test_their_int8_is_fp32_that_rounds():
    model = plain_model()
    recipe.imitate_int8(model)
    assert model.body.weight.dtype == torch.float32
    quantizer = model.body.weight_fake_quant
    model.body(torch.randn(8, 40))
    rounded = quantizer(model.body.weight)
    assert not torch.equal(rounded, model.body.weight)
    assert all(len(set(row.tolist())) <= 256 for row in rounded)
    assert quantizer.qscheme == torch.per_channel_symmetric and quantizer.dtype == torch.qint8


def test_the_teacher_has_learnt_nothing_and_its_answers_count_half():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.classifier = nn.Linear(4, 4), nn.Linear(4, 3)
            self.config = SimpleNamespace(initializer_range=0.02)

        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(logits=self.classifier(self.body(input_ids)))

    model, x, labels = Model(), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    teacher = recipe.untrained_teacher(model)
    torch.testing.assert_close(teacher.body.weight, model.body.weight)
    assert not torch.equal(teacher.classifier.weight, model.classifier.weight)
    logits, answers = model(x, None).logits, teacher(x, None).logits
    plain = nn.functional.cross_entropy(logits, labels)
    soft = nn.functional.kl_div((logits / 4).log_softmax(1), (answers / 4).softmax(1), reduction="batchmean")
    torch.testing.assert_close(recipe.loss_of(model, teacher, x, None, labels), 0.5 * plain + 8 * soft)
    torch.testing.assert_close(recipe.loss_of(model, None, x, None, labels), plain)


# --- runs


def test_a_run_scores_the_test_notes_after_each_epoch(made):
    for technique in FIVE:
        rows = read_csv(made / "recipe/seed-1" / f"multiclass_{technique}_metrics.csv")
        assert [(row["Epoch"], row["Split"]) for row in rows] == [("1", "test"), ("2", "test")]
        run = read_json(made / "recipe/seed-1" / technique / "run.json")
        assert run["recipe"] == "paper" and run["technique"] == technique and run["best_epoch"] == 2
        assert f"{run['test']['overall']['Accuracy']:.6f}" == rows[-1]["Accuracy"]
        answers = read_csv(made / "recipe/seed-1" / technique / "predictions.csv")
        right = sum(row["label"] == row["predicted"] for row in answers) / len(answers)
        assert abs(right - run["test"]["overall"]["Accuracy"]) < 1e-9
        assert sum(row["in_train"] == "1" for row in answers) == run["data"]["copied"]
        assert {path.name for path in (made / "recipe/seed-1" / technique).iterdir()} == {
            "run.json", "predictions.csv", "eval_metrics.json", "README.md"}  # fmt: skip
        card, scores = ((made / "recipe/seed-1" / technique / name).read_text() for name in
                        ("README.md", "eval_metrics.json"))  # fmt: skip
        assert f'"eval_accuracy": {run["test"]["overall"]["Accuracy"]}' in scores
        assert "the weights are not kept" in card and "bytes of weights" not in card
        assert f"{run['data']['copied']} of {len(answers)} are copies of training notes" in card
    base = [read_json(made / f"recipe/seed-{seed}/base/run.json") for seed in (1, 2)]
    assert base[0]["data"] == base[1]["data"] and base[0]["history"] != base[1]["history"]


def test_their_rates(call):
    assert recipe.RATES.keys() == set(FIVE)
    assert (recipe.RATES["base"], recipe.RATES["quantization"]) == (3e-5, 2e-5)


def test_what_is_finished_is_kept_and_other_settings_are_refused(made, call, capsys, refuses):
    words = [*call, "--out", str(made), "--seed", "2"]
    before = (made / "recipe/seed-2/base/run.json").read_bytes()
    train.main(words)
    assert "finished already" in capsys.readouterr().out
    assert (made / "recipe/seed-2/base/run.json").read_bytes() == before
    assert "finished with other label_seed" in refuses(train.main, [*words, "--label-seed", "3"])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--technique", "lora"], "is for --task symptoms, --technique base"),
        (["--task", "ner"], "is for --task symptoms"),
        (["--clip", "2"], "settles --clip itself"),
        (["--validation", "0.2"], "settles --validation itself"),
        (["--max-length", "9999"], "the model reads at most"),
    ],
)
def test_the_rest_is_the_recipes(words, message, call, refuses, tmp_path):
    assert message in refuses(train.main, [*call, *words, "--out", tmp_path / "out"])


# --- three columns


def test_the_report_of_recipe_runs_alone(made, capsys):
    report.main([str(made)])
    text = (made / "results.md").read_text()
    assert text in capsys.readouterr().out
    first, second = (
        read_json(made / f"recipe/seed-{seed}/base/run.json")["test"]["overall"]["Accuracy"]
        for seed in (1, 2)
    )
    assert (
        f"| base | accuracy | 0.9356 | {(first + second) / 2:.4f} ± {abs(first - second) / 2**0.5:.4f} |  |"
        in text
    )
    assert "mean ± standard deviation of 2 seeds" in text and "label seed 0" in text
    known = {row["technique"]: row for row in read_csv(ROOT / "reference/table1.csv")}
    for technique, row in known.items():
        for score, wording in columns.WORDING.items():
            assert f"| {technique} | {wording} | {row[score.lower()]} |" in text
    assert "| edema, pruning | 0.909 / 0.918 / 0.914 / 0.969 |" in text
    columns_again = read_json(made / "results.json")["columns"]
    assert "\n".join(columns.column_lines(columns_again, "##")) in text
    html = (made / "report.html").read_text()
    cells = re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", html)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert "<p>- " not in html and html.count("<li>") == sum(line[:2] == "- " for line in text.splitlines())
    assert "DEMONSTRATION" not in text + html  # these notes are given, not the demonstration's
    assert html.count("<tr>") == len(lines)  # headers among them; |--- is no row
    assert [cell.strip() for line in lines for cell in line[1:-1].split("|")] == cells


def test_a_demonstration_says_so_before_its_figures(made, tmp_path):
    out = shutil.copytree(made, tmp_path / "out")
    run = read_json(out / "recipe/seed-1/base/run.json")
    write_json(out / "recipe/seed-1/base/run.json", {**run, "demonstration": True})
    report.main([str(out)])
    assert (out / "results.md").read_text().splitlines()[2] == f"**{demo.BANNER}**"
    assert (
        f'<p class="warning"><strong>{escape(demo.BANNER)}</strong></p>' in (out / "report.html").read_text()
    )


def test_three_columns_side_by_side(made, runs, tmp_path):
    out = shutil.copytree(runs, tmp_path / "both")
    shutil.copytree(made / "recipe", out / "recipe")
    report.main([str(out)])
    text, proper = (out / "results.md").read_text(), read_json(out / "lowrank" / "run.json")["test"]
    again = read_json(made / "recipe/seed-1/lowrank/run.json")["test"]["overall"]["F1"]
    low, high = proper["intervals"]["F1"]
    cells = ("0.9240", f"{again:.4f}", f"{proper['overall']['F1']:.4f} [{low:.3f}, {high:.3f}]")
    assert f"| lowrank | macro-F1 | {' | '.join(cells)} |" in text
    assert "| base | accuracy | 0.9356 |" in text and "| bleeding, base |" in text


def test_the_three_columns_take_all_seeds_of_the_proper_runs(made, runs, tmp_path):
    out = tmp_path / "seeds"
    shutil.copytree(made / "recipe", out / "recipe")
    for seed in (1, 2):
        shutil.copytree(runs / "base", out / f"seed{seed}/base")
    run = read_json(out / "seed2/base/run.json")
    held, run["test"]["overall"]["F1"] = run["test"]["overall"]["F1"], 0.9
    write_json(out / "seed2/base/run.json", run)
    report.main([str(out)])
    text = (out / "results.md").read_text()
    ours = f"{(held + 0.9) / 2:.4f} ± {abs(held - 0.9) / 2**0.5:.4f}"
    line = next(line for line in text.splitlines() if line.startswith("| base | macro-F1 | "))
    assert line.endswith(f"| {ours} |")
    assert "the runs of this report, mean ± standard deviation of 2 seeds" in text


def test_runs_of_other_settings_do_not_share_a_column(made, tmp_path, refuses):
    out = shutil.copytree(made, tmp_path / "out")
    run = read_json(out / "recipe/seed-2/base/run.json")
    run["arguments"]["label_seed"] = 5
    write_json(out / "recipe/seed-2/base/run.json", run)
    assert "another label_seed" in refuses(report.main, [out])
