"""What makes the same model faster: against the plain way of doing it."""

import copy
import time

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from bench.shape import bert_base, compressed, multiply_adds
from data import budget_batches
from fast import attention, cpu, int8, lean, speedups
from fast.optimizer import LazyAdamW, clip_gradients
from layers import set_attention_dropout
from predict import ahead
from run.inference import reading
from tasks.ner import Ner
from tasks.task import Task

CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    num_labels=3,
)
CHUNKED = BertConfig(**{**CONFIG.to_dict(), "chunk_size_feed_forward": 2})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BertForSequenceClassification(CONFIG).eval()


def steps(table, optimizers, ids, clip=None):
    """Three steps of an embedding table on the ids of each; returns it."""
    torch.manual_seed(1)
    for batch in ids:
        (table(torch.tensor(batch)) * torch.randn(len(batch), 8)).sum().backward()
        if clip:
            clip_gradients(list(table.parameters()), clip)
        elif table.sparse:
            table.weight.grad = table.weight.grad.coalesce()
        for optimizer in optimizers:
            optimizer.step()
        table.weight.grad = None
    return table.weight.detach()


def test_rows_step_as_in_sparse_adam_and_as_in_adamw_where_all_are_met():
    torch.manual_seed(0)
    start, sparse = nn.Embedding(6, 8), [[0, 2, 2], [2, 5], [0, 1, 1, 5]]
    tables = [copy.deepcopy(start) for _ in range(4)]
    tables[0].sparse = tables[1].sparse = tables[2].sparse = True
    ours = steps(tables[0], [LazyAdamW(tables[0].parameters(), lr=0.1, weight_decay=0.0)], sparse)
    reference = steps(tables[1], [torch.optim.SparseAdam(tables[1].parameters(), lr=0.1)], sparse)
    assert torch.allclose(ours, reference, atol=1e-6)
    assert torch.equal(ours[[3, 4]], start.weight[[3, 4]]) and not torch.allclose(
        ours[[0, 1, 2, 5]], start.weight[[0, 1, 2, 5]], atol=0.05
    )
    every = [[5, 4, 3, 2, 1, 0, 0]] * 3
    ours = steps(tables[2], [LazyAdamW(tables[2].parameters(), lr=0.1, weight_decay=0.2)], every, clip=0.7)
    optimizer = torch.optim.AdamW(tables[3].parameters(), lr=0.1, weight_decay=0.2)
    torch.manual_seed(1)
    for batch in every:
        (tables[3](torch.tensor(batch)) * torch.randn(len(batch), 8)).sum().backward()
        nn.utils.clip_grad_norm_(tables[3].parameters(), 0.7)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.allclose(ours, tables[3].weight, atol=1e-6)


def test_word_embeddings_are_sparse_only_where_it_pays(model):
    with speedups(model, tokens_per_step=25):
        assert not model.get_input_embeddings().sparse
    with speedups(model, tokens_per_step=24):
        assert model.get_input_embeddings().sparse
    assert not model.get_input_embeddings().sparse


def test_sparse_and_dense_gradients_are_clipped_together(model, batch):
    dense = copy.deepcopy(model)
    model.get_input_embeddings().sparse = True
    norms = []
    for each in (model, dense):
        each(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss.backward()
        clip_gradients(list(each.parameters()), 0.01)
        grads = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in each.parameters()]
        norms.append(torch.cat([g.flatten() for g in grads]))
    assert torch.allclose(*norms, atol=1e-8) and norms[0].norm() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.skipif(not attention.multiplies_bf16(), reason="this CPU has no bf16 products")
@pytest.mark.parametrize("name", attention.BF16)
def test_bf16_attention_answers_as_the_model_own_does(model, batch, monkeypatch, name):
    monkeypatch.setattr(attention, "FEWEST", 0)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        plain = model(**inputs).logits
        with speedups(model, bf16_attention=name):
            assert model.config._attn_implementation == name
            other = model(**inputs).logits
            with speedups(model):
                within = model(**inputs).logits
        again = model(**inputs).logits
    assert torch.equal(plain, within)
    assert (
        torch.allclose(plain, other, atol=0.01)
        and not torch.equal(plain, other)
        and torch.equal(plain, again)
    )


def test_the_faster_attention_is_timed_unless_bits_are_to_be_the_same(monkeypatch):
    monkeypatch.setattr(attention, "multiplies_bf16", lambda: True)
    slow, quick = (lambda *_: time.sleep(0.05)), (lambda *_: None)
    monkeypatch.setattr(attention, "BF16", {"bf16_products": slow, "bf16_fused": quick})
    attention.faster.cache_clear()
    assert attention.for_reading() == "bf16_fused"
    torch.use_deterministic_algorithms(True)
    assert attention.for_reading() == "bf16_products"
    torch.use_deterministic_algorithms(False)
    attention.faster.cache_clear()
    monkeypatch.setattr(attention, "BF16", {"bf16_products": quick, "bf16_fused": slow})
    assert attention.for_reading() == "bf16_products"
    attention.faster.cache_clear()


