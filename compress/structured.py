"""Structured pruning: take attention heads and feed-forward neurons out, so that the matrices get smaller.

Head h of a layer owns rows of query, key and value and columns of the output projection; neuron n owns a
row of the first feed-forward matrix and a column of the second. What a unit (a head or a neuron) is worth:
    magnitude  the sum of squares of the weights that it owns
    fisher     the sum over notes of (dL/dm)^2, m = 1 a factor on its output: a first-order (Taylor) estimate
               of what the loss would rise by without it (Michel et al., 2019; Kwon et al., 2022)
With a target of multiply-adds, the units with the least worth per multiply-add go first, whatever their
kind and layer, so layers end up with different widths. Each layer keeps at least one head and some neurons.

What it does not save: embeddings and layer norms. It works on a fine-tuned model, and costs accuracy until
that model is trained again.
"""

from typing import NamedTuple

import torch
from torch import nn

from cli import BadInput
from layers import LAYOUTS, find_layers, replace_module

MULTIPLE = 16  # neurons are kept in multiples of this, which suits matrix kernels


class Layer(NamedTuple):
    """The units of one encoder layer.

    names: of its six matrices, in the order of LAYOUTS; first: whether it answers for the first token alone.
    """

    names: tuple
    heads: int
    head_size: int
    neurons: int
    first: bool = False


def layout_of(modules):
    """The layout of a layer's modules {name: module}; None if it is not known, or not plain Linear layers."""
    for names in LAYOUTS:
        if all(isinstance(modules.get(name), nn.Linear) for name in names):
            return names
    return None


def find_units(model, first=False):
    """[Layer] of the encoder; first: its last layer answers for the first token alone.

    Raises BadInput if the layers are of no known layout, or were compressed already.
    """
    prefix, layers = find_layers(model)
    found = []
    for index, layer in enumerate(layers):
        modules = dict(layer.named_modules())
        layout = layout_of(modules)
        if layout is None:
            raise BadInput(
                f"--structured and --student-width: does not know the layers of {type(model).__name__}; "
                "give a model with the layers of BERT or DistilBERT, not compressed yet"
            )
        attention = modules[layout[0].rpartition(".")[0]]
        found.append(
            Layer(
                names=tuple(f"{prefix}.{index}.{name}" for name in layout),
                heads=modules[layout[0]].out_features // attention.attention_head_size,
                head_size=attention.attention_head_size,
                neurons=modules[layout[4]].out_features,
                first=first and index == len(layers) - 1,
            )
        )
    return found


def costs(layer, hidden, length):
    """Multiply-adds per token of (one head, one neuron), in notes of `length` tokens."""
    answered = 1 / length if layer.first else 1.0  # share of the tokens; every token needs a key and a value
    return (2 * hidden + answered * (2 * hidden + 2 * length)) * layer.head_size, answered * 2 * hidden


def total_cost(layers, counts, hidden, length):
    """Multiply-adds per token of layers that keep counts [(heads, neurons)]."""
    each = [costs(layer, hidden, length) for layer in layers]
    return sum(
        heads * head + neurons * neuron for (heads, neurons), (head, neuron) in zip(counts, each, strict=True)
    )


@torch.no_grad()
def magnitude(model, layers):
    """[(worth of heads, worth of neurons)] by layer: sums of squares of the weights that a unit owns."""
    scores = []
    for layer in layers:
        query, key, value, out, up, down = (model.get_submodule(name).weight for name in layer.names)
        rows = sum(w.square().sum(1) for w in (query, key, value)) + out.square().sum(
            0
        )  # (heads * head_size,)
        scores.append((rows.view(layer.heads, -1).sum(1), up.square().sum(1) + down.square().sum(0)))
    return scores


