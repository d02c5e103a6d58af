"""Dynamic int8 products by oneDNN's own call, for prediction where the CPU has integer products (VNNI).

An int8 layer gives its input one scale s and zero point z, multiplies in integers and scales back:
y = s w (q - z) W^T + b, with q = clamp(round(x / s) + z, 0, 255). torch.ao's layer does it in one call; here
it is three, the extremes of x, q, and the product, which together take less time. In the pass that writes
y, oneDNN also applies the GELU that follows or adds the hidden states to it, and answers in bf16 where
attention is computed in it.

A product so small that three calls take longer than it does, of thin or narrow layers and a few tokens, is
made in fp32, of the int8 weights' values.

What it does not save: bytes. Each layer's weights are held a second time in oneDNN's order, and thin or
narrow ones in fp32, too, once a few tokens come. Answers move by rounding: torch.ao comes by other steps to s
and z, a small product does not round its input, and queries, keys and values are bf16 in short notes too.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import GELUActivation

from fast.attention import BF16, ShortAttention, like_bert
from layers import exchanged, find_layers, is_int8, without_deprecations

# An fp32 product of so many multiply-adds is sooner than three calls: 18 us against 59 for 16 x 768 -> 32.
SMALL = 2**22
LIGHT = 2**18  # Of more weights than these it is not: to read four times the bytes takes longer.


class Int8Product(nn.Module):
    """A torch.ao int8 layer's product by oneDNN. No gradients."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.gelu, self.answers = layer, False, torch.float32
        self.in_features, self.out_features = layer.in_features, layer.out_features
        # at the first call that needs them: a layer that another stands in for is never packed
        self.packed = self.values = None

    @without_deprecations()
    def pack(self):
        """(weights in oneDNN's order, their scales, zero points), the bias."""
        weight, bias = self.layer.weight(), self.layer.bias()
        zeros = torch.zeros(self.out_features, dtype=torch.int32)
        packed = torch.ops.onednn.qlinear_prepack(weight.int_repr(), None)
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)  # it warns at its first call
        return (packed, weight.q_per_channel_scales().float(), zeros), None if bias is None else bias.detach()

    def forward(self, x, added=None):
        """x (..., in) -> (..., out); added: of the same shape as the answer, is added to it."""
        if self.is_small(x):
            return self.fp32_product(x, added)
        if self.packed is None:
            self.packed = self.pack()
        weights, bias = self.packed
        product, q = torch.ops.onednn.qlinear_pointwise, eight_bits(x)
        if added is not None:
            after = (1.0, 0, "add", 1.0, "none", [], "")
            return product.binary(*q, *weights, added, bias, 1.0, 0, self.answers, *after)
        after = ("gelu", [], "none") if self.gelu else ("none", [], "")
        return product.default(*q, *weights, bias, 1.0, 0, self.answers, *after)

    def is_small(self, x):
        """Whether x is so small that an fp32 product is sooner."""
        light = self.in_features * self.out_features <= LIGHT
        return light and x.numel() * self.out_features <= SMALL

    def fp32_product(self, x, added):
        """The answer by an fp32 product of x, not rounded, with the int8 weights' values."""
        if self.values is None:
            bias = self.layer.bias()
            self.values = self.layer.weight().dequantize(), None if bias is None else bias.detach()
        y = F.linear(x.float(), *self.values)
        y = y if added is None else y + added
        return (F.gelu(y) if self.gelu else y).to(self.answers)


def eight_bits(x):
    """(q uint8, s, z) of x: s and z from its extremes, 0 among them, so that 0 stays 0."""
    low, high = torch.aminmax(x)
    low, high = min(low.item(), 0.0), max(high.item(), 0.0)
    scale = max((high - low) / 255, 1e-12)
    zero = min(round(-low / scale), 255)
    q = torch.quantize_per_tensor(x.float(), scale, zero, torch.quint8)
    # the same bytes as a plain tensor; int_repr() would copy them, one by one
    return torch.empty(0, dtype=torch.uint8).set_(q.untyped_storage(), 0, q.shape, q.stride()), scale, zero


class Factors(nn.Module):
    """Both products of a low-rank layer; the second adds what is to be added."""

    def __init__(self, down, up):
        super().__init__()
        self.down, self.up = down, up

    def forward(self, x, added):
        """x (..., in), added (..., out) -> (..., out)."""
        return self.up(self.down(x), added)


class AddAndNorm(nn.Module):
    """BERT's output layers: a product, the hidden states added to it, a layer norm."""

    def __init__(self, product, norm):
        super().__init__()
        self.dense, self.LayerNorm = product, norm

    def forward(self, x, hidden):
        """x (B, T, in), hidden (B, T or more, H) -> (B, T, H)."""
        return self.LayerNorm(self.dense(x, hidden[:, : x.shape[1]].contiguous()))


def onednn_multiplies_int8():
    """Whether oneDNN has integer products of 8-bit inputs on this CPU, and this torch their call."""
    return torch.cpu._is_vnni_supported() and hasattr(torch.ops.onednn, "qlinear_pointwise")


@contextlib.contextmanager
def faster_int8(model):
    """While open, a model's int8 layers multiply by oneDNN's own call, if this CPU can. Yields the model."""
    there = {name: module for name, module in model.named_modules() if is_int8(module)}
    places = {name: Int8Product(layer) for name, layer in there.items() if onednn_multiplies_int8()}
    if places and like_bert(model):
        stack, layers = find_layers(model)
        for index, layer in enumerate(layers):
            join_passes(layer, f"{stack}.{index}", places, model.config._attn_implementation in BF16)
    with exchanged(model, {name: module.train(model.training) for name, module in places.items()}):
        yield model


def join_passes(layer, name, places, bf16):
    """Let the products in a BERT layer, {name: Int8Product}, do what follows them; changes `places`."""
    takes_bf16 = bf16 and isinstance(layer.attention.self, ShortAttention)
    ends = ["joined", *(f"{part}{end}" for part in ("query", "key", "value") for end in ("", ".up"))]
    for product in ends if takes_bf16 else ():  # a low-rank layer ends in its second factor
        if f"{name}.attention.self.{product}" in places:
            places[f"{name}.attention.self.{product}"].answers = torch.bfloat16
    gelu = layer.intermediate.intermediate_act_fn
    for dense in ("dense", "dense.up"):
        product = places.get(f"{name}.intermediate.{dense}")
        if product and isinstance(gelu, GELUActivation) and gelu.act is F.gelu:
            product.gelu = True
            places[f"{name}.intermediate.intermediate_act_fn"] = nn.Identity()
    for part in ("attention.output", "output"):
        dense, norm = f"{name}.{part}.dense", layer.get_submodule(part).LayerNorm
        product = places.pop(dense, None)
        if not product and {f"{dense}.down", f"{dense}.up"} <= places.keys():
            product = Factors(places.pop(f"{dense}.down"), places.pop(f"{dense}.up"))
        if product:
            places[f"{name}.{part}"] = AddAndNorm(product, norm)
