"""int8 products by oneDNN's own call: against the formula, torch.ao's layers, and what follows them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.shape import compressed, multiply_adds
from compress.quantization import quantize_linears
from fast import attention, int8, speedups
from layers import is_int8
from test_speed import CONFIG

INPUTS = {
    "input_ids": torch.arange(18).view(2, 9),
    "attention_mask": torch.tensor([[1] * 9, [1] * 5 + [0] * 4]),
}
by_onednn = pytest.mark.skipif(not int8.onednn_multiplies_int8(), reason="this CPU has no integer products")


@pytest.fixture(autouse=True)
def products_in_int8(monkeypatch):
    """However small they are."""
    monkeypatch.setattr(int8, "SMALL", 0)


def layers(width, out, bias=True):
    """(an nn.Linear, torch.ao's int8 layer of it, ours of that)."""
    torch.manual_seed(0)
    linear = nn.Linear(width, out, bias)
    quantized = quantize_linears(nn.Sequential(copy.deepcopy(linear)))[0]
    return linear, quantized, int8.Int8Product(quantized)


def by_formula(layer, x):
    """s w (q - z) W^T + b, in double."""
    q, scale, zero = int8.eight_bits(x)
    weight = layer.weight()
    rows = weight.int_repr().double() * weight.q_per_channel_scales().double()[:, None]
    bias = 0 if layer.bias() is None else layer.bias().double()
    return scale * (q.double() - zero) @ rows.T + bias


@by_onednn
@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 9, 64), (40, 64)])
def test_a_product_is_what_the_formula_says(shape, bias):
    linear, quantized, ours = layers(64, 48, bias)
    x = 3 * torch.randn(shape) + 1
    found = ours(x)
    assert found.dtype == torch.float32 and torch.allclose(
        found.double(), by_formula(quantized, x), atol=1e-5
    )
    for other in (linear, quantized):
        assert (found - other(x)).norm() < 0.02 * other(x).norm()


@by_onednn
@torch.inference_mode()
def test_a_small_product_is_made_in_fp32_of_the_same_weights(monkeypatch):
    monkeypatch.setattr(int8, "SMALL", 9 * 64 * 48)
    _, quantized, ours = layers(64, 48)
    x = torch.randn(9, 64)
    assert torch.allclose(ours(x), F.linear(x, quantized.weight().dequantize(), quantized.bias()), atol=1e-6)
    assert ours.packed is None and "values" not in ours.state_dict()
    more = torch.cat([x, x])
    assert torch.allclose(ours(more).double(), by_formula(quantized, more), atol=1e-5)
    monkeypatch.setattr(int8, "LIGHT", 64 * 48 - 1)
    heavy = int8.Int8Product(quantized)
    assert torch.allclose(heavy(x).double(), by_formula(quantized, x), atol=1e-5) and heavy.values is None


@by_onednn
@torch.inference_mode()
@pytest.mark.parametrize("small", [0, 2**22])
def test_gelu_and_sum_are_those_that_follow(small, monkeypatch):
    monkeypatch.setattr(int8, "SMALL", small)
    _, _, ours = layers(64, 48)
    x, hidden = torch.randn(2, 9, 64), torch.randn(2, 9, 48)
    plain = ours(x)
    assert torch.allclose(ours(x, hidden), plain + hidden, atol=1e-5)
    ours.gelu = True
    assert torch.allclose(ours(x), F.gelu(plain), atol=1e-5)
    ours.answers = torch.bfloat16
    assert ours(x).dtype == torch.bfloat16 and torch.allclose(ours(x).float(), F.gelu(plain), atol=0.01)


@torch.inference_mode()
@pytest.mark.parametrize("x", [torch.zeros(3, 4), torch.full((3, 4), 7.0), torch.full((3, 4), -1e-3)])
def test_nothing_but_one_value_is_read_as_it_is(x):
    q, scale, zero = int8.eight_bits(x)
    assert q.dtype == torch.uint8 and q.shape == x.shape
    assert torch.allclose(scale * (q.float() - zero), x, rtol=0.01)


