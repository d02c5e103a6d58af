"""A student cut from its teacher: fewer layers, and narrower ones, that start from what the teacher knows.

Layers: evenly spaced (as DistilBERT does: 0, 2, 4, 7, 9, 11 of 12), or the best ones, found greedily: the layer whose
absence raises the loss on calibration notes least goes first.

Width: the residual stream x (H) is projected on its W principal directions P (H, W), the leading eigenvectors of E[x x^T]
after all layer norms. Matrices that read it become M P, those that write to it P^T M, embeddings E P. Layer norms do not
commute with P: each gets the mean and the deviation that P^T x had there. Heads and neurons are chosen by their Fisher
score (compress/structured.py). Where no whole number of the teacher's heads makes up the width, all heads stay, each with
its strongest channels, and queries are scaled to keep the softmax's temperature. It is a start, and has to be trained.
"""

import copy
import math

import torch
from torch import nn
from tqdm import tqdm

from cli import BadInput
from compress import structured
from layers import find_layers


def spaced_layers(teacher_layers, student_layers):
    """Indices of evenly spaced teacher layers, the first and the last among them (the last alone for one)."""
    if student_layers == 1:
        return [teacher_layers - 1]
    return [round(i * (teacher_layers - 1) / (student_layers - 1)) for i in range(student_layers)]


@torch.no_grad()
def best_layers(model, count, loss, batches):
    """Indices of `count` layers, after dropping one by one the layer whose absence costs least; loss(batch) -> mean over notes."""
    name, layers = find_layers(model)
    parent, _, child = name.rpartition(".")
    kept = list(range(len(layers)))

    def without(index):
        setattr(model.get_submodule(parent), child, nn.ModuleList(layers[i] for i in kept if i != index))
        return sum(float(loss(batch)) * len(batch["input_ids"]) for batch in batches)

    with tqdm(total=sum(range(count + 1, len(kept) + 1)), desc="choosing layers", leave=False, disable=None) as bar:
        while len(kept) > count:
            costs = {}
            for index in kept:
                costs[index] = without(index)
                bar.update()
            kept.remove(min(costs, key=costs.get))
    setattr(model.get_submodule(parent), child, layers)
    return kept


def keep_layers(model, kept):
    """Drop, in place, all layers but those of the given indices. Raises BadInput if the architecture does not allow it."""
    name, layers = find_layers(model)
    parent, _, child = name.rpartition(".")
    for key, value in model.config.to_dict().items():
        if isinstance(value, list) and len(value) == len(layers):  # settings given layer by layer
            setattr(model.config, key, [value[i] for i in kept])
    setattr(model.get_submodule(parent), child, nn.ModuleList(layers[i] for i in kept))
    model.config.num_hidden_layers = len(kept)
    try:
        config = type(model.config).from_dict(model.config.to_dict())
        with torch.device("meta"):
            expected = {key: value.shape for key, value in type(model)(config).base_model.state_dict().items()}
    except (ValueError, TypeError, AssertionError, LookupError, AttributeError):
        expected = None
    if expected != {key: value.shape for key, value in model.base_model.state_dict().items()}:
        raise BadInput(
            f"cannot drop layers of {type(model).__name__}: start from one whose layers are plain, or distil into a smaller one, --student"
        )
    return model


@torch.no_grad()
def norm_moments(model, forward, batches):
    """({name: mean (H,)}, {name: E[x x^T] (H, H)}) of what the encoder's layer norms put out for the real tokens of batches."""
    width = model.config.hidden_size
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.LayerNorm) and m.normalized_shape == (width,)}
    means, moments, count, mask = dict.fromkeys(norms, 0), dict.fromkeys(norms, 0), 0, None

    def watch(name):
        def hook(_, inputs, x):
            if x.shape[:-1] == mask.shape:  # (B, T, H); a head's norm may see less
                x = x[mask].cpu().double()  # MPS has no double
                means[name], moments[name] = means[name] + x.sum(0), moments[name] + x.T @ x

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
    seen = [name for name in norms if torch.is_tensor(means[name])]
    return {name: means[name] / count for name in seen}, {name: moments[name] / count for name in seen}


