"""Dynamic int8: Linear weights as 8-bit integers, activations quantized on the fly, products in integers.

A weight row w (one output channel) becomes round(w / s) with s = max|w| / 127.5; an activation tensor becomes 8-bit with
one scale and zero point, chosen from its own minimum and maximum at each call; the int32 sums are scaled back to fp32.
Done by torch.ao.quantization.quantize_dynamic on the fine-tuned model, scored as the int8 model itself, on a CPU.

What it does not save: embeddings, layer norms and attention scores stay fp32, which for BERT-base leaves 180 MB of 433.
Because one activation scale serves a whole batch, a note's probabilities depend slightly on its neighbours in the batch.
"""

import warnings

import torch
from torch import nn

from compress.technique import Technique, millions

# Fastest first, as measured in paired runs on CPUs with and without VNNI; qnnpack loses to fp32 on x86 and is for ARM.
ENGINES = ("onednn", "x86", "fbgemm", "qnnpack")


def fastest_engine():
    """Name of the fastest int8 engine that this CPU and this build of torch support, chosen here and nowhere else."""
    return next(engine for engine in ENGINES if engine in torch.backends.quantized.supported_engines)


def quantize_linears(model):
    """Every nn.Linear -> dynamic int8 with a scale per output channel, in place, by this CPU's fastest engine."""
    torch.backends.quantized.engine = fastest_engine()
    with warnings.catch_warnings():
        # torch.ao says that it will move to torchao (pytorch/ao issue 2259), whose eager int8 on a CPU is slower than
        # fp32; until there is a faster home we stay, on a pinned torch, and keep quiet about it here only.
        warnings.filterwarnings("ignore", message=r".*torch\.ao\.quantization is deprecated")
        warnings.filterwarnings("ignore", message=r".*(quantized dtypes|quantize_per_|_quantized_tensor|quantized tensor)")
        spec = {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
        return torch.ao.quantization.quantize_dynamic(model, spec, dtype=torch.qint8, inplace=True)


def is_int8(module):
    """Whether a module is one of the layers that quantize_linears makes."""
    return isinstance(module, torch.ao.nn.quantized.dynamic.Linear)


PACKED, DTYPE = "._packed_params._packed_params", "._packed_params.dtype"


def to_plain(state):
    """A state_dict with packed int8 layers -> plain tensors only: name.weight int8 (out, in), .weight_scale (out,), .bias.

    A layer's zero points are all 0 (symmetric weights) and are not stored.
    """
    plain = {}
    for key, value in state.items():
        if key.endswith(PACKED):
            (weight, bias), name = value, key.removesuffix(PACKED)
            plain[f"{name}.weight"], plain[f"{name}.weight_scale"] = weight.int_repr(), weight.q_per_channel_scales().float()
            if bias is not None:
                plain[f"{name}.bias"] = bias.detach()
        elif isinstance(value, torch.Tensor) and f"{key.rpartition('.')[0]}{PACKED}" not in state:
            plain[key] = value
    return plain


def to_packed(plain):
    """The inverse of to_plain: what load_state_dict of a model of quantize_linears takes."""
    state, plain = {}, dict(plain)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*(quantized dtypes|quantize_per_|_quantized_tensor|quantized tensor)")
        for key in [key for key in plain if key.endswith(".weight_scale")]:
            name = key.removesuffix(".weight_scale")
            scale, weight, bias = plain.pop(key).double(), plain.pop(f"{name}.weight"), plain.pop(f"{name}.bias", None)
            zeros = torch.zeros(len(scale), dtype=torch.long)
            packed = torch._make_per_channel_quantized_tensor(weight, scale, zeros, 0)
            state.update({f"{name}{PACKED}": (packed, bias), f"{name}{DTYPE}": torch.qint8})
            state.update({f"{name}.scale": torch.tensor(1.0), f"{name}.zero_point": torch.tensor(0)})
    return {**plain, **state}


class Quantization(Technique):
    """Nothing before or during training; int8 after it. Alone it starts from the finished base run and trains nothing."""

    name = "quantization"
    learning_rate = 2e-5
    trains = False

    def finish(self, model):
        """Move to the CPU and quantize."""
        linears = [name for name, module in model.named_modules() if type(module) is nn.Linear]
        weights = sum(model.get_submodule(name).weight.numel() for name in linears)
        total = sum(parameter.numel() for parameter in model.parameters())
        model = quantize_linears(model.cpu().eval())
        done = sum(is_int8(module) for module in model.modules())
        print(
            f"quantization: {done}/{len(linears)} Linear to int8 (engine {fastest_engine()}), {millions(weights)} of "
            f"{millions(total)} parameters; {4 * total / 1e6:.1f} MB -> {(4 * total - 3 * weights) / 1e6:.1f} MB, "
            "embeddings and norms stay fp32"
        )
        return model

    def describe(self):
        """The engine is recorded, not needed: whoever loads the run uses the fastest of their own CPU."""
        return {"engine": fastest_engine()}

    @staticmethod
    def rebuild(model, facts):
        """int8 layers of random weights."""
        return quantize_linears(model.cpu().eval())
