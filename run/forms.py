"""The forms of a finished run: an engine and a precision each, and the files that they are read from.

torch is the run as it was saved. Every other form is a function (input_ids, attention_mask) -> logits, made
from the run's weights: a file in RUN/engines, or a bf16 copy of the model.

A form's file is read by native code, so only what this user made is opened: a mark of its bytes, and of the
run that it was made from, stands in an owner-only directory of the user's cache.
"""

import contextlib
import copy
import hashlib
import json
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

from cli import BadInput
from compress.bf16 import bf16_copy
from compress.quantization import fp32_copy
from files import Unwritable, checksum_of, remove_remains, writing
from layers import has_bf16, has_int8
from run import cache
from run.checkpoint import weights_path
from run.inference import reading
from run.onnx_file import Logits, open_onnx, to_onnx, to_onnx_int8
from run.openvino_file import open_openvino, put_in_place, to_openvino
from run.untrusted import check_file


class Form(NamedTuple):
    """An engine and a precision, and the name of its file in RUN/engines; torch needs none."""

    engine: str
    precision: str
    file: str | None = None


FORMS = {
    "torch": Form("torch", "fp32"),
    "torch bf16": Form("torch", "bf16"),
    "onnxruntime": Form("onnxruntime", "fp32", "fp32.onnx"),
    "onnxruntime int8": Form("onnxruntime", "int8", "int8.onnx"),
    "openvino": Form("openvino", "fp32", "fp32.xml"),
    "openvino bf16": Form("openvino", "bf16", "bf16.xml"),
    "openvino int8": Form("openvino", "int8", "int8.xml"),
}
SMALLER = {  # the precisions that export.py offers beside fp32, with their help texts
    "int8": "quantize, to a quarter of the bytes (no)",
    "bf16": "products in bf16, half of the bytes (no)",
}
CONVERTERS = ("onnx", "onnxscript")  # what makes a form's file, besides its engine; reading it takes neither
MADE_BY = 1  # counts up when this project converts otherwise, so that old files are not taken


# --- which forms a run has ------------------------------------------------------------------------


def installed(package):
    """The version of a package, as of an engine; None if it is absent. Imports nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def converts():
    """Whether the packages are there that make a form's file."""
    return all(map(installed, CONVERTERS))


def version_of(name):
    """The version of a form's engine."""
    return installed(FORMS[name].engine)


def in_fp32(model):
    """A model as one of fp32 weights: itself, or of bf16 or int8 weights a copy with the same values."""
    if has_int8(model):
        return fp32_copy(model)
    return copy.deepcopy(model).float() if has_bf16(model) else model


# --- files that this user made --------------------------------------------------------------------


def run_key(run, directory):
    """Hex digits that change with a run's weights and structure, and with how this project converts them."""
    weights = run.facts.get("checksum") or checksum_of(weights_path(directory))
    texts = [(Path(directory) / name).read_text() for name in ("config.json", "compression.json")]
    facts = [MADE_BY, weights, *texts, run.task.name, run.task.reads_first]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def parts_of_file(path):
    """The files of a form: an OpenVINO graph has its weights beside it."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]


def mark_of(path, key):
    """Where the mark of a form's file stands: named by its bytes and the run that it was made from."""
    sums = [checksum_of(part) for part in parts_of_file(path)]
    name = hashlib.blake2b(" ".join([key, *sums]).encode(), digest_size=32).hexdigest()
    return cache.CACHE / "engines" / name


def vouch(path, key):
    """Note that this user made a form's file from the run of a key."""
    mark = mark_of(path, key)
    with writing(mark):
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch(mode=0o600)


def is_ours(path, key):
    """Whether a form's file is one that this user made from the run of a key."""
    try:
        for part in parts_of_file(path):
            check_file(part)
        mark = mark_of(path, key)
    except (BadInput, OSError):  # it is not there, or is no regular file
        return False
    return mark.exists() and cache.is_private(mark.parent)