def strongest(first, second, heads, keep):
    """Channels of two matrices (heads * d, H) that meet in a product: of each head the `keep` with the largest norms' product."""
    worth = (first.square().sum(1) * second.square().sum(1)).view(heads, -1)  # (heads, d)
    best = worth.topk(keep, 1).indices.sort(1).values + torch.arange(heads, device=worth.device)[:, None] * worth.shape[1]
    return best.flatten().tolist()


@torch.no_grad()
def narrow(model, width, moments, scores, attach):
    """(a model of `width` channels cut from one of H, the basis P (H, width)).

    moments: of norm_moments; scores: of structured.fisher; attach(model) adds what the task's head has of its own. Raises
    BadInput if neither whole heads nor equal parts of all heads make up the width.
    """
    layers, full = structured.find_units(model), model.config.hidden_size
    heads, size = layers[0].heads, layers[0].head_size
    whole = width % size == 0 and width // size <= heads
    if width >= full or not (whole or width % heads == 0):
        raise BadInput(f"--student-width {width}: give less than {full}, a multiple of {size} (whole heads) or of {heads} (all heads)")
    neurons = max(structured.MULTIPLE, round(layers[0].neurons * width / full / structured.MULTIPLE) * structured.MULTIPLE)
    means, seconds = moments
    exact = torch.linalg.eigh(sum(seconds.values())).eigenvectors[:, -width:].flip(1)  # P (H, width), on the CPU
    basis = exact.float().to(next(model.parameters()).device)

    config = copy.deepcopy(model.config)
    config.hidden_size, config.num_attention_heads = width, width // size if whole else heads
    if getattr(config, "embedding_size", None) == full:  # ELECTRA's, where it equals the width
        config.embedding_size = width
    setattr(config, "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size", neurons)
    student = attach(type(model)(config))
    ours, theirs = student.state_dict(), model.state_dict()
    state = {}
    for layer, (head_worth, neuron_worth) in zip(layers, scores):
        query, key, value, out, up, down = (model.get_submodule(name) for name in layer.names)
        if whole:
            chosen = structured.top(head_worth, width // size)
            seen = said = [h * size + c for h in chosen for c in range(size)]
        else:
            seen = strongest(query.weight, key.weight, heads, width // heads)
            said = strongest(value.weight, out.weight.T, heads, width // heads)
        fired, cool = structured.top(neuron_worth, neurons), math.sqrt(len(seen) / heads / size) if not whole else 1.0
        for name, module, rows, columns, scale in (
            (layer.names[0], query, seen, None, cool), (layer.names[1], key, seen, None, 1), (layer.names[2], value, said, None, 1),
            (layer.names[3], out, None, said, 1), (layer.names[4], up, fired, None, 1), (layer.names[5], down, None, fired, 1),
        ):  # fmt: skip
            weight = module.weight[rows] @ basis if columns is None else basis.T @ module.weight[:, columns]
            bias = module.bias[rows] if columns is None else basis.T @ module.bias
            state[f"{name}.weight"], state[f"{name}.bias"] = weight * scale, bias * scale
    for name, mean in means.items():
        there = exact.T @ mean
        deviation = ((exact.T @ seconds[name] * exact.T).sum(1) - there.square()).clamp(min=1e-8).sqrt()
        state[f"{name}.weight"], state[f"{name}.bias"] = deviation.float(), there.float()
    for name, tensor in theirs.items():  # all else, such as embeddings, pooler and head: every side of H channels is projected
        if name in state or name not in ours:
            continue
        for side, (old, new) in enumerate(zip(tensor.shape, ours[name].shape)):
            if (old, new) == (full, width):
                tensor = (tensor.transpose(side, -1) @ basis).transpose(side, -1) if tensor.dim() > 1 else tensor @ basis
        state[name] = tensor
    if state.keys() != ours.keys() or any(tensor.shape != ours[name].shape for name, tensor in state.items()):
        raise BadInput(f"--student-width: does not know how to narrow {type(model).__name__}")
    student.load_state_dict({name: tensor.to(ours[name]) for name, tensor in state.items()})
    return student.to(next(model.parameters()).device), basis
