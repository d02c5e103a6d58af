"""A run directory: written whole, rebuilt for any technique. Safetensors and JSON, never a pickle.

config.json, tokenizer files   what transformers needs
model.safetensors              the weights, if plain transformers can build the model: base, zeros,
                               distillation, merged LoRA
compressed.safetensors         the weights, if it cannot; it refuses such a directory and says why
compression.json               [facts per technique], from which the structure is rebuilt before loading
run.json                       arguments, versions, machine, times, splits, scores, sizes
predictions.csv                test rows: row id, cluster, label, predicted, probabilities; no text
train_keys.safetensors         keys of the training notes' texts (run/seen.py)
eval_metrics.json, README.md   the test scores under other names, and the model card (run/card.py)
adapter/                       of a LoRA run, in the PEFT layout
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

import compress
from cli import BadInput
from compress.quantization import load_plain_state, plain_state
from files import checksum_of, read_json, whole_directory, write_json, write_tensors
from run import untrusted

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
huggingface_hub.logging.set_verbosity_error()


class Run(NamedTuple):
    """A finished run, rebuilt: model (eval mode, CPU), tokenizer, task, run.json, compression.json."""

    model: torch.nn.Module
    tokenizer: object
    task: object
    facts: dict
    compression: list


# --- a model from outside ----------------------------------------------------------------------------


def from_pretrained(source, task, flag="--model", fresh_pooler=False, revision=None):
    """(model with a fresh head, tokenizer, names of fresh tensors) from a directory or a hub name.

    A finished run of another task gives its encoder. fresh_pooler: forget the checkpoint's pooler. revision:
    the commit of a hub name. Weights are safetensors or, where there are none, pytorch_model.bin (see
    run/untrusted.py). Raises BadInput, naming the flag, for a source that cannot be used.
    """
    directory = Path(source)
    refuse_source(directory, source, task, flag)
    try:
        place = directory if directory.is_dir() else from_hub(source, revision)
        config, pickled = checked_config(place, task), untrusted.is_pickled(place)
        tokenizer = load_tokenizer(place, config)
        if pickled:
            print(f"model: {untrusted.PICKLE} is read as tensors and nothing else; runs store safetensors")
        model, info = task.auto_class.from_pretrained(
            place,
            **head_names(task),
            **ONLY_DATA,
            dtype=torch.float32,
            use_safetensors=not pickled,
            weights_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except BadInput:
        raise
    except Exception as error:  # transformers raises whatever comes
        raise BadInput(f"{flag} {source}: {unreadable(directory, error)}") from None
    fresh = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    pooler = pooler_names(model) if fresh_pooler else []
    # a head of another task is not this task's, even if it has the same shape
    if is_finished(directory) or pooler:
        model, fresh = with_fresh_head(model, task, fresh, pooler)

    body = {f"{model.base_model_prefix}.{name}" for name in model.base_model.state_dict()}
    loaded = len(body) - sum(name in body for name in fresh)
    if loaded < len(body) / 2:
        raise BadInput(f"{flag} {source}: holds no weights for the encoder of {type(model).__name__}")
    new = ", ".join(sorted(fresh)) or "none"
    print(f"model: {source}, {loaded}/{len(body)} encoder tensors loaded, new: {new}")
    return task.attach_head(model), tokenizer, fresh


# what transformers is always told: run no code of a checkpoint's, ask no hub
ONLY_DATA = {"trust_remote_code": False, "local_files_only": True}
FETCHED = ("*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors")


def from_hub(name, revision):
    """The directory of a hub name's files in the hub's cache; what is not there yet is fetched.

    pytorch_model.bin is fetched only where the repository has no safetensors. The hub is asked for files
    alone, never to convert them.
    """
    directory = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=FETCHED))
    if not list(directory.glob("model*.safetensors")):
        huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=[untrusted.PICKLE])
    return directory


def checked_config(directory, task):
    """A checkpoint's config, for this task. Raises BadInput if it names code or does not fit its weights.

    run/untrusted.py says what is checked.
    """
    untrusted.check_files(directory)
    weights = untrusted.read_headers(directory)
    words, _ = PreTrainedConfig.get_config_dict(directory, **ONLY_DATA)
    untrusted.check_config(directory, words, weights)
    if words.get("transformers_weights", untrusted.ONE_FILE) != untrusted.ONE_FILE:
        raise BadInput(
            f"{directory}/config.json: names weights of its own; give a directory of {untrusted.ONE_FILE}"
        )
    config = AutoConfig.from_pretrained(directory, **head_names(task), **ONLY_DATA)
    if weights.shapes:
        untrusted.measured(directory, weights, lambda: untrained(task, config), untrusted.PLAIN_ROOM)
    return config


def untrained(task, config):
    """A model of a task with random weights."""
    return task.auto_class.from_config(config, dtype=torch.float32, trust_remote_code=False)


def pooler_names(model):
    """Names of the pooler's tensors, within the encoder."""
    return [name for name in model.base_model.state_dict() if name.startswith("pooler.")]


