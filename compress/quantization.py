"""Dynamic int8: Linear weights as 8-bit integers, activations quantized on the fly, products in integers.

A weight row w (one output channel) becomes round(w / s) with s = max|w| / 127.5; an activation tensor gets one scale and zero
point, chosen from its own extremes at each call, and 8 bits where the CPU has VNNI, else 7, so that sums of two products fit 16
bits; the int32 sums are scaled back to fp32. Done by torch.ao.quantization.quantize_dynamic on the fine-tuned model, scored as the
int8 model itself, on a CPU. Attention is computed in bf16 where the CPU multiplies it (compress/attention.py).

Embedding tables become int8 too, with one scale s = max|w| / 127 a row: fewer bytes on disk and in memory, no time, since a
look-up multiplies nothing. BERT-base comes to 109 MB of 433, with --fp32-embeddings to 177.

--qat trains first, from the base run, with the rounding of int8 in every forward pass and straight-through gradients (Jacob
et al., 2018), so that weights learn to live with it: the paper's QAT, but what is scored and saved is the int8 model.

What it does not save: layer norms and attention stay floating point, and so does a table that an output layer shares, or
that the model reads directly, as DeBERTa does. Because one activation scale serves a whole batch, a note's probabilities
depend slightly on its neighbours in the batch.
"""

import contextlib
import functools
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from compress.technique import Technique
from fast.attention import bf16_attention
from layers import millions, replace_module

# Fastest first. On an AVX-512 VNNI CPU, 4096 x 768 -> 3072 -> 768 with 2 threads took 50 ms by onednn, 58 to 62 by x86 and
# fbgemm, 208 in fp32 and 370 by qnnpack, which is for ARM.
ENGINES = ("onednn", "x86", "fbgemm", "qnnpack")


def fastest_engine():
    """Name of the fastest int8 engine that this CPU and this build of torch support, chosen here and nowhere else."""
    return next(engine for engine in ENGINES if engine in torch.backends.quantized.supported_engines)


@contextlib.contextmanager
def without_deprecations():
    """Keep torch.ao's deprecation warnings quiet, in this place only.

    It will move to torchao (pytorch/ao issue 2259, pytorch issue 184982); until a home at least as fast is measured we stay,
    on a pinned torch.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*torch\.ao\.quantization is deprecated")
        warnings.filterwarnings("ignore", message=r"(?s).*quantized tensor creation functions")
        yield


def split_linears(model):
    """(names of the nn.Linear to quantize, names of those that share their weight with an embedding and so stay fp32)."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linears = {name: id(module.weight) in tables for name, module in model.named_modules() if type(module) is nn.Linear}
    return [name for name, tied in linears.items() if not tied], [name for name, tied in linears.items() if tied]


@without_deprecations()
def quantize_linears(model):
    """Every nn.Linear that shares no weight -> dynamic int8, a scale per output channel, in place, by this CPU's fastest engine."""
    torch.backends.quantized.engine = fastest_engine()
    spec = {name: torch.ao.quantization.per_channel_dynamic_qconfig for name in split_linears(model)[0]}
    model = torch.ao.quantization.quantize_dynamic(model, spec, dtype=torch.qint8, inplace=True)
    return with_full_range(model)


def with_full_range(model):
    """Let a model's int8 layers take all 8 bits for their inputs, in place, where the CPU allows it."""
    for module in model.modules():
        if is_int8(module) and full_range():
            module.version = 3  # by which torch.ao tells layers that do not ask for the reduced range; loading sets it back
    return model


def full_range():
    """Whether activations take all 8 bits: this CPU's integer products add up in 32 bits at once (VNNI)."""
    return torch.cpu._is_vnni_supported()


def straight(x, rounded):
    """The value of `rounded` with the gradient of x."""
    return x + (rounded - x).detach()


def rounded_linear(linear, x):
    """A Linear's product as the int8 layer makes it, in floating point: weights in 8 bits a row, inputs in 8 or 7 bits a tensor."""
    levels = 255 if full_range() else 127
    weight, seen = linear.weight.detach(), x.detach().float()
    scale = (weight.abs().amax(1, keepdim=True) / 127.5).clamp(min=1e-12)
    low, high = seen.min().clamp(max=0), seen.max().clamp(min=0)
    step = ((high - low) / levels).clamp(min=1e-12)
    zero = (-low / step).round()
    inputs = (((seen / step).round() + zero).clamp(0, levels) - zero) * step
    weights = (weight / scale).round().clamp(-128, 127) * scale
    with torch.autocast(x.device.type, enabled=False):  # bf16 would round again, and as coarsely
        return F.linear(straight(x.float(), inputs), straight(linear.weight, weights), linear.bias)