def test_products_have_the_gradients_of_attention(monkeypatch):
    monkeypatch.setattr(attention, "FEWEST", 0)
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3)]
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[1, :, :, 3:] = False
    added = torch.where(mask, 0.0, torch.finfo(torch.bfloat16).min).bfloat16()
    weights = torch.randn(2, 5, 3, 8)
    own = nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2)
    expected = torch.autograd.grad((own * weights).sum(), parts)
    found = torch.autograd.grad((attention.products(None, *parts, added)[0] * weights).sum(), parts)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=0.05) and other.abs().max() > 0.5


def test_products_read_only_what_the_mask_allows(monkeypatch):
    monkeypatch.setattr(attention, "FEWEST", 0)
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 8) for _ in range(3))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[1, :, :, 3:] = False
    expected = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    added = torch.where(mask, 0.0, torch.finfo(torch.bfloat16).min).bfloat16()
    assert torch.allclose(attention.products(None, query, key, value, added)[0], expected, atol=0.02)
    value[1, :, 3:] = 1e4
    assert torch.allclose(attention.products(None, query, key, value, added)[0], expected, atol=0.02)


def test_the_other_linear_is_the_same_linear(model, batch, monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        expected = model(**inputs).logits
        monkeypatch.setattr(cpu, "onednn_pays", lambda model: True)
        with reading(model, Task(), frozen=True):
            joined = model.bert.encoder.layer[0].attention.self.joined
            assert type(model.classifier) is type(joined) is cpu.OneDNNLinear
            assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)
        assert type(model.classifier) is nn.Linear


