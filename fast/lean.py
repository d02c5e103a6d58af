"""A BERT layer's steps called one after another, for reading.

transformers takes each layer's second half through a function that looks up a signature at every call, and
through dropout that does nothing: 0.1 ms per layer and note, 8% of a short note in a 2 x 256 student. The
layer here calls its four parts itself, with the same modules and so the same numbers.

What it does not save: multiply-adds, bytes, or time in batches, whose products take most of it.
"""

import contextlib
import functools

from torch import nn

from fast.attention import like_bert
from layers import exchanged, find_layers


def layer_forward(layer, hidden, attention_mask=None, *_, **keywords):
    """What a BERT layer does with hidden states (B, T, H) -> (B, T, H); (B, 1, H) for the first token."""
    context, _ = layer.attention.self(hidden, attention_mask, **keywords)
    hidden = layer.attention.output(context, hidden)
    return layer.output(layer.intermediate(hidden), hidden)


@contextlib.contextmanager
def lean_layers(model):
    """While open, a model like BERT that is not trained calls its layers' parts directly. Yields it."""
    lean = not model.training and like_bert(model) and not model.config.chunk_size_feed_forward
    layers = [layer for layer in find_layers(model)[1] if "forward" not in vars(layer)] if lean else []
    dropouts = [name for name, module in model.named_modules() if layers and type(module) is nn.Dropout]
    dropouts = [
        name for name in dropouts if not name.endswith("attention.self.dropout")
    ]  # only its p is read
    for layer in layers:
        layer.forward = functools.partial(layer_forward, layer)
    try:
        with exchanged(model, {name: nn.Identity().eval() for name in dropouts}):
            yield model
    finally:
        for layer in layers:
            del layer.forward
