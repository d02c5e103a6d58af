"""Finding and exchanging the layers of a model: the encoder's stack, its Linear layers, the projections of known layouts."""

import contextlib
import copy

import torch
from torch import nn

from cli import BadInput

LAYOUTS = (  # names of query, key, value, output projection, first and second feed-forward matrix: BERT's, DistilBERT's
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense"),
    ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"),
)


def find_layers(model):
    """(name, nn.ModuleList) of the encoder's stack of layers. Raises BadInput if the model has no such list."""
    depth = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise BadInput(f"cannot find the layers of {type(model).__name__}; to distil it, give a smaller model with --student")


def encoder_linears(model):
    """({name: nn.Linear} of the encoder, [names of the other Linear layers: the task's head]).

    Raises BadInput for a model that has none, such as one built of Conv1D.
    """
    body = model.base_model
    inside = {id(module) for module in body.modules()}
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    chosen = {name: module for name, module in linears.items() if id(module) in inside}
    if not chosen:
        raise BadInput(f"{type(model).__name__} has no nn.Linear in its encoder, so there is nothing to compress")
    return chosen, [name for name in linears if name not in chosen]


def replace_module(model, name, module):
    """Put a module in another's place, by dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def millions(count):
    """1234567 -> '1.2M'."""
    return f"{count / 1e6:.1f}M" if count >= 1e5 else f"{count / 1e3:.1f}k"


def device_of(model):
    """Where a model is; one without parameters, such as int8 throughout, is on the CPU."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def parameter_count(model):
    """Number of trainable and frozen parameters of an fp32 model."""
    return sum(parameter.numel() for parameter in model.parameters())


def is_int8(module):
    """Whether a module is one of torch.ao's dynamic int8 layers, which --technique quantization makes."""
    return isinstance(module, torch.ao.nn.quantized.dynamic.Linear)


@contextlib.contextmanager
def exchanged(model, places):
    """Put modules in the places of others, {name: module}, while open; then the originals are back, in the mode of the others."""
    originals = {name: model.get_submodule(name) for name in places}
    for name, module in places.items():
        replace_module(model, name, module)
    try:
        yield model
    finally:
        for name, original in originals.items():
            original.train(model.get_submodule(name).training)
            replace_module(model, name, original)


def trainable_copy(model):
    """A copy of a model, ready to be trained, such as a student that is cut from its teacher."""
    return copy.deepcopy(model).requires_grad_(True).train()


def set_attention_dropout(model, probability):
    """Set, in place, the dropout of attention probabilities.

    BERT, MPNet and DeBERTa hold it in modules named ...SelfAttention, ModernBERT and ALBERT as `attention_dropout`.
    """
    for key in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(model.config, key):
            setattr(model.config, key, probability)
    for module in model.modules():
        holds = ["attention_dropout"] + ["dropout"] * ("SelfAttention" in type(module).__name__)
        for name in holds:
            inner = getattr(module, name, None)
            if isinstance(inner, nn.Dropout):
                inner.p = probability
            elif isinstance(inner, float) and name == "attention_dropout":
                module.attention_dropout = probability