def small(kind):
    """A classifier of a family, and its inputs: two rows, one padded."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=50, hidden_size=32, num_hidden_layers=2,
                                  num_attention_heads=4, intermediate_size=64,
                                  num_labels=3, embedding_size=32, pad_token_id=0)  # fmt: skip
    ids = torch.randint(1, 50, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = ids[1, 6:] = 0
    return AutoModelForSequenceClassification.from_config(config).eval(), {
        "input_ids": ids,
        "attention_mask": mask,
    }


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "mpnet"])
def test_the_first_token_alone_gives_the_same_answers_and_the_same_gradients(kind):
    model, inputs = small(kind)
    found = []
    names, states = list(model.state_dict()), []
    for first in (False, True):
        with speedups(model, reads_first=first):
            assert list(model.state_dict()) == names
            body = model.base_model(**inputs)[0]
            outputs = model(**inputs)
            outputs.logits.square().sum().backward()
            gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            found.append((outputs.logits, gradients, body.shape[1]))
            model.zero_grad()
            states.append(model(**inputs, output_hidden_states=True).hidden_states)
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6) and torch.allclose(
        found[0][1], found[1][1], atol=1e-6
    )
    assert [each[2] for each in found] == [9, 1 if kind in attention.LIKE_BERT else 9]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*states, strict=True)) and len(states[0]) == 3
    model.config.output_hidden_states = True
    with speedups(model, reads_first=True):
        assert model(**inputs).hidden_states[-1].shape[1] == 9


@pytest.mark.parametrize("technique", ["base", "quantization", "lowrank", "pruning"])
@pytest.mark.parametrize("task", [Task, Ner])
def test_one_product_for_queries_keys_and_values_answers_as_three(technique, task, monkeypatch):
    monkeypatch.setattr(cpu, "onednn_pays", lambda model: False)
    monkeypatch.setattr(int8, "SMALL", 0)  # so that int8 products are int8
    options = {
        "lowrank": {"rank": 4},
        "pruning": {"structured": True, "keep_heads": 2, "keep_neurons": 48, "importance": "magnitude"},
    }.get(technique, {})
    model = compressed(technique, options, CONFIG)
    inputs = {
        "input_ids": torch.randint(50, (2, 9)),
        "attention_mask": torch.tensor([[1] * 9, [1] * 5 + [0] * 4]),
    }
    names = list(model.state_dict())
    with torch.inference_mode(), reading(model, task()):
        counted, expected = multiply_adds(model, 9), model(**inputs).logits
    with torch.inference_mode(), reading(model, task(), frozen=True):
        assert (
            torch.allclose(model(**inputs).logits, expected, atol=1e-6) and multiply_adds(model, 9) == counted
        )
        joined = [layer.attention.self.joined is not None for layer in model.bert.encoder.layer]
        assert joined == [technique != "lowrank"] * 2
    with torch.inference_mode(), reading(model, task()):
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-6)
    assert list(model.state_dict()) == names


def test_the_last_layer_for_one_token_takes_out_what_it_says():
    model = bert_base(CONFIG)
    before = multiply_adds(model, 100)
    with speedups(model, reads_first=True):
        after = multiply_adds(model, 100)
    layer, scores = 4 * 32 * 32 + 2 * 32 * 64, 2 * 100 * 32  # multiply-adds a token
    assert before - after == 99 * (layer - 2 * 32 * 32 + scores)


def test_prediction_batches_stay_in_their_budget():
    lengths = np.array([3, 50, 7, 7, 120, 1, 9, 30])
    batches = budget_batches(lengths, 60)
    assert sorted(np.concatenate(batches)) == list(range(8)) and [len(b) for b in batches] == [1, 1, 2, 4]
    assert all(lengths[b].max() * len(b) <= 60 for b in batches[1:])
    sizes = {len(b) for count in range(1, 400) for b in budget_batches(np.full(count, 10), 1000)}
    assert sizes == {1, 2, 4, 8, 16, 32, 64, 100}


def test_the_next_item_is_made_ahead_and_errors_arrive():
    made = []

    def items():
        for i in range(3):
            made.append(i)
            yield i
        raise ValueError("late")

    seen = []
    with pytest.raises(ValueError, match="late"):
        for item in ahead(items()):
            seen.append(item)
    assert seen == made == [0, 1, 2]


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet", "albert", "modernbert", "deberta-v2"])
def test_attention_dropout_is_found_in_every_family_and_no_other_is_touched(kind):
    config = AutoConfig.for_model(kind, vocab_size=50, hidden_size=32, num_hidden_layers=2,
                                  num_attention_heads=2, intermediate_size=48,
                                  hidden_dropout_prob=0.2, pad_token_id=0)  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    set_attention_dropout(model, 0.07)
    held = [m.attention_dropout for m in model.modules() if hasattr(m, "attention_dropout")]
    held += [
        m.dropout for m in model.modules() if "SelfAttention" in type(m).__name__ and hasattr(m, "dropout")
    ]
    assert len(held) >= (1 if kind == "albert" else 2)
    assert all((each.p if isinstance(each, nn.Dropout) else each) == 0.07 for each in held)
    named = {id(each) for each in held if isinstance(each, nn.Dropout)}
    assert all(m.p != 0.07 for m in model.modules() if isinstance(m, nn.Dropout) and id(m) not in named)


def test_products_leave_what_they_do_not_know_to_the_fused_kernel(monkeypatch):
    monkeypatch.setattr(attention, "FEWEST", 0)
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)

    class Grouped(nn.Module):
        num_key_value_groups = 2
        is_causal = False

    expected = nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), key.repeat_interleave(2, 1)
    ).transpose(1, 2)
    assert torch.allclose(attention.products(Grouped(), query, key, key, None)[0], expected, atol=1e-5)

    class Causal(nn.Module):
        is_causal = True

    expected = nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True).transpose(1, 2)
    assert torch.allclose(attention.products(Causal(), query, query, query, None)[0], expected, atol=1e-5)


def test_a_lean_layer_has_the_layers_own_numbers_and_is_put_back(model, batch):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True)
        with lean.lean_layers(model):
            assert all("forward" in layer.__dict__ for layer in model.bert.encoder.layer)
            assert [type(model.dropout), type(model.bert.encoder.layer[1].output.dropout)] == [
                nn.Identity
            ] * 2
            with lean.lean_layers(model):
                pass
            assert all("forward" in layer.__dict__ for layer in model.bert.encoder.layer)
            found = model(**inputs, output_hidden_states=True)
            alone = model(input_ids=inputs["input_ids"][:1])
    assert torch.equal(plain.logits, found.logits) and len(found.hidden_states) == 3
    assert torch.allclose(alone.logits, plain.logits[:1], atol=1e-6) and alone.hidden_states is None
    assert all(map(torch.equal, plain.hidden_states, found.hidden_states))
    assert not any("forward" in part.__dict__ for part in (model.bert, *model.bert.encoder.layer))
    assert type(model.dropout) is nn.Dropout
    for other in (model.train(), BertForSequenceClassification(CHUNKED).eval()):
        with lean.lean_layers(other):
            assert not any("forward" in layer.__dict__ for layer in other.bert.encoder.layer)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("head", [AutoModelForSequenceClassification, AutoModelForMaskedLM])
def test_rows_without_padding_go_from_layer_to_layer(kind, head, monkeypatch):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=50, hidden_size=32, num_hidden_layers=2,
                                  num_attention_heads=4, intermediate_size=64, pad_token_id=0)  # fmt: skip
    model, ids = head.from_config(config).eval(), torch.randint(1, 50, (3, 9))
    short = []
    answer = lean.BaseModelOutputWithPooling
    monkeypatch.setattr(
        lean, "BaseModelOutputWithPooling", lambda **parts: short.append(1) or answer(**parts)
    )
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with lean.lean_layers(model):
            assert torch.equal(model(input_ids=ids).logits, expected) and len(short) == (kind != "electra")
            masked = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    assert torch.allclose(masked.logits, expected, atol=1e-6) and len(masked.hidden_states) == 3
    assert len(short) == (kind != "electra") and "forward" not in vars(model.base_model)