def unreadable(directory, error):
    """Why a checkpoint cannot be loaded, in a line: the first of what transformers says."""
    known = directory.is_dir()
    what = "is no checkpoint that transformers can load" if known else "is no directory and cannot be reached"
    printable = "".join(c if c.isprintable() else "\n" for c in str(error))
    lines = [line.strip() for line in printable.splitlines() if line.strip()]
    return f"{what} ({(lines or [type(error).__name__])[0][:200]})"


def refuse_source(directory, source, task, flag):
    """Raises BadInput for a finished run of the same task, one of changed layers, or no such directory."""
    if is_finished(directory):
        if untrusted.read_run(directory, "task.task")["task"]["task"] == task.name:
            # it may have seen notes that are test notes now: --start checks that
            raise BadInput(f"{flag} {source}: is a finished run; continue it with --start {source}")
        if changed := compress.changed(untrusted.read_compression(directory)):
            raise BadInput(
                f"{flag} {source}: its layers are those of {changed[0]}, not plain; "
                "give a base, distillation or merged lora run"
            )
    if directory.is_dir():
        return
    if directory.exists() or str(source).count("/") > 1 or str(source)[0] in "/.":
        raise BadInput(
            f"{flag} {source}: no such directory; give a checkpoint directory or a hub name, owner/model"
        )
    print(f"model: {source} is no directory here, asking the hub", flush=True)


def head_names(task):
    """What from_pretrained is told of a task's labels."""
    names = dict(enumerate(task.labels))
    indices = {name: index for index, name in names.items()}
    return {"id2label": names, "label2id": indices, "num_labels": len(names)} if names else {}


def with_fresh_head(model, task, fresh, pooler):
    """(the same encoder under a fresh head, names of fresh tensors); those of `pooler` are fresh, too."""
    again, inside = untrained(task, model.config), f"{model.base_model_prefix}."
    fresh = fresh + [name for name in again.state_dict() if not name.startswith(inside) and name not in fresh]
    fresh += [inside + name for name in pooler if inside + name not in fresh]
    kept = {name: tensor for name, tensor in model.base_model.state_dict().items() if name not in pooler}
    again.base_model.load_state_dict(kept, strict=False)
    return again, fresh


def with_head(model, task):
    """(fresh model of this task with another's encoder, names of fresh tensors).

    The head is taken over where both are of the same class and shape.
    """
    ours = task.attach_head(untrained(task, model.config))
    names, inside = ours.state_dict(), f"{ours.base_model_prefix}."
    same_class = type(model) is type(ours)
    taken = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name in names and tensor.shape == names[name].shape and (same_class or name.startswith(inside))
    }
    ours.load_state_dict(taken, strict=False)
    fresh = sorted(names.keys() - taken)
    print(f"another head: {len(taken)}/{len(names)} tensors taken over, new: {', '.join(fresh) or 'none'}")
    return ours, fresh


def load_tokenizer(source, config):
    """The tokenizer beside a model. Raises BadInput if its words are not those of the model."""
    untrusted.refuse_code(f"{source}/tokenizer_config.json", get_tokenizer_config(source, **ONLY_DATA))
    with untrusted.without_panic():
        tokenizer = AutoTokenizer.from_pretrained(source, **ONLY_DATA)
    if len(tokenizer) < 0.9 * config.vocab_size:
        raise BadInput(
            f"{source}: a tokenizer of {len(tokenizer)} words for a model of {config.vocab_size}; "
            "are its files missing?"
        )
    if tokenizer.pad_token_id is None or max(tokenizer.get_vocab().values()) >= config.vocab_size:
        raise BadInput(f"{source}: its tokenizer has no padding token, or words that its model does not know")
    return tokenizer


# --- a run directory ---------------------------------------------------------------------------------

PLAIN, COMPRESSED = untrusted.ONE_FILE, "compressed.safetensors"


def is_finished(directory):
    """Whether a directory holds a finished run."""
    return os.path.exists(Path(directory) / "run.json")  # False for what can be no path, too


def weights_path(directory):
    """The weights file of a run directory."""
    compressed = Path(directory) / COMPRESSED
    return compressed if compressed.exists() else Path(directory) / PLAIN


