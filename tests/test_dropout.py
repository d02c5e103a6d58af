"""Dropout from 16 bits per element: the share, the scale, the gradient, the same bits from the same seed."""

import pytest
import torch
from torch import nn

from fast import attention, speedups
from fast.dropout import CheapDropout, drop
from test_speed import small


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_p_is_zero_and_the_mean_stays(p, dtype):
    torch.manual_seed(0)
    found = drop(torch.ones(1000, 1001, dtype=dtype), p)  # not a multiple of four numbers
    kept = found != 0
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=0.002)  # four standard errors
    for part in (kept[0::2], kept[:, 0::4], kept[:, 1::4], kept[:, 2::4], kept[:, 3::4]):
        assert part.float().mean().item() == pytest.approx(1 - p, abs=0.004)
    assert (kept[:, 1:] & kept[:, :-1]).float().mean().item() == pytest.approx((1 - p) ** 2, abs=0.004)
    assert found[kept].unique().tolist() == [pytest.approx(1 / (1 - p), rel=4e-3)]


def test_the_gradient_goes_where_the_values_went():
    x = torch.randn(7, 5, 3, requires_grad=True)
    y = drop(x, 0.4)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0) and torch.allclose(x.grad * x, y)


def test_a_seed_gives_the_same_masks():
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(drop(torch.ones(999), 0.5))
    assert masks[0].equal(masks[1]) and not masks[0].equal(masks[2])


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_none_and_all(p):
    layer = CheapDropout(p).train()
    x = torch.randn(100)
    assert (layer(x).count_nonzero() > 0) == (p == 0)
    assert layer.eval()(x).equal(x)


def test_a_model_in_training_draws_so_and_has_its_layers_back():
    model, inputs = small("bert")
    before = [type(module) for module in model.modules()]
    expected = model(**inputs).logits
    with speedups(model.train()):
        inside = list(model.modules())
        assert not any(type(module) is nn.Dropout for module in inside)
        assert sum(isinstance(module, CheapDropout) for module in inside) == before.count(nn.Dropout) > 0
        assert not model(**inputs).logits.equal(model(**inputs).logits)
        assert model.eval()(**inputs).logits.equal(expected)
    assert [type(module) for module in model.modules()] == before


def test_probabilities_of_attention_are_dropped_so_too():
    module, parts = nn.Module(), [torch.randn(1, 2, 64, 8) for _ in range(3)]
    parts[2] = torch.ones(1, 2, 64, 8)  # so that the answer is the sum of the probabilities
    torch.manual_seed(0)
    whole, _ = attention.products(module, *parts, None)
    dropped = torch.stack([attention.products(module, *parts, None, dropout=0.3)[0] for _ in range(50)])
    assert torch.allclose(whole, torch.ones_like(whole), atol=0.02)
    assert dropped.std().item() > 0.05 and dropped.mean().item() == pytest.approx(1, abs=0.02)
