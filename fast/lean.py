"""A BERT's steps called one after another, for reading.

transformers takes each layer's second half through a function that looks up a signature at every call, and
through dropout that does nothing: 0.1 ms per layer and note, 8% of a short note in a 2 x 256 student. The
layer here calls its four parts itself, with the same modules and so the same numbers. Around the layers it
looks up settings and collects what nobody asked for, 0.3 ms; rows without padding go from layer to layer.

What it does not save: multiply-adds, bytes, or time in batches, whose products take most of it.
"""

import contextlib
import functools

from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fast.attention import like_bert
from layers import exchanged, find_layers


def layer_forward(layer, hidden, attention_mask=None, *_, **keywords):
    """What a BERT layer does with hidden states (B, T, H) -> (B, T, H); (B, 1, H) for the first token."""
    context, _ = layer.attention.self(hidden, attention_mask, **keywords)
    hidden = layer.attention.output(context, hidden)
    return layer.output(layer.intermediate(hidden), hidden)


def encoder_forward(encoder, usual, input_ids=None, attention_mask=None, return_dict=True, **others):
    """What a BERT without its head answers to token ids (B, T) alone; who asks for more gets the usual."""
    asked = {name: value for name, value in others.items() if value is not None}
    if input_ids is None or attention_mask is not None or asked or not return_dict:
        return usual(input_ids=input_ids, attention_mask=attention_mask, return_dict=return_dict, **asked)
    hidden = encoder.embeddings(input_ids=input_ids)  # (B, T, H)
    for layer in encoder.encoder.layer:
        hidden = layer(hidden)
    pooled = None if encoder.pooler is None else encoder.pooler(hidden)
    return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


def lean_forwards(model):
    """[(module, its forward here)] of a model like BERT that is not trained; none of others, none twice."""
    config, encoder = model.config, model.base_model
    if model.training or not like_bert(model) or config.chunk_size_feed_forward:
        return []
    layers = [layer for layer in find_layers(model)[1] if "forward" not in vars(layer)]
    found = [(layer, functools.partial(layer_forward, layer)) for layer in layers]
    collects = config.output_hidden_states or config.output_attentions
    if layers and hasattr(encoder, "pooler") and not collects:
        found.append((encoder, functools.partial(encoder_forward, encoder, encoder.forward)))
    return found


@contextlib.contextmanager
def lean_layers(model):
    """While open, a model like BERT that is not trained calls its parts directly. Yields it."""
    changed = lean_forwards(model)
    dropouts = [name for name, module in model.named_modules() if changed and type(module) is nn.Dropout]
    dropouts = [
        name for name in dropouts if not name.endswith("attention.self.dropout")
    ]  # only its p is read
    for module, forward in changed:
        module.forward = forward
    try:
        with exchanged(model, {name: nn.Identity().eval() for name in dropouts}):
            yield model
    finally:
        for module, _ in changed:
            del module.forward
