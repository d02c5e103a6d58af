"""What is checked of a model or run directory from a stranger, before anything is built of it.

files         regular ones, no link out of the directory; JSON and the tokenizer's files have at most 36 MB
config.json   names no code, no kernels of a hub, no quantized weights: transformers would fetch or run them
sizes         whole numbers have a bound; the model that config.json and compression.json describe is built
              without memory, on the meta device, and may not be larger than the weights file allows
run.json      has the types that its readers expect
weights       fit into the memory that is free, and have the checksum that run.json names; a checkpoint's may
              be pytorch_model.bin, a pickle, which torch's restricted unpickler reads: tensors, no code

So a directory can run nothing, and takes memory in proportion to its weights file. Not bounded: the time that
a slow expression in tokenizer.json takes on a note, and the memory that the pickle asks for before its
tensors are known. What else does not fit together is an error while the model is rebuilt, which `fitting`
turns into one line.
"""

import contextlib
import math
import os
import stat
import warnings
from argparse import ArgumentTypeError
from pathlib import Path
from types import NoneType
from typing import NamedTuple

import safetensors
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

import compress
from cli import BadInput, keyword
from files import MOST_JSON, checksum_of, read_json
from tasks import TASKS

# --- files -------------------------------------------------------------------------------------------

READ_WHOLE = (".json", ".txt", ".jinja", ".model")  # endings of the files that are read into memory


def check_file(path):
    """Raises BadInput unless a path is a directory, or a regular file that is no link out of its directory.

    The hub's cache is the one exception: there snapshots/X/ holds links into blobs/.
    """
    path = Path(path)
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(path.parent))
    inside = [home, *([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])]
    try:
        found = os.stat(real)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise BadInput(f"{path}: is no regular file; remove it")
    if path.is_symlink() and not any(real.is_relative_to(root) for root in inside):
        raise BadInput(f"{path}: is a link out of its directory; copy the file into it")
    if path.suffix in READ_WHOLE and found.st_size > MOST_JSON:
        raise BadInput(f"{path}: has {found.st_size / 1e6:,.0f} MB; at most {MOST_JSON / 1e6:.0f} are read")


def check_files(directory):
    """check_file for everything that stands in a directory, and for the templates that transformers reads."""
    directory = Path(directory)
    for path in [*directory.iterdir(), *directory.glob("additional_chat_templates/*")]:
        check_file(path)
        if path.name == "adapter_config.json":  # transformers would load the model that it names, from a hub
            raise BadInput(f"{directory}: is an adapter to another model; merge it into that one")


# --- what transformers would run or fetch ------------------------------------------------------------

REFUSED = {
    "auto_map": "names code of its own, which is never run; give a model that transformers knows",
    "quantization_config": "has quantized weights; give the unquantized model",
    "compression_config": "has quantized weights; give the unquantized model",
    "configuration_files": "names another file that transformers would read in its place; give that one",
}
KERNELS = ("attn_implementation", "experts_implementation")  # keys end in these, or in these + _internal
OWN_KERNELS = (None, "eager", "sdpa")  # transformers' own; the others may come from a hub


def entries(value):
    """(key, value) of every dict within a JSON value."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from entries(inner)


def refuse_code(where, config):
    """Raises BadInput for a config.json or tokenizer_config.json by which code or kernels would be loaded."""
    if not isinstance(config, dict):
        raise BadInput(f"{where}: is no JSON object")
    for key, value in entries(config):
        if key in REFUSED and value:
            raise BadInput(f"{where}: {REFUSED[key]}")
        if key.removesuffix("_internal").endswith(KERNELS):
            chosen = value.values() if isinstance(value, dict) else [value]
            if any(name not in OWN_KERNELS for name in chosen):
                raise BadInput(f"{where}: names kernels that may come from a hub; give a model without")
    names = config.get("fast_tokenizer_files") or []
    if any(not isinstance(name, str) or "/" in name or "\\" in name for name in names):
        raise BadInput(f"{where}: fast_tokenizer_files must be names of files beside it")


# --- sizes -------------------------------------------------------------------------------------------


ONE_FILE = "model.safetensors"  # transformers' name of the weights, if they are one file
PICKLE = "pytorch_model.bin"  # the name before safetensors


class Weights(NamedTuple):
    """What the headers of weights files say: {name: shape}; nothing if there is no file."""

    shapes: dict

    @property
    def largest(self):
        """The largest dimension of a tensor."""
        return max((max(shape, default=1) for shape in self.shapes.values()), default=0)

    @property
    def elements(self):
        """Elements of all tensors together."""
        return sum(map(math.prod, self.shapes.values()))


def free_memory():
    """Bytes of memory that a program can still take; where the system does not say, more than any has."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)


