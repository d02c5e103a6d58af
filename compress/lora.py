"""LoRA: the weights stay frozen, and a thin correction to some of them is trained: W + (alpha / r) B A, A (r, in), B (out, r).

A starts as any nn.Linear does and B at zero, so training starts from the model itself (Hu et al., 2022). Afterwards the
product is added to W and the layer is an ordinary one again, or, with --lora-keep, both stay apart. The task's head, and
modules of the encoder that the checkpoint did not have, are trained in full; the output layer of a masked-language model,
which shares the embeddings' weight, stays as it is, bias and all. The run directory gets adapter/, which peft loads (onto a
model that has the same head: a CRF is none that transformers knows).

What it does not save: inference. A merged model has the size and the speed it had, a kept adapter makes it slower. LoRA
saves memory in training (no gradients nor Adam moments for frozen weights) and bytes per adapted model: those of adapter/.
"""

import math

import torch
from torch import nn

from cli import BadInput, number
from compress.technique import Technique
from layers import encoder_linears, millions, parameter_count, replace_module


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


class LoRA(Technique):
    """Freezes the model, corrects the named projections, and merges at the end."""

    name = "lora"
    NEEDS = ("source", "fresh")
    learning_rate = 1e-3
    OPTIONS = {
        "--lora-rank": dict(type=number(int, 1, 10**4), default=1, help="r, rank of the correction (1)"),
        "--lora-alpha": dict(type=number(float, 0, 10**6, low_open=True), default=1.0, help="the correction is scaled by alpha / r (1)"),
        "--lora-dropout": dict(type=number(float, 0, 1, high_open=True), default=0.1, help="dropout before the correction (0.1)"),
        "--lora-targets": dict(default="query,value", help="last names of the layers to correct (query,value)"),
        "--lora-keep": dict(action="store_true", help="keep the correction apart from the weights instead of merging it"),
    }  # fmt: skip

    def __init__(self, source=None, fresh=(), lora_rank=1, lora_alpha=1.0, lora_dropout=0.1, lora_targets="query,value", lora_keep=False):
        """source: name of the unchanged model, None if no file holds it; fresh: names of tensors that it did not have."""
        self.source, self.fresh, self.keep = source, fresh, lora_keep
        self.rank, self.alpha, self.dropout = lora_rank, lora_alpha, lora_dropout
        self.targets = [target.strip() for target in lora_targets.split(",") if target.strip()]
        self.adapter = {}

    def prepare(self, model):
        """Freeze, correct the targets, leave the head to train. Raises BadInput if a target is no layer of the encoder."""
        linears, others = encoder_linears(model)
        last = {name: name.rpartition(".")[2] for name in linears}
        for target in self.targets or [""]:
            if target not in last.values():
                raise BadInput(f"--lora-targets {target}: no such layer; the encoder has {', '.join(dict.fromkeys(last.values()))}")
        self.trained = head_modules(model)
        body = f"{model.base_model_prefix}."
        self.trained += list(dict.fromkeys(name.rpartition(".")[0] for name in self.fresh if name.startswith(body)))
        self.names = [name for name in linears if last[name] in self.targets and name not in self.trained]
        total = parameter_count(model)
        model.requires_grad_(False)
        for name in self.names:
            replace_module(model, name, LoRALinear(linears[name], self.rank, self.alpha, self.dropout))
        for name in self.trained:
            model.get_submodule(name).requires_grad_(True)
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        print(
            f"lora: rank {self.rank} on {len(self.names)}/{len(linears) + len(others)} Linear ({', '.join(self.targets)}), trainable "
            f"{trainable:,} of {millions(total)} parameters ({100 * trainable / total:.2f}%), in full: {', '.join(self.trained) or 'nothing'}; "
            "saves memory in training and bytes per adapter, not inference"
        )
        return model

    def finish(self, model):
        """Set the adapter's tensors aside, then merge unless the corrections are to be kept."""
        state = model.state_dict()
        kept = [key for key in state if ".lora_" in key or any(key.startswith(f"{name}.") for name in self.trained)]
        self.adapter = {f"base_model.model.{key}": state[key].clone() for key in kept}
        if not self.keep:
            for name in self.names:
                replace_module(model, name, model.get_submodule(name).merged())
        size = sum(tensor.numel() * tensor.element_size() for tensor in self.adapter.values())
        where = "adapter/" if self.source else "no adapter/, because no file holds the model it would correct"
        print(f"lora: {'kept apart' if self.keep else 'merged'} {len(self.names)} corrections; {where}, {size / 1e6:.3f} MB")
        return model.requires_grad_(True)

    def files(self):
        """The adapter in the PEFT layout."""
        if not self.source:
            return {}
        config = {
            "peft_type": "LORA", "task_type": None, "base_model_name_or_path": self.source, "r": self.rank, "lora_alpha": self.alpha,
            "lora_dropout": self.dropout, "target_modules": self.names, "modules_to_save": self.trained or None, "bias": "none",
            "fan_in_fan_out": False, "inference_mode": True,
        }  # fmt: skip
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
