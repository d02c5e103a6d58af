"""A model as an OpenVINO file, in fp32, bf16 or int8, and OpenVINO to read it.

The file is two: NAME.xml is the graph, NAME.bin the weights. It is made of an ONNX file (run/onnx_file.py),
so that a model has one graph for all engines. bf16: products in bf16, weights stored as fp16. int8: NNCF's
post-training quantization, weights with a scale per channel, inputs with fixed scales from calibration notes.
Needs requirements-engines.lock (docs/engines.md).
"""

import os
import sys

import torch

from cli import BadInput
from run.onnx_file import INSTALL, converting, errors_only, silence

PRECISION = ["compressed-clinical-bert", "precision"]  # where a file says in which precision it is computed
HINTS = {"fp32": "f32", "bf16": "bf16"}  # int8: OpenVINO's own for the rest, bf16 where the CPU multiplies it


def openvino_library():
    """The module openvino. Raises BadInput if it is not installed.

    When imported it would report to Google Analytics by openvino_telemetry, if that is there: that import is
    barred for this process, and OpenVINO takes its own stub.
    """
    sys.modules.setdefault("openvino_telemetry", None)
    try:
        import openvino
    except ImportError:
        raise BadInput(f"openvino is not installed; {INSTALL}") from None
    return openvino


def nncf_library():
    """The module nncf. Raises BadInput if it is not installed. It reports nothing either."""
    openvino_library()
    try:
        with silence():
            import nncf
    except ImportError as error:
        raise BadInput(f"{error.name} is not installed; {INSTALL}") from None
    return nncf


def to_openvino(source, path, precision="fp32", batches=()):
    """Write an ONNX file as path (.xml) and the .bin beside it, in fp32, bf16 or int8.

    batches: of calibration notes, dicts of tensors input_ids and attention_mask, for int8.
    """
    openvino = openvino_library()
    with converting("OpenVINO"):
        model = openvino.Core().read_model(str(source))
    if precision == "int8":
        with converting("NNCF", "leave out --int8, or take --to onnx --int8"):
            model = quantized(model, batches)
    with converting("OpenVINO"):
        model.set_rt_info(precision, PRECISION)
        openvino.save_model(model, str(path), compress_to_fp16=precision == "bf16")


def quantized(model, batches):
    """NNCF's int8 of an OpenVINO model: SmoothQuant, scales from the batches, then corrected biases."""
    nncf = nncf_library()
    inputs = ("input_ids", "attention_mask")
    notes = [{name: batch[name].numpy() for name in inputs} for batch in batches]
    with errors_only("nncf"), silence():
        return nncf.quantize(
            model, nncf.Dataset(notes), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(notes)
        )


def put_in_place(source, path):
    """Move an OpenVINO file, both parts, over another. Meanwhile there is none, never half of each."""
    path.unlink(missing_ok=True)
    for part in (".bin", ".xml"):
        os.replace(source.with_suffix(part), path.with_suffix(part))


def open_openvino(path, threads=None):
    """An OpenVINO file as a function (input_ids, attention_mask) of tensors -> logits, on the CPU.

    It computes in the precision that the file names, fp32 if it names none. threads: None = as many as torch
    takes.
    """
    openvino = openvino_library()
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file may be replaced while it is in use
    settings = {
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "CPU_RUNTIME_CACHE_CAPACITY": 64,  # kernels, by shape: notes of all lengths took gigabytes
    }
    with converting("OpenVINO"):
        model = core.read_model(str(path))
        named = model.get_rt_info(PRECISION).astype(str) if model.has_rt_info(PRECISION) else "fp32"
        if named in HINTS:
            settings["INFERENCE_PRECISION_HINT"] = HINTS[named]
        request = core.compile_model(model, "CPU", settings).create_infer_request()

    def call(input_ids, attention_mask):
        inputs = {"input_ids": input_ids.cpu().numpy(), "attention_mask": attention_mask.cpu().numpy()}
        return next(iter(request.infer(inputs).values())).copy()

    return call
