"""Masked language modelling: the masks, and the head on masked places alone."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from data import IGNORE, collate
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
