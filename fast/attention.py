"""An encoder's attention with less work, by the same weights.

first token   Where the head reads only the first token, [CLS], the last layer needs every token's key and
              value, but only that token's query, output and feed-forward. Exact, in training too: the other
              tokens' gradients are zero there. (An int8 layer takes one scale for all that it sees, so for
              this token alone it takes a finer one.) It takes out 10/12 of a layer's products: 7% of 12
              layers', 42% of two. Whoever asks for all hidden states gets them all.
joined        For prediction: queries, keys and values by one product, the three matrices stacked.
products      Attention as two bf16 products and a softmax, where the CPU multiplies bf16: for training in
              bf16, and for int8 and bf16 models. Answers move by 1e-2 of a logit.
fused         The same by PyTorch's fused kernel, of bf16 copies. Some CPUs are faster by it, so a model that
              is read, int8 or bf16, takes the faster of the two, which is timed once.

What it does not save: bytes. The first two know BERT's layers and those built like them (LIKE_BERT).
"""

import contextlib
import functools
import math

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fast import cpu
from fast.dropout import drop
from layers import exchanged, find_layers, is_int8

LIKE_BERT = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
LONGEST = 512  # tokens up to which attention probabilities are held whole, (B, heads, T, T)
# Below this many probabilities one fused call is quicker: 0.02 ms against 0.06 at 12 heads, 14 tokens.
FEWEST = 2**14


def like_bert(model):
    """Whether the model's layers are built as BERT's are."""
    return model.config.model_type in LIKE_BERT and not model.config.is_decoder


# --- the last layer for the first token, and one product for three ----------------------------------


class ShortAttention(nn.Module):
    """BERT's self-attention with less work, with the layers of the module it replaces, names included."""

    def __init__(self, original, first, joined):
        """first: answer for the first token alone. joined: keys, values (and queries) by one product."""
        super().__init__()
        for name, child in original.named_children():
            self.add_module(name, child)
        self.config, self.scaling, self.is_causal = original.config, original.scaling, original.is_causal
        self.attention_head_size, self.first = original.attention_head_size, first
        inputs = ("key", "value") if first else ("query", "key", "value")
        self.joined = join([getattr(self, name) for name in inputs]) if joined else None
        self.train(original.training)

    def forward(self, hidden, attention_mask=None, past_key_values=None, **keywords):
        """Hidden states (B, T, H) -> (B, T, heads * d), None; for the first token (B, 1, heads * d), None."""
        first = self.first and not keywords.get("output_hidden_states", self.config.output_hidden_states)
        parts = self._projections(hidden, first)
        query, key, value = (x.unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2) for x in parts)
        if first and attention_mask is not None:
            attention_mask = attention_mask[:, :, :1]  # (B, 1, T, T) -> (B, 1, 1, T)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, sdpa_attention_forward
        )
        dropout = self.dropout.p if self.training else 0.0
        context, _ = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **keywords
        )
        return context.flatten(2), None

    def _projections(self, hidden, first):
        """Queries of all tokens or the first, keys and values of all: (B, 1 or T, heads * d) each."""
        if self.joined is None:
            key, value = self.key(hidden), self.value(hidden)
        elif self.first:
            key, value = self.joined(hidden).chunk(2, -1)
        else:
            return self.joined(hidden).chunk(3, -1)
        return self.query(hidden[:, :1] if first else hidden), key, value


class ShortOutput(nn.Module):
    """The output projection after it: adds the hidden states of the tokens that attention answered for."""

    def __init__(self, original):
        super().__init__()
        for name, child in original.named_children():
            self.add_module(name, child)
        self.original_class = type(original)
        self.train(original.training)

    def forward(self, context, hidden):
        """context (B, 1 or T, heads * d), hidden (B, T, H) -> (B, 1 or T, H)."""
        return self.original_class.forward(self, context, hidden[:, : context.shape[1]])


@contextlib.contextmanager
def less_work(model, reads_first, joined=False):
    """Short attention in the layers of a model like BERT while open; other models stay as they are."""
    name, layers = find_layers(model) if like_bert(model) else ("", [])
    places = {}
    for index, layer in enumerate(layers):
        first = reads_first and index == len(layers) - 1
        attention = layer.attention.self
        known = isinstance(attention, ShortAttention)  # the same is on already, further out
        if known and (attention.first >= first and (attention.joined is not None or not joined)):
            continue
        if first or joined:
            places[f"{name}.{index}.attention.self"] = ShortAttention(attention, first, joined)
        if first and not isinstance(layer.attention.output, ShortOutput):
            places[f"{name}.{index}.attention.output"] = ShortOutput(layer.attention.output)
    with exchanged(model, places):
        yield model


