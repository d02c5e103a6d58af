"""Dynamic int8: Linear weights as 8-bit integers, inputs quantized at each call, products in integers.

A weight row w (one output channel) becomes round(w / s) with s = max|w| / 127.5. An input tensor gets one
scale and zero point, chosen from its own extremes at each call, and 8 bits where the CPU has VNNI, else 7,
so that sums of two products fit 16 bits; the int32 sums are scaled back to fp32.
torch.ao.quantization.quantize_dynamic does it to the fine-tuned model, and the scores are those of the int8
model itself, on a CPU. Where the CPU multiplies bf16, attention is computed in it (run/inference.py).
predict.py, evaluate.py and serve.py multiply the same weights by fast/int8.py, which rounds otherwise: a few
answers in a thousand differ from those of the training run's own test.

Embedding tables become int8 too, with one scale s = max|w| / 127 per row: fewer bytes on disk and in
memory, but no less time, since a look-up multiplies nothing. BERT-base comes to 109 MB of 433, with
--fp32-embeddings to 177.

--qat trains first, from the base run, with the rounding of int8 in every forward pass and straight-through
gradients (Jacob et al., 2018), so that the weights adapt to it: the paper's quantization-aware training.
What is scored and saved is the int8 model.

What it does not save: layer norms and attention stay in floating point, and so does a table that an output
layer shares, or that the model reads directly, as DeBERTa does. Because one input scale serves a whole
batch, a note's probabilities depend slightly on its neighbours in the batch.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from compress.technique import Technique
from layers import (
    encoder_linears,
    exchanged,
    is_int8,
    millions,
    parameter_count,
    replace_module,
    without_deprecations,
)

# Fastest first. On an AVX-512 VNNI CPU, 4096 x 768 -> 3072 -> 768 with 2 threads took 50 ms by onednn, 58 to
# 62 by x86 and fbgemm, 208 in fp32 and 370 by qnnpack, which is for ARM.
ENGINES = ("onednn", "x86", "fbgemm", "qnnpack")


def fastest_engine():
    """Name of the fastest int8 engine that this CPU and this build of torch support."""
    return next(engine for engine in ENGINES if engine in torch.backends.quantized.supported_engines)


def full_range():
    """Whether inputs take all 8 bits: this CPU's integer products add up in 32 bits at once (VNNI)."""
    return torch.cpu._is_vnni_supported()


# --- int8 layers


def split_linears(model):
    """(names of the nn.Linear to quantize, names of those that share their weight with an embedding)."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    tied = [name for name, linear in linears.items() if id(linear.weight) in tables]
    return [name for name in linears if name not in tied], tied


@without_deprecations()
def quantize_linears(model, kept=()):
    """Make every nn.Linear that shares no weight int8, in place, with a scale per output channel.

    kept: names of layers that stay as they are.
    """
    torch.backends.quantized.engine = fastest_engine()
    names = [name for name in split_linears(model)[0] if name not in kept]
    spec = dict.fromkeys(names, torch.ao.quantization.per_channel_dynamic_qconfig)
    model = torch.ao.quantization.quantize_dynamic(model, spec, dtype=torch.qint8, inplace=True)
    return with_full_range(model)


def with_full_range(model):
    """Let a model's int8 layers take all 8 bits for their inputs, in place, where the CPU allows it."""
    for module in model.modules():
        if is_int8(module) and full_range():
            module.version = 3  # torch.ao's mark of layers that use the full range; loading resets it
    return model


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
    """Put an Int8Embedding, in place, for every nn.Embedding whose weight no Linear shares."""
    shared = {id(module.weight) for module in model.modules() if type(module) is nn.Linear}
    for name, module in list(model.named_modules()):
        if type(module) is nn.Embedding and id(module.weight) not in shared:
            replace_module(model, name, Int8Embedding.from_embedding(module))
    return model


# --- rounding in training


def straight(x, rounded):
    """The value of `rounded` with the gradient of x."""
    return x + (rounded - x).detach()


def rounded_product(x, weight, bias):
    """x W^T + b as the int8 layer computes it, but in floating point.

    x (..., in), weight (out, in) -> (..., out) in fp32. Weights are rounded to 8 bits per row, inputs to 8 or
    7 bits per tensor.
    """
    levels = 255 if full_range() else 127
    fixed, seen = weight.detach(), x.detach().float()
    scale = (fixed.abs().amax(1, keepdim=True) / 127.5).clamp(min=1e-12)  # (out, 1)
    low, high = seen.min().clamp(max=0), seen.max().clamp(min=0)
    step = ((high - low) / levels).clamp(min=1e-12)
    zero = (-low / step).round()
    inputs = (((seen / step).round() + zero).clamp(0, levels) - zero) * step
    weights = (fixed / scale).round().clamp(-128, 127) * scale
    with torch.autocast(x.device.type, enabled=False):  # bf16 would round again, and as coarsely
        return F.linear(straight(x.float(), inputs), straight(weight, weights), bias)


class RoundedLinear(nn.Module):
    """In the place of a Linear, with its weight and bias: computes its product as int8 does.

    autocast: give the product in autocast's type, where the model mixes it with others.
    """

    def __init__(self, linear, autocast=False):
        super().__init__()
        self.in_features, self.out_features, self.autocast = linear.in_features, linear.out_features, autocast
        for name, parameter in linear.named_parameters():
            self.register_parameter(name, parameter)
        if linear.bias is None:
            self.bias = None
        for name, buffer in linear.named_buffers():  # such as pruning's mask
            self.register_buffer(name, buffer)

    def forward(self, x):
        """x (..., in) -> (..., out)."""
        product = rounded_product(x, self.weight, self.bias)
        if self.autocast and torch.is_autocast_enabled(x.device.type):
            return product.to(torch.get_autocast_dtype(x.device.type))
        return product

    def plain(self):
        """The nn.Linear of its weight and bias."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear


def round_linears(model):
    """Put, in place, a RoundedLinear for every nn.Linear that will be int8. Returns how many."""
    names, _ = split_linears(model)
    for name in names:
        # DeBERTa sets masked scores, bf16 under autocast, to the lowest number of the queries' type
        layer = RoundedLinear(model.get_submodule(name), autocast=is_deberta(model))
        replace_module(model, name, layer)
    return len(names)


def unround_linears(model):
    """Put the nn.Linear back, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, RoundedLinear):
            replace_module(model, name, module.plain())


