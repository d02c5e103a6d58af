"""An encoder's attention with less work, by the same weights.

first_token   Where the head reads the first token alone, [CLS], the last layer needs every token's key and value, and of all else,
              query, output, feed-forward, only that token's. Exact, in training too: the other tokens' gradients are zero there.
              (int8 layers, which take one scale for all that they see, take a finer one for these tokens alone.)
              It takes out 10/12 of a layer's products: 7% of 12 layers', 42% of two.
stacked       For prediction: queries, keys and values as one product by three matrices on top of each other, int8 ones too.
products      Attention as two bf16 products and a softmax, where the CPU multiplies bf16: for models that are int8 already and
              for training in bf16. Fused CPU kernels multiply in fp32 inside; answers move by 1e-2 of a logit.

What it does not save: bytes. first_token and stacked know BERT's layers and those built like them (LIKE_BERT).
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from layers import find_layers

LIKE_BERT = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
LONGEST = 512  # tokens for which attention probabilities are held whole, (B, heads, T, T)
FEWEST = 2**14  # of those probabilities, below which one fused call is quicker than several: 0.02 ms against 0.06 at 12 heads, 14 tokens


def attend(module, hidden, attention_mask=None, past_key_values=None, first=False, **keywords):
    """BERT's self-attention of hidden states (B, T, H) -> (B, T, heads * d), None; first: the first token's alone, (B, 1, heads * d)."""
    if stacked := getattr(module, "stacked", None):
        *query, key, value = stacked(hidden).chunk(2 if module.query else 3, -1)
    else:
        query, key, value = [], module.key(hidden), module.value(hidden)
    query = query[0] if query else module.query(hidden[:, :1] if first else hidden)
    query = query[:, :1] if first else query
    query, key, value = (x.unflatten(-1, (-1, module.attention_head_size)).transpose(1, 2) for x in (query, key, value))
    if first and attention_mask is not None:
        attention_mask = attention_mask[:, :, :1]  # (B, 1, T, T) -> (B, 1, 1, T)
    interface = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, sdpa_attention_forward)
    dropout = module.dropout.p if module.training else 0.0
    context, _ = interface(module, query, key, value, attention_mask, dropout=dropout, scaling=module.scaling, **keywords)
    return context.flatten(2), None


def add_to_first(module, hidden, residual):
    """The output projection of the first token's context (B, 1, heads * d), added to that token's hidden state of (B, T, H)."""
    return type(module).forward(module, hidden, residual[:, :1])


def like_bert(model):
    """Whether the model's layers are built as BERT's are."""
    return model.config.model_type in LIKE_BERT and not model.config.is_decoder


def attentions(model):
    """The layers' attention modules, in order; none if the model is not like BERT."""
    return [layer.attention for layer in find_layers(model)[1]] if like_bert(model) else []


def answers_first(attention):
    """Whether `first_token` set this self-attention."""
    return getattr(vars(attention).get("forward"), "keywords", {}).get("first", False)


def first_token(model):
    """Let the last layer answer for the first token alone, in place, unless the config asks for all hidden states. Returns the model."""
    for last in [] if model.config.output_hidden_states else attentions(model)[-1:]:
        if not answers_first(last.self):  # a compiled model would take another forward for another model
            last.self.forward = functools.partial(attend, last.self, first=True)
            last.output.forward = functools.partial(add_to_first, last.output)
    return model


def joined(parts):
    """One Linear that answers as several of the same input do, side by side; int8 if they are, None if they are neither."""
    if all(type(part) is nn.Linear for part in parts):
        whole = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts)).to(parts[0].weight)
        whole.load_state_dict({name: torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias")})
        return whole
    if not all(type(part).__module__.startswith("torch.ao.nn.quantized.dynamic") for part in parts):
        return None
    weights = [part.weight() for part in parts]
    rows, scales, zeros = (
        torch.cat([getattr(w, name)() for w in weights]) for name in ("int_repr", "q_per_channel_scales", "q_per_channel_zero_points")
    )
    whole = type(parts[0])(rows.shape[1], rows.shape[0], dtype=torch.qint8)
    whole.set_weight_bias(torch._make_per_channel_quantized_tensor(rows, scales, zeros, 0), torch.cat([part.bias() for part in parts]))
    whole.version = parts[0].version  # which says how many bits the inputs take
    return whole


def stack(model):
    """Make queries, keys and values by one product, in place, for prediction: afterwards the model cannot be saved. Returns it."""
    for module in (attention.self for attention in attentions(model)):
        first = answers_first(module)
        names = ("key", "value") if first else ("query", "key", "value")
        if whole := joined([getattr(module, name) for name in names]):
            module.stacked, module.forward = whole, functools.partial(attend, module, first=first)
            for name in names:
                setattr(module, name, None)
    return model


def products(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **keywords):
    """Attention of query, key, value (B, heads, T, d) by bf16 products -> (B, T, heads, d), None; attention_mask of `added_mask`."""
    few = query.shape[:3].numel() * key.shape[2] < FEWEST and not dropout
    if few or key.shape[2] > LONGEST or key.shape[1] != query.shape[1] or getattr(module, "is_causal", False):
        attention_mask = attention_mask if attention_mask is None else attention_mask.to(query.dtype)
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **keywords)
    scaling = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    scores = (query * scaling).bfloat16() @ key.bfloat16().transpose(-1, -2)  # (B, heads, T, T)
    if attention_mask is not None:
        scores += attention_mask
    shares = F.dropout(scores.softmax(-1), dropout, training=bool(dropout))
    return (shares @ value.bfloat16()).transpose(1, 2).to(value.dtype).contiguous(), None


def added_mask(*arguments, **keywords):
    """What is added to the scores, once for all layers: 0 where a token is read, the least bf16 number where not, (B, 1, T, T)."""
    mask = sdpa_mask(*arguments, **keywords)
    return mask if mask is None else torch.zeros_like(mask, dtype=torch.bfloat16).masked_fill_(~mask, torch.finfo(torch.bfloat16).min)


AttentionInterface.register("bf16_products", products)
AttentionMaskInterface.register("bf16_products", added_mask)


def multiplies_bf16():
    """Whether this CPU has bf16 products of its own (AVX-512 BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported()


def bf16_attention(model, on=True):
    """Set a model's attention to `products`, in place, if it and the CPU allow it; on=False sets it back."""
    if multiplies_bf16() and getattr(model, "_supports_attention_backend", False):
        model.set_attn_implementation("bf16_products" if on else "sdpa")
    return model