def read_header(path):
    """The Weights of a safetensors file; its tensors are not read.

    Raises BadInput if it is damaged, or larger than the memory that is free.
    """
    check_file(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MOST_JSON:
            raise BadInput(f"{path}: its header is said to have {length:,} bytes; the file is damaged")
        with safetensors.safe_open(path, "pt") as file:
            names = file.keys()  # it is no dict
            weights = Weights({name: tuple(file.get_slice(name).get_shape()) for name in names})
    except (OSError, safetensors.SafetensorError) as error:
        raise BadInput(
            f"{path}: is no whole safetensors file ({type(error).__name__}); copy it again"
        ) from None
    size, free = os.path.getsize(path) / 1e9, free_memory() / 1e9
    if size > free:
        raise BadInput(f"{path}: has {size:,.1f} GB, and {free:,.1f} GB of memory are free")
    return weights


def is_pickled(directory):
    """Whether a model directory's weights are pytorch_model.bin, because it has no safetensors."""
    return (Path(directory) / PICKLE).exists() and not list(Path(directory).glob("model*.safetensors"))


def read_pickle(path):
    """The Weights of a pytorch_model.bin, its tensors on the meta device; of an old one they are read.

    Raises BadInput if there is more in it than tensors, or if they are larger than the file.
    """
    check_file(path)
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"  # as torch has saved since 1.6
        with warnings.catch_warnings(action="ignore"):  # of an odd protocol: what is wrong is said below
            held = torch.load(path, map_location="meta" if zipped else "cpu", weights_only=True)
    except Exception as error:  # torch raises whatever comes
        raise BadInput(
            f"{path}: is damaged, or holds more than tensors, which is never read ({type(error).__name__}); "
            f"give {ONE_FILE}"
        ) from None
    plain = isinstance(held, dict) and all(
        isinstance(name, str) and torch.is_tensor(t) and t.layout == torch.strided and not t.is_quantized
        for name, t in held.items()
    )
    # a tensor that two names share, such as a tied embedding, is stored once
    if not plain or sum(t.nbytes for t in held.values()) > 2 * os.path.getsize(path):
        raise BadInput(f"{path}: is no plain list of tensors as large as the file; give {ONE_FILE}")
    return Weights({name: tuple(t.shape) for name, t in held.items()})


def read_headers(directory):
    """The Weights of a model directory: its one file, the shards that its index names, or its pickle."""
    single, index = Path(directory) / ONE_FILE, Path(directory) / f"{ONE_FILE}.index.json"
    if is_pickled(directory):
        return read_pickle(Path(directory) / PICKLE)
    if single.exists() or not index.exists():
        return read_header(single) if single.exists() else Weights({})
    shards = read_json(index)
    names = shards.get("weight_map") if isinstance(shards, dict) else None
    if not isinstance(names, dict) or not all(
        isinstance(n, str) and Path(n).name == n for n in names.values()
    ):
        raise BadInput(f"{index}: must name files beside it")
    parts = [read_header(index.with_name(name)) for name in sorted(set(names.values()))]
    return Weights({name: shape for part in parts for name, shape in part.shapes.items()})


def check_numbers(where, value, most):
    """Raises BadInput if a whole number anywhere in a JSON value is beyond +-most."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in inner:
        check_numbers(where, part, most)
    if isinstance(value, int) and abs(value) > most:
        raise BadInput(f"{where}: a number in it is larger than anything in the weights file")


def check_config(directory, config, weights):
    """Raises BadInput for a config.json that names code or kernels, or numbers beyond any model's."""
    where = f"{directory}/config.json"
    refuse_code(where, config)
    check_numbers(where, config, max(10**6, weights.largest))


LAYERS_ROOM = 64  # factored layers are built dense first; BERT-large at rank 1 needs 11
PLAIN_ROOM = 3  # the encoder, a pooler, a head as large as the embeddings


def measured(directory, weights, build, room):
    """build(), called on the meta device, so without memory.

    Raises BadInput if it gives a model more tensors, or more elements, than `room` times those of the weights
    file.
    """
    most = 2 * len(weights.shapes) + 200, room * weights.elements + 10**7  # a fresh head is in no file
    count = [0, 0]

    def register(_, __, parameter):
        count[0] += 1
        count[1] += 0 if parameter is None else parameter.numel()
        if count[0] > most[0] or count[1] > most[1]:
            raise BadInput(f"{directory}: its files describe a model far larger than its weights file holds")

    handle = register_module_parameter_registration_hook(register)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return build()
    finally:
        handle.remove()


def check_shapes(directory, weights, model):
    """Raises BadInput unless every tensor of a weights file is one of the model's, or the scales of one."""
    known = {name: tuple(t.shape) for name, t in model.state_dict().items() if torch.is_tensor(t)}
    known |= {f"{name}_scale": shape[:1] for name, shape in known.items()}  # an int8 matrix has one per row
    for name, shape in weights.shapes.items():
        if known.get(name) != shape:
            raise BadInput(f"{directory}: its files do not fit together: a tensor of another name or shape")


# --- compression.json --------------------------------------------------------------------------------


def read_compression(directory, most=10**6):
    """compression.json, [{"technique": name, **facts}]. Raises BadInput for unknown or repeated techniques.

    most: the largest number in a list or a dict of its facts, which are ranks, heads, neurons.
    """
    path = Path(directory) / "compression.json"
    check_file(path)
    compression = read_json(path)
    if not isinstance(compression, list) or not all(isinstance(facts, dict) for facts in compression):
        raise BadInput(f"{path}: is no list of techniques; train the run again")
    names = [str(facts.get("technique")) for facts in compression]
    if unknown := set(names) - compress.TECHNIQUES.keys():
        raise BadInput(f"{path}: no technique {min(unknown)[:40]!r}")
    compress.check_order(names)
    for value in (value for facts in compression for value in facts.values()):
        check_numbers(path, value, most if isinstance(value, list | dict) else 10**15)
    return compression


# --- run.json ----------------------------------------------------------------------------------------

MAYBE_TEXT, NUMBER, SCORE = (str, NoneType), (int, float), (int, float, NoneType)

# {path: types}; * = every item
RUN = {
    **dict.fromkeys(("technique", "name", "finished", "task.task", "data.split", "data.unit"), str),
    **dict.fromkeys(("start", "teacher", "machine.commit"), MAYBE_TEXT),
    **dict.fromkeys(("demonstration", "demo_model"), bool),
    **dict.fromkeys(("arguments.data", "arguments.model"), str),
    **dict.fromkeys(("arguments.max_length", "arguments.split_seed", "data.notes"), int),
    "arguments.validation": (int, float, str),
    "arguments.test": (int, float, str, list),
    "arguments.test.*": int,
    **dict.fromkeys(("arguments.fraction", "best_epoch", "train_seconds"), NUMBER),
    **dict.fromkeys(("arguments", "task", "task.options", "data.splits", "machine", "history.*"), dict),
    **dict.fromkeys(("data.sizes.*", "data.rows.*", "data.splits.*.*", "sizes.*", "test.confusion.*.*"), int),
    **dict.fromkeys(("validation.overall.*", "test.overall.*", "test.per_label.*.*"), SCORE),
    "data.subjects": (int, NoneType),
    "precision": str,
    "head": dict,
    "task.labels": list,
    "task.labels.*": str,
    "task.thresholds": (list, NoneType),
    "task.thresholds.*": NUMBER,
    "task.temperature": SCORE,
    "test.calibration": (dict, NoneType),
    "test.calibration.temperature": SCORE,
    **dict.fromkeys(("test.calibration.*.ECE", "test.calibration.*.Brier"), NUMBER),
    "test.calibration.*.bins": list,
    "test.calibration.*.bins.*.*": NUMBER,
    "test.intervals": (dict, NoneType),
    "test.intervals.*.*": NUMBER,
    **dict.fromkeys(("groups", "groups.*", "groups.*.*.overall", "groups.*.*.intervals"), dict),
    "groups.*.*.count": int,
    "groups.*.*.overall.*": SCORE,
    "groups.*.*.intervals.*.*": NUMBER,
    "history": list,
    "checksum": str,
    "recipe": str,
    **dict.fromkeys(("learning_rate", "data.copied", "data.distinct"), NUMBER),
    **dict.fromkeys(("arguments.seed", "arguments.label_seed"), int),
}
PRECISIONS = ("float32", "bfloat16", "float16")  # names in torch
LOADED = ("technique", "finished", "task.task", "task.labels", "task.options", "arguments.max_length")
SPLIT = tuple(f"arguments.{name}" for name in ("data", "fraction", "validation", "test", "split_seed"))
COMPARED = (
    *("technique", "start", "train_seconds", "sizes.bytes", "sizes.parameters"),
    *("validation.overall", "test.overall", "test.intervals"),
)
REPORTED = (
    *(
        *LOADED,
        *COMPARED,
        "name",
        "demonstration",
        "machine.commit",
        "history",
        "test.per_label",
        "sizes.nonzero",
    ),
    *("data.split", "data.rows", "data.notes", "data.subjects", "data.sizes.test", "data.splits.test"),
)
RERUN = (
    *("recipe", "technique", "finished", "learning_rate", "machine.commit", "test.overall", "test.per_label"),
    "demonstration",
    *("task.labels", "data.sizes.train", "data.sizes.test", "data.copied", "data.rows", "history"),
    *("arguments.data", "arguments.model", "arguments.seed", "arguments.label_seed", "arguments.split_seed"),
)


def reached(value, keys):
    """The values at the end of a path of keys within a JSON value; * goes through all items."""
    if not keys:
        yield value
    elif keys[0] == "*":
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from reached(inner, keys[1:])
    elif isinstance(value, dict) and keys[0] in value:
        yield from reached(value[keys[0]], keys[1:])


def check_types(where, value, schema, needs):
    """Raises BadInput if something has another type than in the schema, or if what is needed is absent."""
    for path in needs:
        if not list(reached(value, path.split("."))):
            raise BadInput(f"{where}: is damaged or incomplete: no {path}")
    for path, kinds in schema.items():
        for found in reached(value, path.split(".")):
            kinds = kinds if isinstance(kinds, tuple) else (kinds,)
            if type(found) not in kinds:  # a bool is no int here
                raise BadInput(f"{where}: is damaged: {path} has another type than a run's")


def read_run(directory, *needs):
    """run.json of a finished run: what is there has the types of RUN, and `needs`, paths in it, are there.

    Raises BadInput if that is not so.
    """
    path = Path(directory) / "run.json"
    if os.path.exists(path):
        check_file(path)
    facts = read_json(path)
    if not isinstance(facts, dict):
        raise BadInput(f"{path}: is damaged: no JSON object")
    check_types(path, facts, RUN, needs)
    test = facts.get("arguments", {}).get("test")
    if isinstance(test, list) and not (len(test) == 2 and 1 <= test[0] <= test[1] != 1):
        raise BadInput(f"{path}: is damaged: its test split is no fold")
    if facts.get("precision", PRECISIONS[0]) not in PRECISIONS:
        raise BadInput(f"{path}: is damaged: no precision of this name")
    return facts


def read_task(directory, facts):
    """The task that run.json describes. Raises BadInput for a task or options that there are not."""
    path, described = Path(directory) / "run.json", facts["task"]
    cls = TASKS.get(described["task"])
    if cls is None or len(described["labels"]) < cls.fewest_labels or facts["arguments"]["max_length"] < 1:
        raise BadInput(f"{path}: is damaged: no task of this name, or no labels, or no length")
    flags = {keyword(flag): words for flag, words in cls.OPTIONS.items()}
    for name, value in described["options"].items():
        if name not in flags or not could_be(value, flags[name]):
            raise BadInput(f"{path}: is damaged: {cls.name} has no such option, or the option no such value")
    with fitting(directory):
        task = cls.from_facts(described)
    if task.temperature is not None and not 0.01 < task.temperature < 100:
        raise BadInput(f"{path}: is damaged: its temperature is none")
    if len(getattr(task, "thresholds", None) or task.labels) != len(task.labels):
        raise BadInput(f"{path}: is damaged: not one threshold for each label")
    return task


def could_be(value, words):
    """Whether a JSON value could be that of a flag; words: the flag's keywords for argparse."""
    if value is None or "action" in words:
        return type(value) is (bool if "action" in words else type(words.get("default")))
    if "choices" in words:
        return value in words["choices"]
    try:
        return words.get("type", str)(str(value)) == value
    except (ArgumentTypeError, ValueError):
        return False


# --- weights -----------------------------------------------------------------------------------------


def check_weights(path, facts):
    """Raises BadInput if a weights file has not the checksum that run.json names; older runs name none."""
    check_file(path)
    if facts.get("checksum", found := checksum_of(path)) != found:
        raise BadInput(f"{path}: is not the file that this run saved (its checksum differs); copy it again")


# --- the last defence --------------------------------------------------------------------------------


@contextlib.contextmanager
def without_panic():
    """Within, a panic of tokenizers, which is Rust, is a RuntimeError; what Rust prints is dropped."""
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in kept:
        os.dup2(nowhere, stream)
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # it is no Exception, and cannot be imported
            raise RuntimeError("the tokenizer's files are damaged") from None
        raise
    finally:
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)


@contextlib.contextmanager
def fitting(what):
    """Within, any error is one line: files of a directory that are read well, but do not fit together."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # transformers, tokenizers and torch raise whatever comes
        raise BadInput(
            f"{what}: its files do not fit together ({type(error).__name__}); train it again"
        ) from None
