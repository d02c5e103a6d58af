"""A model as an ONNX file, and ONNX Runtime to read it. Needs requirements-engines.lock (docs/engines.md)."""

import contextlib
import logging
import warnings
from io import StringIO

import torch

from cli import BadInput
from fast import speedups

INSTALL = "pip install --no-deps -r requirements-engines.lock"


class Logits(torch.nn.Module):
    """A model as a function of two tensors, (B, T) each -> logits.

    first: the logits of the first token, if the model gives logits for every token.
    """

    def __init__(self, model, first):
        super().__init__()
        self.model, self.first = model, first

    def forward(self, input_ids, attention_mask):
        """The model's logits."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits[:, 0] if self.first and logits.dim() == 3 else logits


def onnx_library():
    """The module onnx. Raises BadInput if it, or onnxscript for torch's exporter, is not installed."""
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BadInput(f"{error.name} is not installed; {INSTALL}") from None
    return onnx


def onnx_runtime():
    """The module onnxruntime. Raises BadInput if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise BadInput(f"onnxruntime is not installed; {INSTALL}") from None
    onnxruntime.set_default_logger_severity(3)
    onnxruntime.disable_telemetry_events()  # which its builds for Windows have
    return onnxruntime


@contextlib.contextmanager
def errors_only(name=None):
    """While open, a logger (None = the root) reports errors alone."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def silence():
    """While open, nothing is printed and no warning is shown."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(StringIO()),
        contextlib.redirect_stderr(StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def converting(what, remedy="leave it with torch"):
    """Within, a failed conversion is BadInput: exporters raise whatever comes."""
    try:
        yield
    except (BadInput, OSError, MemoryError):
        raise
    except Exception as error:
        raise BadInput(f"{what} cannot take this model ({type(error).__name__}); {remedy}") from None


def to_onnx(model, path, first=False):
    """Write a model of fp32 layers as one ONNX file for any batch and length.

    first: the last layer answers for the first token alone. The model itself stays as it is.
    """
    onnx = onnx_library()
    ids = torch.randint(0, model.config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with converting("ONNX"), errors_only("torch.onnx"), silence(), torch.no_grad():
        with speedups(model, reads_first=first):
            torch.onnx.export(
                Logits(model, first).eval(), (ids, torch.ones_like(ids)), path, dynamo=True,
                dynamic_shapes=(free, free), external_data=False,
                input_names=["input_ids", "attention_mask"], output_names=["logits"],
            )  # fmt: skip
        graph = onnx.load(path)
        del graph.graph.value_info[:]  # from before weights were transposed; the quantizer stumbles over them
        onnx.save(graph, path)


def to_onnx_int8(source, path):
    """ONNX Runtime's dynamic int8 of an ONNX file: matrix products and embeddings, one scale per channel."""
    onnx_runtime()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with converting("ONNX Runtime's int8"), errors_only():
        quantize_dynamic(source, path, weight_type=QuantType.QInt8, per_channel=True)


def open_onnx(path, threads=None):
    """An ONNX file as a function (input_ids, attention_mask) of tensors -> logits, on the CPU.

    threads: None = as many as torch takes.
    """
    onnxruntime = onnx_runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    with converting("ONNX Runtime"):
        inner = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(input_ids, attention_mask):
        return inner.run(
            None, {"input_ids": input_ids.cpu().numpy(), "attention_mask": attention_mask.cpu().numpy()}
        )[0]

    return call