class Int8Embedding(nn.Module):
    """An embedding table of int8 rows, each with its scale: ids (...) -> (..., width) fp32."""

    def __init__(self, rows, width):
        super().__init__()
        self.register_buffer("weight", torch.zeros(rows, width, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(rows))

    def forward(self, ids):
        """Look up, scale."""
        return self.weight[ids].float() * self.weight_scale[ids].unsqueeze(-1)

    @classmethod
    @torch.no_grad()
    def from_embedding(cls, table):
        """Each row rounded to 127 steps of its largest magnitude."""
        layer = cls(table.num_embeddings, table.embedding_dim)
        layer.weight_scale = (table.weight.abs().amax(1) / 127).clamp(min=1e-12)
        layer.weight = (table.weight / layer.weight_scale[:, None]).round().to(torch.int8)
        return layer


def quantize_embeddings(model):
    """Every nn.Embedding whose weight no Linear shares -> Int8Embedding, in place."""
    shared = {id(module.weight) for module in model.modules() if type(module) is nn.Linear}
    for name, module in list(model.named_modules()):
        if type(module) is nn.Embedding and id(module.weight) not in shared:
            replace_module(model, name, Int8Embedding.from_embedding(module))
    return model


def is_int8(module):
    """Whether a module is one of the layers that quantize_linears makes."""
    return isinstance(module, torch.ao.nn.quantized.dynamic.Linear)


def plain_state(model):
    """A state_dict of plain tensors; an int8 layer gives weight int8 (out, in), weight_scale fp32 (out,) and bias.

    The weights are symmetric, so their zero points are all 0 and are not stored. A tensor that several names share, such as
    the word embeddings of a masked-language-model head, stands under the first.
    """
    int8 = {name: module for name, module in model.named_modules() if is_int8(module)}
    state, seen = {}, set()
    for key, value in model.state_dict().items():
        place = (value.data_ptr(), value.shape) if torch.is_tensor(value) and value.numel() else key
        if place not in seen and not any(key.startswith(f"{name}.") for name in int8):
            state[key] = value
        seen.add(place)
    for name, module in int8.items():
        state[f"{name}.weight"] = module.weight().int_repr()
        state[f"{name}.weight_scale"] = module.weight().q_per_channel_scales().float()
        if module.bias() is not None:
            state[f"{name}.bias"] = module.bias().detach()
    return state


@without_deprecations()
def load_plain_state(model, state):
    """The inverse, into a model of the same structure. Raises RuntimeError if a tensor is missing, left over or misshapen."""
    expected = plain_state(model)
    if expected.keys() != state.keys():
        raise RuntimeError(f"tensors missing or left over: {sorted(expected.keys() ^ state.keys())}")
    state = dict(state)
    for name, module in model.named_modules():
        if is_int8(module):
            weight, scale = state.pop(f"{name}.weight"), state.pop(f"{name}.weight_scale").double()
            zeros = torch.zeros(len(scale), dtype=torch.long)
            packed = torch._make_per_channel_quantized_tensor(weight, scale, zeros, 0)
            module.set_weight_bias(packed, state.pop(f"{name}.bias", None))
    whole = model.state_dict()  # torch.ao's layers insist on their own entries and version marks
    whole.update(state)
    model.load_state_dict(whole)
    with_full_range(model)


class Quantization(Technique):
    """int8 after training. Alone it starts from the finished base run, and trains nothing unless --qat is given."""

    name = "quantization"
    learning_rate = 2e-5
    trains = False
    cpu_only = True
    OPTIONS = {
        "--fp32-embeddings": dict(action="store_true", help="leave embedding tables as they are (they become int8, too)"),
        "--qat": dict(action="store_true", help="train with int8's rounding first, from the base run (2 epochs are enough)"),
    }  # fmt: skip

    def __init__(self, fp32_embeddings=False, qat=False):
        self.embeddings, self.trains = not fp32_embeddings, qat

    @classmethod
    def trains_with(cls, options):
        """Only with --qat."""
        return options.qat

    def prepare(self, model):
        """With --qat let every product round."""
        if self.trains:
            names, _ = split_linears(model)
            for name in names:
                linear = model.get_submodule(name)
                linear.forward = functools.partial(rounded_linear, linear)
            print(f"quantization: training with int8's rounding in {len(names)} Linear")
        return model

    def finish(self, model):
        """Move to the CPU and quantize."""
        self.embeddings = self.embeddings and "deberta" not in model.config.model_type
        linears, tied = split_linears(model)
        for name in linears:
            model.get_submodule(name).__dict__.pop("forward", None)
        weights = sum(model.get_submodule(name).weight.numel() for name in linears)
        total = sum(parameter.numel() for parameter in model.parameters())
        model = quantize_linears(model.cpu().eval())
        model = bf16_attention(quantize_embeddings(model) if self.embeddings else model)
        done = sum(is_int8(module) for module in model.modules())
        tables = [module for module in model.modules() if isinstance(module, Int8Embedding)]
        weights += sum(table.weight.numel() for table in tables)
        print(
            f"quantization: {done}/{len(linears) + len(tied)} Linear and {len(tables)} embedding tables to int8 "
            f"(engine {fastest_engine()}), {millions(weights)} of "
            f"{millions(total)} parameters; {4 * total / 1e6:.1f} MB -> {(4 * total - 3 * weights) / 1e6:.1f} MB, "
            f"the rest stays fp32{''.join(f', {name} too, which shares a weight with the embeddings' for name in tied)}"
        )
        return model

    def describe(self):
        """Engine and bits of activations are recorded, not needed: whoever loads the run uses what is best on their own CPU."""
        return {"engine": fastest_engine(), "bits": 8 if full_range() else 7, "embeddings": self.embeddings}

    @staticmethod
    def is_plain(facts):
        """Its layers are its own."""
        return False

    @staticmethod
    def rebuild(model, facts):
        """int8 layers of random weights."""
        model = quantize_linears(model.cpu().eval())
        return bf16_attention(quantize_embeddings(model) if facts.get("embeddings") else model)
