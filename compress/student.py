"""A student cut from its teacher: fewer layers, and narrower ones, that start from what the teacher knows.

Layers: evenly spaced (as DistilBERT does: 0, 2, 4, 7, 9, 11 of 12), or the best ones, found greedily: the
layer whose removal raises the loss on calibration notes least goes first.

Width: project the residual stream x (H) on its W principal directions P (H, W), the leading eigenvectors of
E[x x^T] after all layer norms. A matrix M that reads the stream becomes M P, one that writes to it P^T M,
embeddings E become E P. Layer norms do not commute with P: each gets the mean and the deviation that P^T x
had there. Heads and neurons are chosen by their Fisher score (compress/structured.py). Where no whole
number of heads makes up the width, all heads stay, each with its strongest channels, and queries are scaled
to keep the temperature of the softmax.

What it does not save: a narrower student is only a start. It has to be trained before it answers well.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from cli import BadInput
from compress import structured
from layers import find_layers

# --- fewer layers


def spaced_layers(teacher_layers, student_layers):
    """Indices of evenly spaced teacher layers, the first and the last among them (the last alone for one)."""
    if student_layers == 1:
        return [teacher_layers - 1]
    return [round(i * (teacher_layers - 1) / (student_layers - 1)) for i in range(student_layers)]


@torch.no_grad()
def best_layers(model, count, loss, batches):
    """Indices of the `count` layers left after dropping, one by one, the layer whose removal costs least.

    loss(batch) -> mean over its notes.
    """
    name, layers = find_layers(model)
    parent, _, child = name.rpartition(".")
    kept = list(range(len(layers)))

    def loss_without(index):
        setattr(model.get_submodule(parent), child, nn.ModuleList(layers[i] for i in kept if i != index))
        return sum(float(loss(batch)) * len(batch["input_ids"]) for batch in batches)

    trials = sum(range(count + 1, len(kept) + 1))
    with tqdm(total=trials, desc="choosing layers", leave=False, disable=None) as bar:
        while len(kept) > count:
            losses = {}
            for index in kept:
                losses[index] = loss_without(index)
                bar.update()
            kept.remove(min(losses, key=losses.get))
    setattr(model.get_submodule(parent), child, layers)
    return kept


def keep_layers(model, kept):
    """Drop, in place, all layers but those of the given indices, and say so in the config.

    Raises BadInput if transformers would build another model from that config.
    """
    name, layers = find_layers(model)
    parent, _, child = name.rpartition(".")
    for key, value in model.config.to_dict().items():
        if isinstance(value, list) and len(value) == len(layers):  # settings given layer by layer
            setattr(model.config, key, [value[i] for i in kept])
    model.config.num_hidden_layers = len(kept)

    stack = nn.ModuleList(layers[i] for i in kept)
    for index, layer in enumerate(stack):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # its place in a decoder's cache
                module.layer_idx = index
    setattr(model.get_submodule(parent), child, stack)

    if shapes(model.base_model) != expected_shapes(model):
        raise BadInput(
            f"{type(model).__name__} cannot be built of layers {', '.join(map(str, kept))} alone; choose "
            "others with --layer-choice, keep more, or distil into a smaller checkpoint with --student"
        )
    return model


def shapes(module):
    """{name: shape} of a module's tensors."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def expected_shapes(model):
    """The shapes of the encoder that transformers builds from the model's config; None if it cannot."""
    try:
        config = type(model.config).from_dict(model.config.to_dict())
        with torch.device("meta"):
            return shapes(type(model)(config).base_model)
    except (ValueError, TypeError, AssertionError, LookupError, AttributeError):
        return None


# --- narrower layers


class Width(NamedTuple):
    """How wide a student is. whole: its heads are whole heads of the teacher, not parts of all heads."""

    channels: int
    heads: int
    head_size: int
    neurons: int
    whole: bool


@torch.no_grad()
def norm_moments(model, forward, batches):
    """({name: mean (H,)}, {name: E[x x^T] (H, H)}) of the layer norms' outputs for the real tokens."""
    width = model.config.hidden_size
    norms = {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, nn.LayerNorm) and m.normalized_shape == (width,)
    }
    means, moments, count, mask = {}, {}, 0, None

    def watch(name):
        def hook(_, inputs, x):
            if x.shape[:-1] == mask.shape:  # (B, T, H); a head's norm may see less
                x = x[mask].cpu().double()  # MPS has no double
                means[name] = means.get(name, 0) + x.sum(0)
                moments[name] = moments.get(name, 0) + x.T @ x

        return hook

    handles = [norm.register_forward_hook(watch(name)) for name, norm in norms.items()]
    try:
        for batch in batches:
            mask = batch["attention_mask"].bool()
            count += int(mask.sum())
            forward(batch)
    finally:
        for handle in handles:
            handle.remove()

    seen = [name for name in norms if name in means]
    return {name: means[name] / count for name in seen}, {name: moments[name] / count for name in seen}


def strongest(first, second, heads, keep):
    """Of each head, the `keep` channels of two matrices (heads * d, H) with the largest products of norms."""
    worth = (first.square().sum(1) * second.square().sum(1)).view(heads, -1)  # (heads, d)
    best = worth.topk(keep, 1).indices.sort(1).values  # (heads, keep)
    return (best + torch.arange(heads, device=worth.device)[:, None] * worth.shape[1]).flatten().tolist()


