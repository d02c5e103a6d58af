"""bf16 weights: every weight of a Linear, an embedding and a layer norm as a 16-bit bfloat16.

bfloat16 keeps fp32's 8 bits of exponent and 7 of its 23 bits of mantissa, so a weight w becomes w (1 + e)
with |e| <= 2^-8. Half the bytes on any machine. Where the machine multiplies bf16 (AVX-512 BF16 or AMX, a
GPU), products take bf16 and add up in fp32; on an EPYC, at twice the speed of fp32.

No training and no calibration: the weights are rounded once, after training. What is scored and saved is the
rounded model. A chain may end in it, as in distillation+bf16.

What it does not save: multiply-adds. A CPU without bf16 products loads the weights into fp32: as much memory
and time as fp32. The layer that gives the logits stays fp32, and what heads add, such as a CRF's transitions.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from compress.quantization import Quantization, fp32_copy
from compress.technique import Technique
from fast.attention import multiplies_bf16
from layers import encoder_linears, has_int8, millions, parameter_count, replace_module

KINDS = (nn.Linear, nn.Embedding, nn.LayerNorm)


class Fp32Linear(nn.Linear):
    """An nn.Linear that multiplies in fp32, whatever it is given: logits of few digits would tie."""

    def forward(self, x):
        """x (..., in) -> (..., out) fp32."""
        return F.linear(x.float(), self.weight, self.bias)


def keep_logits(model):
    """Put, in place, an Fp32Linear for each layer of the head that gives one number per label."""
    for name in encoder_linears(model)[1]:
        linear = model.get_submodule(name)
        if linear.out_features == model.config.num_labels:
            layer = Fp32Linear(
                linear.in_features, linear.out_features, linear.bias is not None, device="meta"
            )
            layer.weight, layer.bias = linear.weight, linear.bias
            replace_module(model, name, layer)


def round_to_bf16(model):
    """Round, in place, the weights of a model's layers of KINDS to bf16, but for those of keep_logits.

    Returns how many numbers they are; those that layers share are counted once.
    """
    keep_logits(model)
    seen = {}
    for module in model.modules():
        if type(module) in KINDS:
            for parameter in module.to(torch.bfloat16).parameters(recurse=False):
                seen[id(parameter)] = parameter.numel()
    return sum(seen.values())


def bf16_copy(model):
    """A copy of a model, int8 layers included, rounded, to read with; the model stays as it is."""
    copied = (fp32_copy(model) if has_int8(model) else copy.deepcopy(model)).eval()
    round_to_bf16(copied)
    return copied


def computes_bf16():
    """Whether this machine has bf16 products; else fp32 is faster."""
    return multiplies_bf16() or torch.cuda.is_available()


class Bf16(Technique):
    """bf16 after training. Alone it starts from the finished base run."""

    trains = False
    final = True
    excludes = (Quantization,)
    excludes_because = "rounds what {} makes int8; choose one of them"

    def finish(self, model):
        """Round."""
        total = parameter_count(model)
        rounded = round_to_bf16(model)
        before, after = 4 * total / 1e6, (4 * total - 2 * rounded) / 1e6
        slow = "" if computes_bf16() else "; this machine has no bf16 products, so it gains no time here"
        print(
            f"{self.name}: {millions(rounded)} of {millions(total)} parameters to bf16, "
            f"{before:.1f} MB -> {after:.1f} MB{slow}"
        )
        return model

    def describe(self):
        """Nothing but that it was done."""
        return {}

    @staticmethod
    def is_plain(facts):
        """Its layers are plain ones, but of another type than fp32."""
        return False

    @staticmethod
    def rebuild(model, facts):
        """The same layers, of bf16 where this machine multiplies it; else they stay fp32."""
        if computes_bf16():
            round_to_bf16(model)
        return model