class Files:
    """The files of a run's forms: found in RUN/engines, or made in a workshop there and then kept.

    Where the run's directory cannot be written they are made among temporary files, for this call.
    """

    def __init__(self, run, directory, say=print):
        self.run, self.home, self.say = run, Path(directory) / "engines", say
        self.key, self.workshop = run_key(run, directory), None

    @contextlib.contextmanager
    def open(self, beside=None):
        """While open, files can be made; what was made and not placed is removed.

        beside: the directory that the file is for, if not RUN/engines.
        """
        home = beside or self.home
        self.workshop = home / f".made.{os.getpid()}.tmp"
        remove_remains(home / "made")
        try:
            home.mkdir(mode=0o700, exist_ok=True)
            self.workshop.mkdir(mode=0o700)
        except OSError:
            self.workshop = Path(tempfile.mkdtemp())
        try:
            yield self
        finally:
            shutil.rmtree(self.workshop, ignore_errors=True)
            with contextlib.suppress(OSError):  # it was not made, or there is something in it
                self.home.rmdir()

    def has(self, form):
        """Whether a form's file is in RUN/engines and may be trusted."""
        return is_ours(self.home / form.file, self.key)

    def foreign(self, form):
        """Whether a form's file is in RUN/engines, but not to be trusted."""
        return (self.home / form.file).exists() and not self.has(form)

    def mark(self, form):
        """Hex digits that change with the bytes of a form's file in RUN/engines."""
        return mark_of(self.home / form.file, self.key).name

    def find(self, form):
        """The path of a form's file: that in RUN/engines, or one that is made for it."""
        if self.has(form):
            return self.home / form.file
        if not (self.workshop / form.file).exists():
            self.say(f"engine: converting the model for {form.engine} {form.precision}")
            self.make(form)
        return self.workshop / form.file

    def make(self, form, batches=()):
        """Make a form's file in the workshop. batches: of calibration notes, for OpenVINO's int8."""
        dense, out = self.workshop / "fp32.onnx", self.workshop / form.file
        with writing(out):
            if not dense.exists():
                to_onnx(in_fp32(self.run.model), dense, self.run.task.reads_first)
            if form.engine == "openvino":
                to_openvino(dense, out, form.precision, batches)
            elif form.precision == "int8":
                to_onnx_int8(dense, out)
        return out

    def place(self, form, path=None):
        """Move a form's file from the workshop to a path, by default in RUN/engines; only the owner reads it.

        Raises Unwritable. Returns the path.
        """
        made = self.workshop / form.file
        if path is None:
            vouch(made, self.key)
        path = path or self.home / form.file
        with writing(path):
            for part in parts_of_file(made):
                part.chmod(0o600)
            if path.suffix == ".xml":
                put_in_place(made, path)
            else:
                os.replace(made, path)
        return path

    def keep(self, form):
        """Place a form's file, if it was made, in RUN/engines; say so where that cannot be done."""
        if (self.workshop / form.file).exists():
            try:
                self.place(form)
            except Unwritable as error:
                self.say(f"engine: the converted model is not kept: {error}")


# --- a form as a function -------------------------------------------------------------------------


def call_of(name, run, files, opened):
    """A form as a function (input_ids, attention_mask) (B, T) -> logits, NumPy. opened: an ExitStack."""
    form = FORMS[name]
    if form.engine == "torch":
        model = run.model
        if form.precision == "bf16":
            model = opened.enter_context(reading(bf16_copy(model), run.task, frozen=True))
        return torch_call(model, run.task.reads_first)
    return open_file(form, files.find(form))


def open_file(form, path):
    """A form's file as such a function."""
    return {"onnxruntime": open_onnx, "openvino": open_openvino}[form.engine](path)


def torch_call(model, first):
    """A PyTorch model as such a function; of rows without padding it takes no mask, as everywhere."""
    logits = Logits(model, first).eval()

    @torch.inference_mode()
    def call(input_ids, attention_mask):
        mask = None if attention_mask.all() else attention_mask
        return logits(input_ids, mask).float().numpy()

    return call
