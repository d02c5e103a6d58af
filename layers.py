"""Finding and exchanging a model's layers: the encoder's stack, its Linear layers, its projections."""

import contextlib
import copy
import warnings

import torch
from torch import nn

from cli import BadInput

# Names within a layer: query, key, value, output projection, first and second feed-forward matrix
LAYOUTS = (
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
     "intermediate.dense", "output.dense"),  # BERT
    ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin",
     "ffn.lin1", "ffn.lin2"),  # DistilBERT
)  # fmt: skip

# Last names of the query, key and value projections
PROJECTIONS = (
    ("query", "key", "value"),  # BERT, RoBERTa, ELECTRA, ALBERT
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("q", "k", "v"),  # MPNet
    ("query_proj", "key_proj", "value_proj"),  # DeBERTa-v2 and -v3
    ("q_proj", "k_proj", "v_proj"),  # BART and others
    ("Wqkv", "Wqkv", "Wqkv"),  # ModernBERT: one matrix for all three
)


def layer_count(model):
    """Number of layers that a note passes; ALBERT passes one layer that often. Raises BadInput if unknown."""
    if (count := getattr(model.config, "num_hidden_layers", None)) is not None:
        return count
    raise BadInput(f"{type(model).__name__}: its config gives no num_hidden_layers; choose a BERT-like model")


def find_layers(model, advice="quantization, lowrank, lora and pruning by --sparsity work on it"):
    """(name, nn.ModuleList) of the encoder's stack of layers.

    Raises BadInput, with the advice, if the model has no such list, such as ALBERT.
    """
    depth = layer_count(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise BadInput(
        f"{type(model).__name__} has no list of {depth} separate layers (ALBERT uses one layer again and "
        f"again), so no layer, head or neuron can be taken out; {advice}"
    )


def projections(model):
    """[(names of the query, key and value projection)] of the encoder's layers, in order; [] if not found."""
    linears = encoder_linears(model)[0]
    for last in PROJECTIONS:
        places = [name.rpartition(".")[0] for name in linears if name.rpartition(".")[2] == last[0]]
        found = [tuple(f"{place}.{name}" for name in last) for place in places]
        if found and all(name in linears for names in found for name in names):
            return found
    return []


def encoder_linears(model):
    """({name: nn.Linear} of the encoder, [names of the other Linear layers: the task's head]).

    Raises BadInput for a model that has none, such as one built of Conv1D.
    """
    body = model.base_model
    inside = {id(module) for module in body.modules()}
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    chosen = {name: module for name, module in linears.items() if id(module) in inside}
    if not chosen:
        raise BadInput(
            f"{type(model).__name__} has no nn.Linear in its encoder, so there is nothing to compress; "
            "choose a BERT-like model"
        )
    return chosen, [name for name in linears if name not in chosen]


def replace_module(model, name, module):
    """Put a module in another's place, by dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def is_int8(module):
    """Whether a module is a dynamic int8 Linear of torch.ao, as quantization makes them."""
    return isinstance(module, torch.ao.nn.quantized.dynamic.Linear)


def has_int8(model):
    """Whether a model has such layers."""
    return any(map(is_int8, model.modules()))


@contextlib.contextmanager
def without_deprecations():
    """Keep torch.ao's deprecation warnings quiet, in this place only.

    It will move to torchao (pytorch/ao issue 2259, pytorch issue 184982). We stay, on a pinned torch, until a
    replacement is measured that is at least as fast.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*torch\.ao\.quantization is deprecated")
        warnings.filterwarnings("ignore", message=r"(?s).*quantized tensor creation functions")
        yield


def is_bf16(module):
    """Whether a module is a Linear of bf16 weights."""
    return type(module) is nn.Linear and module.weight.dtype == torch.bfloat16


def has_bf16(model):
    """Whether a model has such layers."""
    return any(map(is_bf16, model.modules()))


def millions(count):
    """1234567 -> '1.2M'."""
    return f"{count / 1e6:.1f}M" if count >= 1e5 else f"{count / 1e3:.1f}k"


def device_of(model):
    """Where a model is; one without parameters, such as int8 throughout, is on the CPU."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def parameter_count(model):
    """Number of trainable and frozen parameters of an fp32 model."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextlib.contextmanager
def exchanged(model, places):
    """While open, modules stand in the places of others, {name: module}; then the originals are back."""
    originals = {name: model.get_submodule(name) for name in places}
    for name, module in places.items():
        replace_module(model, name, module)
    try:
        yield model
    finally:
        for name, original in originals.items():
            original.train(model.get_submodule(name).training)
            replace_module(model, name, original)


def trainable(model):
    """The parameters that are trained, in order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trainable_copy(model):
    """A copy of a model, ready to be trained, such as a student that is cut from its teacher."""
    return copy.deepcopy(model).requires_grad_(True).train()


def set_attention_dropout(model, probability):
    """Set, in place, the dropout of attention probabilities.

    BERT, MPNet and DeBERTa hold it in modules named ...SelfAttention, ModernBERT and ALBERT as
    `attention_dropout`.
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