def is_deberta(model):
    """Whether a model is DeBERTa, of any version."""
    return "deberta" in model.config.model_type


# --- plain tensors, to save and to load


def plain_state(model):
    """A state_dict of plain tensors; an int8 layer gives weight int8 (out, in), weight_scale (out,) and bias.

    The weights are symmetric, so their zero points are all 0 and are not stored. A tensor that several names
    share, such as the word embeddings of a masked-language model's head, stands under the first.
    """
    int8 = {name: module for name, module in model.named_modules() if is_int8(module)}
    inside = tuple(f"{name}." for name in int8)
    state, seen = {}, set()
    for key, value in model.state_dict().items():
        place = (value.data_ptr(), value.shape) if torch.is_tensor(value) and value.numel() else key
        if place not in seen and not key.startswith(inside):
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
    """The inverse, into a model of the same structure.

    Raises RuntimeError if tensors are missing, left over or misshapen.
    """
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


# --- the technique


class Quantization(Technique):
    """int8 after training. Alone it starts from the finished base run, and trains only with --qat."""

    learning_rate = 2e-5
    trains = False
    cpu_only = True
    final = True
    OPTIONS = {
        "--fp32-embeddings": {"action": "store_true",
            "help": "leave the embedding tables in fp32 (off: they become int8, too)"},
        "--qat": {"action": "store_true",
            "help": "train first with the rounding of int8, from the base run; 2 epochs are enough (off)"},
    }  # fmt: skip

    def __init__(self, fp32_embeddings=False, qat=False):
        self.embeddings, self.trains = not fp32_embeddings, qat
        self.fp32_head = False  # a head that is fitted on the int8 encoder's vectors (task.fits_head)

    @classmethod
    def trains_with(cls, options):
        """Only with --qat."""
        return options.qat

    @classmethod
    def starts_from_base(cls, options):
        """Only with --qat: else the rest of its chain trains the model, or nothing does."""
        return options.qat

    def prepare(self, model):
        """With --qat let every product round."""
        if self.trains:
            print(f"{self.name}: training with int8's rounding in {round_linears(model)} Linear")
        return model

    def finish(self, model):
        """Move to the CPU and quantize."""
        unround_linears(model)
        self.embeddings = self.embeddings and not is_deberta(model)  # which reads its tables directly
        (linears, tied), total = split_linears(model), parameter_count(model)
        kept = encoder_linears(model)[1] if self.task and self.task.fits_head else []
        weights = sum(model.get_submodule(name).weight.numel() for name in linears if name not in kept)
        self.fp32_head = bool(kept)
        model = as_int8(model, self.embeddings, self.fp32_head)
        print(self._claim(model, len(linears), tied, weights, total))
        return model

    def _claim(self, model, linears, tied, weights, total):
        done = sum(is_int8(module) for module in model.modules())
        tables = [module for module in model.modules() if isinstance(module, Int8Embedding)]
        weights += sum(table.weight.numel() for table in tables)
        before, after = 4 * total / 1e6, (4 * total - 3 * weights) / 1e6
        shared = "".join(f", {name} too, which shares a weight with the embeddings" for name in tied)
        return (
            f"{self.name}: {done}/{linears + len(tied)} Linear and {len(tables)} embedding tables to int8 "
            f"(engine {fastest_engine()}), {millions(weights)} of {millions(total)} parameters; "
            f"{before:.1f} MB -> {after:.1f} MB, the rest stays fp32{shared}"
        )

    def describe(self):
        """Engine and bits of inputs are for the record: whoever loads the run uses what is best there."""
        facts = {"engine": fastest_engine(), "bits": 8 if full_range() else 7, "embeddings": self.embeddings}
        return {**facts, "fp32_head": self.fp32_head}

    @staticmethod
    def is_plain(facts):
        """Its layers are its own."""
        return False

    @staticmethod
    def rebuild(model, facts):
        """int8 layers of random weights."""
        return as_int8(model, facts.get("embeddings"), facts.get("fp32_head"))


@torch.no_grad()
@without_deprecations()
def fp32_copy(model):
    """A copy of a model in which fp32 layers hold the values of its int8 layers, for other engines."""
    places = {}
    for name, module in model.named_modules():
        if is_int8(module):
            places[name] = nn.Linear(module.in_features, module.out_features, module.bias() is not None)
            places[name].weight.copy_(module.weight().dequantize())
            if module.bias() is not None:
                places[name].bias.copy_(module.bias())
        elif isinstance(module, Int8Embedding):
            places[name] = nn.Embedding.from_pretrained(module.weight.float() * module.weight_scale[:, None])
    with exchanged(model, {name: layer.eval() for name, layer in places.items()}):
        return copy.deepcopy(model)


def as_int8(model, embeddings, fp32_head=False):
    """Move a model to the CPU; make its Linear layers int8, and its embedding tables if asked for.

    fp32_head: leave the task's head as it is.
    """
    model = quantize_linears(model.cpu().eval(), encoder_linears(model)[1] if fp32_head else ())
    if embeddings:
        quantize_embeddings(model)
    return model
