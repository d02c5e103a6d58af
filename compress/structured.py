"""Structured pruning: attention heads and feed-forward neurons are taken out, so matrices get smaller and products cheaper.

Head h of a layer owns rows of query, key, value and columns of the output projection; neuron n owns a row of the first
feed-forward matrix and a column of the second. What a unit is worth, by one of two measures:
    magnitude  the sum of squares of the weights it owns
    fisher     the mean over notes of (dL/dm)^2, m = 1 a factor on its output: the first-order (Taylor) estimate of what its
               loss costs (Michel et al., 2019; Kwon et al., 2022), per multiply-add it takes
With a target of multiply-adds, the units worth least for their cost go first, whatever their kind and layer, so layers end
up with different widths; each keeps at least one head and some neurons.

What it does not save: embeddings, layer norms. What it costs is won back by training, from a fine-tuned model.
"""

from typing import NamedTuple

import torch
from torch import nn

from cli import BadInput
from layers import LAYOUTS, find_layers, replace_module

MULTIPLE = 16  # neurons are kept in multiples of this, which matrix kernels like


class Layer(NamedTuple):
    """One encoder layer's units: the module names of its six matrices, heads of how many channels, neurons; does it answer for
    the first token alone."""  # fmt: skip

    names: tuple
    heads: int
    head_size: int
    neurons: int
    first: bool = False


def find_units(model, first=False):
    """[Layer] of the encoder; first: the last one answers for the first token alone. Raises BadInput if its layers are of no known layout."""
    prefix, layers = find_layers(model)
    found = []
    for index, layer in enumerate(layers):
        modules = dict(layer.named_modules())
        layout = next((names for names in LAYOUTS if all(isinstance(modules.get(name), nn.Linear) for name in names)), None)
        if layout is None:
            raise BadInput(
                f"--structured or --student-width: does not know the layers of {type(model).__name__}, or they are not plain any more"
            )
        attention = modules[layout[0].rpartition(".")[0]]
        size = attention.attention_head_size
        found.append(Layer(tuple(f"{prefix}.{index}.{name}" for name in layout), modules[layout[0]].out_features // size, size,
                           modules[layout[4]].out_features, first and index == len(layers) - 1))  # fmt: skip
    return found


def costs(layer, hidden, length):
    """Multiply-adds a token of (one head, one neuron) at this many tokens a note."""
    answered = 1 / length if layer.first else 1.0  # share of the tokens; keys and values are needed of all
    return (2 * hidden + answered * (2 * hidden + 2 * length)) * layer.head_size, answered * 2 * hidden


@torch.no_grad()
def magnitude(model, layers):
    """[(worth of heads, worth of neurons)] by layer: sums of squares of the weights that a unit owns."""
    scores = []
    for layer in layers:
        query, key, value, out, up, down = (model.get_submodule(name).weight for name in layer.names)
        rows = sum(w.square().sum(1) for w in (query, key, value)) + out.square().sum(0)  # (channels,)
        scores.append((rows.view(layer.heads, -1).sum(1), up.square().sum(1) + down.square().sum(0)))
    return scores


def fisher(model, layers, loss, batches):
    """[(worth of heads, worth of neurons)] by layer: sums over notes of squared gradients of factors on their outputs.

    loss(batch) -> mean loss of a batch of notes; one backward pass a batch gives each note's own gradient.
    """
    scores = [(torch.zeros(layer.heads), torch.zeros(layer.neurons)) for layer in layers]
    for batch in batches:
        notes, factors, handles = len(batch["input_ids"]), [], []
        for layer in layers:
            for name, units, width in ((layer.names[3], layer.heads, layer.head_size), (layer.names[5], layer.neurons, 1)):
                factor = torch.ones(notes, units, device=batch["input_ids"].device, requires_grad=True)
                factors.append(factor)

                def scale(_, inputs, factor=factor, width=width):
                    return (inputs[0] * factor.repeat_interleave(width, 1)[:, None],)  # (B, T, units * width)

                handles.append(model.get_submodule(name).register_forward_pre_hook(scale))
        try:
            gradients = torch.autograd.grad(notes * loss(batch), factors)
        finally:
            for handle in handles:
                handle.remove()
        for pair, head, neuron in zip(scores, gradients[::2], gradients[1::2]):
            pair[0].add_(head.square().sum(0).cpu())
            pair[1].add_(neuron.square().sum(0).cpu())
    return scores


def choose(layers, scores, hidden, length, target):
    """[(heads kept, neurons kept), indices ascending] by layer, so that multiply-adds fall to `target` of the encoder's."""
    units = []  # (worth per multiply-add, layer, kind, index)
    for i, (layer, pair) in enumerate(zip(layers, scores)):
        for kind, (worth, cost) in enumerate(zip(pair, costs(layer, hidden, length))):
            best = int(worth.argmax())
            units += [(float(w) / cost, i, kind, j) for j, w in enumerate(worth) if j != best]
    total = sum(layer.heads * h + layer.neurons * n for layer in layers for h, n in [costs(layer, hidden, length)])
    left, gone = total, set()
    for _, i, kind, j in sorted(units):
        if left <= target * total:
            break
        gone.add((i, kind, j))
        left -= costs(layers[i], hidden, length)[kind]
    kept = []
    for i, (layer, pair) in enumerate(zip(layers, scores)):
        heads = [j for j in range(layer.heads) if (i, 0, j) not in gone]
        neurons = round(sum((i, 1, j) not in gone for j in range(layer.neurons)) / MULTIPLE) * MULTIPLE
        kept.append((heads, top(pair[1], min(max(neurons, MULTIPLE), layer.neurons))))
    return kept


def top(worth, count):
    """Indices of the `count` largest, ascending."""
    return sorted(torch.topk(worth, count).indices.tolist())


@torch.no_grad()
def narrow(linear, rows=None, columns=None):
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
    for layer, (heads, neurons) in zip(layers, kept):
        channels = [h * layer.head_size + c for h in heads for c in range(layer.head_size)]
        for at, rows, columns in ((0, channels, None), (1, channels, None), (2, channels, None), (3, None, channels),
                                  (4, neurons, None), (5, None, neurons)):  # fmt: skip
            replace_module(model, layer.names[at], narrow(model.get_submodule(layer.names[at]), rows, columns))
    return model
