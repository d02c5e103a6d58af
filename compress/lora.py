"""LoRA: the weights stay frozen, and a thin correction to some of them is trained.

W + (alpha / r) B A, with A (r, in) and B (out, r). A starts as any nn.Linear does and B at zero, so
training starts from the model itself (Hu et al., 2022). Afterwards the product is added to W and the layer
is an ordinary one again; with --lora-keep both stay apart. Trained in full: the task's head, and modules of
the encoder that the checkpoint did not have. The output layer of a masked-language model, which shares the
weight of the embeddings, stays as it is, bias and all. The run directory gets adapter/, which peft loads
(onto a model with the same head; transformers knows no CRF).

What it does not save: inference. A merged model has the size and the speed it had; a kept adapter makes it
slower. LoRA saves memory in training (no gradients and no Adam moments for frozen weights) and bytes per
adapted model: only adapter/ differs.
"""

import math

import torch
from torch import nn

from cli import BadInput, number
from compress.lowrank import LowRank
from compress.pruning import Pruning
from compress.technique import Technique
from layers import encoder_linears, millions, parameter_count, projections, replace_module


class LoRALinear(nn.Module):
    """A frozen dense layer plus its thin correction: x W^T + b + scaling * dropout(x) A^T B^T."""

    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        self.dropout, self.scaling = nn.Dropout(dropout), alpha / rank
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.to(base.weight)

    def forward(self, x):
        """x (..., in) -> (..., out)."""
        return self.base(x) + self.scaling * self.lora_B(self.lora_A(self.dropout(x)))

    @torch.no_grad()
    def merged(self):
        """The dense layer of weight W + scaling * B A."""
        self.base.weight += self.scaling * self.lora_B.weight @ self.lora_A.weight
        return self.base


def head_modules(model):
    """Names of the largest modules outside the encoder that share no weight with it."""
    body = {id(parameter) for parameter in model.base_model.parameters()}

    def outermost(module, prefix):
        for name, child in module.named_children():
            own = [id(parameter) for parameter in child.parameters()]
            if own and not body.intersection(own):
                yield prefix + name
            elif child is not model.base_model:
                yield from outermost(child, f"{prefix}{name}.")

    return list(outermost(model, ""))


def last_names(names):
    """The last parts of dotted names, each once, in order."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def query_and_value(model):
    """Last names of the query and value projections: ['query', 'value'] in BERT, ['Wqkv'] in ModernBERT."""
    return last_names(name for query, _, value in projections(model) for name in (query, value))


class LoRA(Technique):
    """Freezes the model, corrects the named projections, and merges at the end."""

    NEEDS = ("source", "fresh")
    learning_rate = 1e-3
    excludes = (LowRank, Pruning)
    excludes_because = "freezes the weights that {} would change; merge first, then --start from that run"
    OPTIONS = {
        "--lora-rank": {"type": number(int, 1, 10**4), "default": 1, "help": "rank r of the correction (1)"},
        "--lora-alpha": {"type": number(float, 0, 10**6, low_open=True), "default": 1.0,
            "help": "alpha; the correction is scaled by alpha / r (1)"},
        "--lora-dropout": {"type": number(float, 0, 1, high_open=True), "default": 0.1,
            "help": "dropout before the correction (0.1)"},
        "--lora-targets": {"default": None,
            "help": "last names of the layers to correct, comma-separated (the query and value projections)"},
        "--lora-keep": {"action": "store_true",
            "help": "keep the correction apart from the weights instead of merging it (off)"},
    }  # fmt: skip

    def __init__(self, source=None, fresh=(), lora_rank=1, lora_alpha=1.0, lora_dropout=0.1,
                 lora_targets=None, lora_keep=False):  # fmt: skip
        """source: name of the unchanged model, None if no file holds it; fresh: tensors that it lacked."""
        self.source, self.fresh, self.keep = source, fresh, lora_keep
        self.rank, self.alpha, self.dropout = lora_rank, lora_alpha, lora_dropout
        self.targets = lora_targets
        self.names, self.trained = [], []  # of layers to correct, of modules to train in full
        self.adapter = {}

    def prepare(self, model):
        """Freeze, correct the targets, leave the head to train. Raises BadInput for an unknown target."""
        linears, others = encoder_linears(model)
        targets, total = self._find_targets(model, linears), parameter_count(model)
        body = f"{model.base_model_prefix}."
        fresh = [name.rpartition(".")[0] for name in self.fresh if name.startswith(body)]
        self.trained = head_modules(model) + list(dict.fromkeys(fresh))
        matching = [name for name in linears if name.rpartition(".")[2] in targets]
        self.names = [name for name in matching if name not in self.trained]

        model.requires_grad_(False)
        for name in self.names:
            replace_module(model, name, LoRALinear(linears[name], self.rank, self.alpha, self.dropout))
        for name in self.trained:
            model.get_submodule(name).requires_grad_(True)

        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        print(
            f"{self.name}: rank {self.rank} on {len(self.names)}/{len(linears) + len(others)} Linear "
            f"({', '.join(targets)}), trainable {trainable:,} of {millions(total)} parameters "
            f"({100 * trainable / total:.2f}%), in full: {', '.join(self.trained) or 'nothing'}; "
            "saves memory in training and bytes per adapter, not inference"
        )
        return model

    def _find_targets(self, model, linears):
        """Last names of the layers to correct: --lora-targets, or else the query and value projections."""
        there = last_names(linears)
        if self.targets is None:
            if not (targets := query_and_value(model)):
                raise BadInput(
                    f"--lora-targets: does not know the query and value layers of {type(model).__name__}; "
                    f"name the layers to correct, of {', '.join(there)}"
                )
            return targets
        targets = [target.strip() for target in self.targets.split(",") if target.strip()]
        for target in targets or [""]:
            if target not in there:
                raise BadInput(f"--lora-targets {target}: no such layer; the encoder has {', '.join(there)}")
        return targets

    def finish(self, model):
        """Set the adapter's tensors aside, then merge unless the corrections are to be kept."""
        state = model.state_dict()
        in_full = tuple(f"{name}." for name in self.trained)
        kept = [key for key in state if ".lora_" in key or key.startswith(in_full)]
        self.adapter = {f"base_model.model.{key}": state[key].clone() for key in kept}
        if not self.keep:
            for name in self.names:
                replace_module(model, name, model.get_submodule(name).merged())

        size = sum(tensor.numel() * tensor.element_size() for tensor in self.adapter.values())
        how = "kept apart" if self.keep else "merged"
        where = (
            "adapter/"
            if self.source
            else "no adapter/, because no file holds the model that it would correct"
        )
        print(f"{self.name}: {how} {len(self.names)} corrections; {where}, {size / 1e6:.3f} MB")
        return model.requires_grad_(True)

    def files(self):
        """The adapter as peft reads it."""
        if not self.source:
            return {}
        config = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": self.source,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": self.names,
            "modules_to_save": self.trained or None,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        return {"adapter/adapter_config.json": config, "adapter/adapter_model.safetensors": self.adapter}

    def describe(self):
        """The corrected layers, if they were kept apart; a merged model is an ordinary one."""
        return {"names": self.names, "rank": self.rank, "alpha": self.alpha} if self.keep else None

    @staticmethod
    def is_plain(facts):
        """Its layers are its own."""
        return False

    @staticmethod
    def rebuild(model, facts):
        """Untrained corrections on the recorded layers."""
        for name in facts["names"]:
            replace_module(model, name, LoRALinear(model.get_submodule(name), facts["rank"], facts["alpha"]))
        return model