@by_onednn
@torch.inference_mode()
@pytest.mark.parametrize(
    "technique, options",
    [
        ("quantization", {}),
        ("lowrank+quantization", {"rank": 8}),
        ("pruning+quantization", {"structured": True, "keep_heads": 2, "keep_neurons": 32}),
    ],
)
@pytest.mark.parametrize("bf16", [None, "bf16_products"])
def test_a_model_answers_as_with_its_own_layers(technique, options, bf16):
    model = compressed(technique, {"importance": "magnitude", **options}, CONFIG)
    names, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    expected, counted = model(**INPUTS).logits, multiply_adds(model, 9)
    in_bf16 = bf16 is not None and attention.multiplies_bf16()
    for first in (False, True):
        with speedups(model, reads_first=first, bf16_attention=bf16, frozen=True):
            inside = list(model.modules())
            wrapped = {id(m.layer) for m in inside if isinstance(m, int8.Int8Product)}
            assert all(id(module) in wrapped for module in inside if is_int8(module))
            assert sum(getattr(module, "gelu", False) is True for module in inside) == 2
            sums = [m for m in inside if isinstance(m, int8.AddAndNorm)]
            assert len(sums) == 4
            for name, module in model.named_modules():
                if isinstance(module, int8.Int8Product):  # queries, keys and values, but no first factor
                    half = ".attention.self." in name and not name.endswith(".down")
                    assert (module.answers == torch.bfloat16) == (half and in_bf16), name
            found = model(**INPUTS).logits
            assert (found - expected).norm() < 0.05 * expected.norm()
            assert first or multiply_adds(model, 9) == counted
    assert list(model.state_dict()) == names and [type(module) for module in model.modules()] == kinds
    assert model(**INPUTS).logits.equal(expected)


@by_onednn
@torch.inference_mode()
@pytest.mark.parametrize("fewest", [0, attention.FEWEST])
@pytest.mark.parametrize("dense", [("key",), ("query", "value"), ("query", "key")])
def test_thin_and_dense_projections_meet_in_one_layer(dense, fewest, monkeypatch):
    monkeypatch.setattr(attention, "FEWEST", fewest)
    model = compressed("lowrank", {"rank": 8}, CONFIG)
    for layer in model.bert.encoder.layer:
        for name in dense:
            thin = getattr(layer.attention.self, name)
            whole = nn.Linear(thin.down.in_features, thin.up.out_features)
            whole.weight.copy_(thin.up.weight @ thin.down.weight)
            whole.bias.copy_(thin.up.bias)
            setattr(layer.attention.self, name, whole)
    model = quantize_linears(model)
    expected = model(**INPUTS).logits
    for first in (False, True):
        with speedups(model, reads_first=first, bf16_attention="bf16_products", frozen=True):
            assert (model(**INPUTS).logits - expected).norm() < 0.05 * expected.norm()


@torch.inference_mode()
def test_a_cpu_without_integer_products_keeps_torch_ao_layers(monkeypatch):
    monkeypatch.setattr(int8, "onednn_multiplies_int8", lambda: False)
    model = compressed("quantization", {}, CONFIG)
    with speedups(model, frozen=True):
        assert not any(isinstance(module, int8.Int8Product) for module in model.modules())


@by_onednn
@torch.inference_mode()
def test_a_model_unlike_bert_keeps_its_passes():
    model = compressed("quantization", {}, CONFIG)
    expected = model(**INPUTS).logits
    model.config.model_type = "other"
    with speedups(model, frozen=True):
        ours = [module for module in model.modules() if isinstance(module, int8.Int8Product)]
        assert len(ours) == 2 * 6 + 2 and not any(product.gelu for product in ours)
        assert (model(**INPUTS).logits - expected).norm() < 0.05 * expected.norm()