@torch.no_grad()
def join(parts):
    """One Linear that answers as several side by side; int8 if they are, None if they are of another kind.

    Dense parts become views of the joined weights, so that nothing is held twice.
    """
    if all(type(part) is nn.Linear for part in parts):
        whole = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts)).to(parts[0].weight)
        for name in ("weight", "bias"):
            tensors = [getattr(part, name) for part in parts]
            getattr(whole, name).data = torch.cat(tensors)
            for tensor, view in zip(
                tensors, getattr(whole, name).split([len(t) for t in tensors]), strict=True
            ):
                tensor.data = view.data
        return whole.requires_grad_(False)
    return join_int8(parts) if all(map(is_int8, parts)) else None


def join_int8(parts):
    """The same of torch.ao's dynamic int8 layers: rows, scales and zero points side by side."""
    weights = [part.weight() for part in parts]
    rows = torch.cat([weight.int_repr() for weight in weights])
    scales = torch.cat([weight.q_per_channel_scales() for weight in weights])
    zeros = torch.cat([weight.q_per_channel_zero_points() for weight in weights])
    whole = type(parts[0])(rows.shape[1], rows.shape[0], dtype=torch.qint8)
    packed = torch._make_per_channel_quantized_tensor(rows, scales, zeros, 0)
    whole.set_weight_bias(packed, torch.cat([part.bias() for part in parts]))
    whole.version = parts[0].version  # which says how many bits the inputs take
    return whole


# --- bf16 products ----------------------------------------------------------------------------------


def products(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **keywords):
    """Attention of query, key, value (B, heads, T, d) by bf16 products -> (B, T, heads, d), None.

    attention_mask: of `added_mask`. What this does not know, or does no sooner, goes to the fused kernel.
    """
    few = query.shape[:3].numel() * key.shape[2] < FEWEST and not dropout
    grouped = key.shape[1] != query.shape[1]
    if few or grouped or key.shape[2] > LONGEST or getattr(module, "is_causal", False):
        query, key = query.to(value.dtype), key.to(value.dtype)  # of an int8 layer beside another kind
        mask = attention_mask if attention_mask is None else attention_mask.to(query.dtype)
        return sdpa_attention_forward(
            module, query, key, value, mask, scaling=scaling, dropout=dropout, **keywords
        )
    scaling = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    q, k, v = (x.bfloat16().flatten(0, 1) for x in (query, key, value))  # (B * heads, T, d)
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scaling)
    if attention_mask is not None:  # past autograd, which would copy the gradient for a sum in a view
        scores.detach().unflatten(0, query.shape[:2]).add_(attention_mask)
    shares = scores.softmax(-1)  # (B * heads, T, T)
    shares = drop(shares, dropout) if dropout else shares
    context = torch.bmm(shares, v).unflatten(0, query.shape[:2])
    return context.transpose(1, 2).to(value.dtype).contiguous(), None


def fused(module, query, key, value, attention_mask, **keywords):
    """Attention of query, key, value (B, heads, T, d) by the fused bf16 kernel -> (B, T, heads, d), None."""
    half = (x.bfloat16() for x in (query, key, value))
    return sdpa_attention_forward(module, *half, attention_mask, **keywords)[0].to(value.dtype), None


def added_mask(*arguments, **keywords):
    """What is added to the scores, (B, 1, T, T): 0 where a token is read, else the least bf16 number."""
    mask = sdpa_mask(*arguments, **keywords)
    if mask is None:
        return None
    return torch.zeros_like(mask, dtype=torch.bfloat16).masked_fill_(~mask, torch.finfo(torch.bfloat16).min)


AttentionInterface.register("bf16_products", products)
AttentionMaskInterface.register("bf16_products", added_mask)
AttentionInterface.register("bf16_fused", fused)
AttentionMaskInterface.register("bf16_fused", sdpa_mask)
BF16 = {"bf16_products": products, "bf16_fused": fused}


def multiplies_bf16():
    """Whether this CPU has bf16 products of its own (AVX-512 BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported()


def for_reading():
    """Which of BF16 a model is read by: the faster one.

    With --deterministic and in several processes no clock chooses, so that all have the same bits: products.
    """
    return faster() if cpu.may_time() and multiplies_bf16() else "bf16_products"


@functools.cache
@torch.inference_mode()
def faster():
    """The name in BF16 of what is a tenth faster at 8 notes of 128 tokens, or products; timed once, 50 ms."""
    parts, module = [torch.randn(8, 12, 128, 64) for _ in range(3)], nn.Module()
    module.is_causal = False
    calls = [lambda f=f: f(module, *parts, None) for f in (BF16["bf16_products"], BF16["bf16_fused"])]
    products_took, fused_took = cpu.least_seconds(calls, 6)
    return "bf16_fused" if 1.1 * fused_took < products_took else "bf16_products"


@contextlib.contextmanager
def implementation(model, bf16):
    """While open, attention by the named one of BF16, if the CPU has bf16 products; else the model's own."""
    before = model.config._attn_implementation
    wanted = bf16 if bf16 and multiplies_bf16() else "sdpa"
    changes = getattr(model, "_supports_attention_backend", False) and {wanted, before} & BF16.keys()
    if changes:
        model.set_attn_implementation(wanted)
    try:
        yield model
    finally:
        if changes:
            model.set_attn_implementation(before)
