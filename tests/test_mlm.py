"""Masked language modelling: the masks, and the head on masked places alone."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from conftest import read_csv
from data import IGNORE, Note, collate
from files import read_json
from run.evidence import read_answers
from tasks.mlm import Mlm


def test_masks_are_15_percent_80_10_10_and_new_each_epoch(demos):
    task, tokenizer = Mlm(), AutoTokenizer.from_pretrained(demos["mlm"][1])
    splits, _ = task.load(str(demos["mlm"][0]), 1.0, 0.1, 0.2, 42)
    examples = splits["train"] * 3
    first = task.encode(examples, tokenizer, 32, progress=False)
    original = np.where(first.token_labels == IGNORE, first.ids, first.token_labels)
    special = np.isin(original, tokenizer.all_special_ids)
    epochs = [task.fresh(first, [42, epoch]) for epoch in (0, 1)]
    for encoded in (first, *epochs):
        chosen = encoded.token_labels != IGNORE
        assert not (chosen & special).any() and abs(chosen[~special].mean() - 0.15) < 0.01
        assert (np.where(chosen, encoded.token_labels, encoded.ids) == original).all()
        shares = [
            (encoded.ids[chosen] == tokenizer.mask_token_id).mean(),
            (encoded.ids[chosen] == original[chosen]).mean(),
        ]
        assert abs(shares[0] - 0.8) < 0.02 and abs(shares[1] - 0.1) < 0.02
    assert (epochs[0].token_labels != epochs[1].token_labels).any()
    assert (task.fresh(epochs[1], [42, 0]).ids == epochs[0].ids).all()
    assert (
        task.encode(examples, tokenizer, 32, progress=False).ids == first.ids
    ).all()  # held-out masks are fixed
    lengths = set(first.lengths[:-1].tolist())
    assert lengths == {32} and tokenizer.convert_ids_to_tokens(original[[0, 31]]) == ["[CLS]", "[SEP]"]


def test_blocks_are_stored_by_the_document_in_which_they_begin(demos):
    task, tokenizer = Mlm(), AutoTokenizer.from_pretrained(demos["mlm"][1])
    notes = [Note(str(i), "ab"[i > 0], "word " * n, 0) for i, n in enumerate((70, 40, 60))]
    encoded = task.encode(notes, tokenizer, 32, progress=False)  # 30 tokens of text each
    pieces = [len(tokenizer(note.text, add_special_tokens=False)["input_ids"]) for note in notes]
    begins = np.repeat(range(3), pieces)[::30]
    assert encoded.owner.tolist() == begins.tolist() and set(begins) == {0, 1, 2}
    counts = [np.array([1.0, 4, 5.5])] * len(begins)
    found = task.combine(notes, encoded, counts)
    rows = [
        dict(zip(("row_id", "subject", *task.stored_columns()), (number, subject, *cells), strict=True))
        for number, subject, cells in task.stored(notes, found)
    ]
    assert [row["subject"] for row in rows] == ["ab"[int(at > 0)] for at in begins]
    assert rows[0] == {"row_id": 1, "subject": "a", "right": 1, "masked": 4, "surprise": "5.500000"}
    overall, _ = task.rescored(rows)
    assert overall == pytest.approx(task.score(notes, found).overall)
    assert overall["Accuracy"] == 0.25 and overall["Perplexity"] == pytest.approx(np.exp(5.5 / 4))


def test_a_runs_blocks_give_its_scores_again(trained):
    run = read_json(trained["mlm"] / "base" / "run.json")
    answers = read_csv(trained["mlm"] / "base" / "predictions.csv")
    overall, weighted = Mlm().rescored(answers)
    once = np.ones((1, len(answers)), np.float32)
    for name, value in overall.items():
        assert value == pytest.approx(run["test"]["overall"][name], rel=1e-5)
        assert float(weighted[name](once)[0]) == pytest.approx(value, rel=1e-5)
    low, high = run["test"]["intervals"]["Accuracy"]
    assert low < overall["Accuracy"] < high
    assert len({row["cluster"] for row in answers}) < len(answers)
    joined = read_answers(Mlm(), [trained["mlm"] / "base"] * 2)  # as of two folds
    assert joined.overall == pytest.approx(overall) and len(joined.notes) == 2 * len(answers)
    assert len(set(joined.clusters)) == 2 * len({row["cluster"] for row in answers})


def test_only_masked_places_go_through_the_head(demos):
    torch.manual_seed(0)
    task, tokenizer = Mlm(), AutoTokenizer.from_pretrained(demos["mlm"][1])
    model = AutoModelForMaskedLM.from_pretrained(demos["mlm"][1]).eval()
    splits, _ = task.load(str(demos["mlm"][0]), 1.0, 0.1, 0.2, 42)
    encoded = task.encode(splits["test"], tokenizer, 32, progress=False)
    batch = collate(encoded, np.arange(8), tokenizer.pad_token_id)
    outputs, whole = (
        task.forward(model, batch),
        model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits,
    )
    chosen = batch["labels"] != IGNORE
    assert torch.allclose(outputs.logits, whole[chosen], atol=1e-6)
    loss = torch.nn.functional.cross_entropy(
        whole.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE
    )
    assert torch.allclose(task.loss(model, batch, outputs), loss)
    with torch.no_grad():
        counts = task.read_out(model, batch, task.forward(model, batch))
    assert sum(c[1] for c in counts) == chosen.sum() and sum(
        c[2] for c in counts
    ) / chosen.sum() == pytest.approx(float(loss.detach()), rel=1e-5)
    assert sum(c[0] for c in counts) == (whole.argmax(-1)[chosen] == batch["labels"][chosen]).sum()