def width_of(layer, channels, hidden):
    """Width of a student of `channels` channels, its teacher having `hidden` and such layers.

    Raises BadInput if neither whole heads nor equal parts of all heads make up the channels.
    """
    whole = channels % layer.head_size == 0 and channels // layer.head_size <= layer.heads
    if channels >= hidden or not (whole or channels % layer.heads == 0):
        raise BadInput(
            f"--student-width {channels}: give less than {hidden}, a multiple of {layer.head_size} (whole "
            f"heads) or of {layer.heads} (all heads)"
        )
    heads = channels // layer.head_size if whole else layer.heads
    multiple = structured.MULTIPLE
    neurons = max(multiple, round(layer.neurons * channels / hidden / multiple) * multiple)
    return Width(channels, heads, channels // heads, neurons, whole)


def narrow_config(config, width):
    """A copy of a model's config for a student of this Width."""
    narrowed = copy.deepcopy(config)
    narrowed.hidden_size, narrowed.num_attention_heads = width.channels, width.heads
    if getattr(config, "embedding_size", None) == config.hidden_size:  # ELECTRA's, where it equals the width
        narrowed.embedding_size = width.channels
    setattr(narrowed, "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size", width.neurons)
    return narrowed


def chosen_channels(layer, matrices, head_worth, width):
    """(channels of query and key to keep, channels of value and output to keep, factor on the queries)."""
    if width.whole:
        heads = structured.top(head_worth, width.heads)
        channels = [h * layer.head_size + c for h in heads for c in range(layer.head_size)]
        return channels, channels, 1.0
    query, key, value, out = (matrix.weight for matrix in matrices[:4])
    seen = strongest(query, key, width.heads, width.head_size)
    said = strongest(value, out.T, width.heads, width.head_size)
    return seen, said, math.sqrt(len(seen) / layer.heads / layer.head_size)


def narrow_layer(model, layer, worth, width, basis):
    """{name: tensor} of a layer's six matrices, narrowed; worth: (of heads, of neurons), basis P (H, W)."""
    matrices = [model.get_submodule(name) for name in layer.names]
    seen, said, cool = chosen_channels(layer, matrices, worth[0], width)
    fired = structured.top(worth[1], width.neurons)

    state = {}
    for at, rows, scale in (
        (0, seen, cool),
        (1, seen, 1),
        (2, said, 1),
        (4, fired, 1),
    ):  # read the stream: M P
        name, matrix = layer.names[at], matrices[at]
        state[f"{name}.weight"] = matrix.weight[rows] @ basis * scale
        state[f"{name}.bias"] = matrix.bias[rows] * scale
    for at, columns in ((3, said), (5, fired)):  # write to it: P^T M
        name, matrix = layer.names[at], matrices[at]
        state[f"{name}.weight"] = basis.T @ matrix.weight[:, columns]
        state[f"{name}.bias"] = basis.T @ matrix.bias
    return state


def narrow_norms(means, seconds, basis):
    """{name: tensor} of layer norms that give P^T x its mean and deviation; basis P (H, W) in float64."""
    state = {}
    for name, mean in means.items():
        there = basis.T @ mean  # (W,)
        variance = (basis.T @ seconds[name] * basis.T).sum(1) - there.square()
        state[f"{name}.weight"] = variance.clamp(min=1e-8).sqrt().float()
        state[f"{name}.bias"] = there.float()
    return state


def projected(tensor, shape, basis):
    """A tensor with its sides of H channels projected on the basis (H, W), where the wanted shape has W."""
    for side, sizes in enumerate(zip(tensor.shape, shape, strict=True)):
        if sizes == basis.shape:
            tensor = (
                (tensor.transpose(side, -1) @ basis).transpose(side, -1)
                if tensor.dim() > 1
                else tensor @ basis
            )
    return tensor


@torch.no_grad()
def narrow_model(model, channels, moments, scores, attach):
    """(a model of `channels` channels, cut from one of H; the basis P (H, channels)).

    moments: of norm_moments; scores: of structured.fisher; attach(model) adds what the task's head has of its
    own. Raises BadInput if the heads do not make up the width, or if a tensor cannot be narrowed.
    """
    layers, device = structured.find_units(model), next(model.parameters()).device
    width = width_of(layers[0], channels, model.config.hidden_size)
    means, seconds = moments
    exact = (
        torch.linalg.eigh(sum(seconds.values())).eigenvectors[:, -channels:].flip(1)
    )  # P (H, W), on the CPU
    basis = exact.float().to(device)

    student = attach(type(model)(narrow_config(model.config, width)))
    wanted = student.state_dict()
    state = {}
    for layer, worth in zip(layers, scores, strict=True):
        state.update(narrow_layer(model, layer, worth, width, basis))
    state.update(narrow_norms(means, seconds, exact))
    for name, tensor in model.state_dict().items():  # all else: embeddings, pooler, head
        if name in wanted and name not in state:
            state[name] = projected(tensor, wanted[name].shape, basis)

    if {name: tensor.shape for name, tensor in state.items()} != shapes(student):
        raise BadInput(f"--student-width: does not know how to narrow {type(model).__name__}; leave it out")
    student.load_state_dict({name: tensor.to(wanted[name]) for name, tensor in state.items()})
    return student.to(device), basis