def fisher(model, layers, loss, batches):
    """[(worth of heads, worth of neurons)] by layer: sums over notes of squared gradients of output factors.

    loss(batch) -> mean loss of a batch of notes. Each note has factors of its own, so one backward pass per
    batch gives every note's gradient.
    """
    scores = [(torch.zeros(layer.heads), torch.zeros(layer.neurons)) for layer in layers]
    for batch in batches:
        notes, device = batch["input_ids"].shape[0], batch["input_ids"].device
        factors, handles = [], []
        for layer in layers:
            for name, units, width in (
                (layer.names[3], layer.heads, layer.head_size),
                (layer.names[5], layer.neurons, 1),
            ):
                factor = torch.ones(notes, units, device=device, requires_grad=True)
                factors.append(factor)
                handles.append(model.get_submodule(name).register_forward_pre_hook(scaled_by(factor, width)))
        try:
            gradients = torch.autograd.grad(notes * loss(batch), factors)  # (notes, units) each
        finally:
            for handle in handles:
                handle.remove()

        for (heads, neurons), head, neuron in zip(scores, gradients[::2], gradients[1::2], strict=True):
            heads.add_(head.square().sum(0).cpu())
            neurons.add_(neuron.square().sum(0).cpu())
    return scores


def scaled_by(factor, width):
    """A forward pre-hook that multiplies inputs (B, T, units * width) by each note's factors (B, units)."""
    return lambda _, inputs: (inputs[0] * factor.repeat_interleave(width, 1)[:, None],)


def units_to_drop(layers, scores, hidden, length, target):
    """{(layer, kind, index)} of the units to drop for a cost of `target`; kind 0 head, 1 neuron."""
    units = []  # (worth per multiply-add, layer, kind, index); the best of each kind stays
    for i, (layer, pair) in enumerate(zip(layers, scores, strict=True)):
        for kind, (worth, cost) in enumerate(zip(pair, costs(layer, hidden, length), strict=True)):
            best = int(worth.argmax())
            units += [(float(w) / cost, i, kind, j) for j, w in enumerate(worth) if j != best]

    total = total_cost(layers, [(layer.heads, layer.neurons) for layer in layers], hidden, length)
    left, gone = total, set()
    for _, i, kind, j in sorted(units):
        if left <= target * total:
            break
        gone.add((i, kind, j))
        left -= costs(layers[i], hidden, length)[kind]
    return gone


def choose(layers, scores, hidden, length, target):
    """[(heads kept, neurons kept)] by layer, indices, so that multiply-adds fall to `target` of all."""
    gone = units_to_drop(layers, scores, hidden, length, target)
    kept = []
    for i, (layer, (_, worth)) in enumerate(zip(layers, scores, strict=True)):
        heads = [j for j in range(layer.heads) if (i, 0, j) not in gone]
        neurons = sum((i, 1, j) not in gone for j in range(layer.neurons))
        rounded = max(round(neurons / MULTIPLE) * MULTIPLE, MULTIPLE)
        kept.append((heads, top(worth, min(rounded, layer.neurons))))
    return kept


def top(worth, count):
    """Indices of the `count` largest, ascending."""
    return sorted(torch.topk(worth, count).indices.tolist())


@torch.no_grad()
def slice_linear(linear, rows=None, columns=None):
    """A Linear of the chosen output rows and input columns (None = all)."""
    weight, bias = linear.weight, linear.bias
    weight = weight if rows is None else weight[rows]
    weight = weight if columns is None else weight[:, columns]
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).to(weight)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias if rows is None else bias[rows])
    return layer


def remove(model, layers, kept):
    """Take out, in place, all but the kept heads and neurons [(heads, neurons)] of each layer."""
    for layer, (heads, neurons) in zip(layers, kept, strict=True):
        channels = [h * layer.head_size + c for h in heads for c in range(layer.head_size)]
        query, key, value, out, up, down = layer.names
        for name, rows, columns in (
            (query, channels, None),
            (key, channels, None),
            (value, channels, None),
            (out, None, channels),
            (up, neurons, None),
            (down, None, neurons),
        ):
            replace_module(model, name, slice_linear(model.get_submodule(name), rows, columns))
    return model