def save(directory, model, tokenizer, task, compression, facts, files, write_more):
    """Write a run directory, whole; run.json last.

    files: {path: JSON value, or {name: tensor}}; write_more(path, facts, sizes included) may add others.
    """
    with whole_directory(directory) as path:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(path)
        save_tokenizer(tokenizer, path)
        reason = not_plain(task, compression)
        if reason:
            config = read_json(path / "config.json")
            # transformers looks for a weights file of this name and ends with it in its error
            write_json(path / "config.json", {**config, "transformers_weights": reason})
        write_tensors(path / (COMPRESSED if reason else PLAIN), plain_state(model))
        write_json(path / "compression.json", compression)
        for name, content in files.items():
            (path / name).parent.mkdir(exist_ok=True)
            if name.endswith(".safetensors"):
                write_tensors(path / name, content)
            else:
                write_json(path / name, content)
        facts = {**facts, "sizes": sizes(path), "checksum": checksum_of(weights_path(path))}
        write_more(path, facts)
        write_json(path / "run.json", facts)


def save_tokenizer(tokenizer, path):
    """Save a tokenizer as it was loaded: without the length that it last cut texts to."""
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        backend.no_truncation()
        backend.no_padding()
    tokenizer.save_pretrained(path)


def not_plain(task, compression):
    """Why plain transformers cannot build a run's model, or None if it can."""
    changed = compress.changed(compression)
    if not changed and task.plain_head:
        return None
    what = f"layers of {', '.join(changed)}" if changed else f"a head of {task.name}"
    return f"this run has {what}, which transformers cannot build: load it with run/checkpoint.py"


def load(directory):
    """Rebuild the structure, then load the weights. Returns Run.

    Raises BadInput for no run directory, or one that is damaged or made to do harm (run/untrusted.py).
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise BadInput(
            f"{directory}: no such run directory; train one, e.g. python train.py --technique base"
        )
    untrusted.check_files(directory)
    facts, path = untrusted.read_run(directory, *untrusted.LOADED), weights_path(directory)
    if not path.exists():
        raise BadInput(f"{directory}: holds no weights, as runs of --recipe paper and of baselines.py; "
                       "name another run")  # fmt: skip
    with untrusted.fitting(directory):
        task = untrusted.read_task(directory, facts)
        weights = untrusted.read_header(path)
        compression = untrusted.read_compression(directory, weights.largest)
        untrusted.check_config(directory, read_json(directory / "config.json"), weights)
        untrusted.check_weights(path, facts)
        config = AutoConfig.from_pretrained(directory, **ONLY_DATA)
        tokenizer = load_tokenizer(directory, config)
        check_reading(directory, task, config, tokenizer, facts)
        model = rebuilt(directory, task, config, compression, weights)
        load_plain_state(model, load_file(path))
        try_out(model.eval(), tokenizer)
    return Run(model, tokenizer, task, facts, compression)


def rebuilt(directory, task, config, compression, weights):
    """A run's model with random weights; first on the meta device, to see that it fits the weights file."""
    fp32 = [facts for facts in compression if not compress.final([facts])]  # int8 is not made on meta
    room = untrusted.LAYERS_ROOM if compress.changed(fp32) else untrusted.PLAIN_ROOM

    def build(techniques):
        return compress.rebuild(task.attach_head(untrained(task, config)), techniques)

    untrusted.check_shapes(
        directory, weights, untrusted.measured(directory, weights, lambda: build(fp32), room)
    )
    with torch.random.fork_rng():  # random weights must not move the caller's seed
        return build(compression)


@torch.inference_mode()
def try_out(model, tokenizer):
    """Let a model read two words, one unknown: files may fit each other and still compute nothing."""
    with untrusted.without_panic():
        ids = torch.tensor([tokenizer("fever \N{SNOWMAN}", truncation=True, max_length=8)["input_ids"]])
    model(input_ids=ids, attention_mask=torch.ones_like(ids))


def check_reading(directory, task, config, tokenizer, facts):
    """Raises BadInput if a run's model has another number of labels, or reads fewer tokens, than run.json."""
    if task.labels and config.num_labels != len(task.labels):
        raise BadInput(
            f"{directory}: a model of {config.num_labels} labels for {len(task.labels)} in run.json"
        )
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    if facts["arguments"]["max_length"] > min(positions, tokenizer.model_max_length):
        raise BadInput(f"{directory}: run.json has a max_length that the model does not read")


def sizes(directory):
    """Bytes of the weights file, parameters, nonzero parameters (scales of int8 weights not counted)."""
    path = weights_path(directory)
    tensors = {name: t for name, t in load_file(path).items() if not name.endswith(".weight_scale")}
    return {
        "bytes": path.stat().st_size,
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "nonzero": sum(int(tensor.count_nonzero()) for tensor in tensors.values()),
    }
