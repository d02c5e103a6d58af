"""Training throughput beside the Hugging Face Trainer: same model, notes and batch, one epoch, medians.

Notes are drawn once and tokenised beforehand; loading is not timed. The Trainer neither validates nor
saves; train.py validates one note and saves its progress.

Trainer, fp32     every note padded to --max-length, as many scripts do; padded to the longest note of the
                  batch in random order, its default; notes of similar length together
train.py, fp32    with the Trainer's dropout of attention probabilities, 0.1
both              as train.py comes: bf16 on a CPU that multiplies it, no dropout of attention probabilities

Only train.py has these, in both its rows: the last layer answers for [CLS] alone, and on a CPU the optimizer
updates only the embedding rows in the batch (lazy Adam). In bf16 its attention is made of bf16 products too.
"""

import functools
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

import train
from bench.shape import alternating, matrix_rate, multiply_adds
from cli import BadInput
from compress.technique import Technique
from data import Encoded, collate
from fast import cpu, precision
from layers import set_attention_dropout
from run import arguments, checkpoint
from run.inference import Notes
from run.progress import ProgressFile
from run.schedule import Schedule
from tasks import TASKS, demo


class Workload(NamedTuple):
    """What every contender trains on: train.py's arguments, the task, a model, token ids."""

    args: SimpleNamespace
    fresh: Any  # fresh(attention_dropout) -> the model before training
    notes: Notes


def load_workload(words, tokens):
    """The Workload of train.py's arguments, with about `tokens` tokens of training notes, drawn at random."""
    args = arguments.parse_arguments(words)
    task = TASKS[args.task](**arguments.options_of(TASKS[args.task], args))
    with tempfile.TemporaryDirectory() as directory:
        path, source = args.data, args.model
        if "demo" in (path, source):
            notes, model = demo.make(directory, args.task)
            path, source = (notes if path == "demo" else path), (model if source == "demo" else source)
        splits, _ = task.load(str(path), args.fraction, args.validation, args.test, args.split_seed)
        model, tokenizer, _ = checkpoint.from_pretrained(source, task)

    order = np.random.default_rng(0).permutation(len(splits["train"]))[
        :tokens
    ]  # a note has one token at least
    drawn = [splits["train"][i] for i in order]
    lengths = task.encode(drawn, tokenizer, args.max_length).lengths
    count = max(args.batch_size, int(np.searchsorted(lengths.cumsum(), tokens)))
    splits = {"train": drawn[:count], "validation": splits["validation"][:1], "test": splits["test"][:1]}
    notes = Notes.read(task, splits, tokenizer, args.max_length, "none")

    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fresh = functools.partial(fresh_model, task, model.config, state)
    return Workload(args, fresh, notes)


def fresh_model(task, config, state, attention_dropout):
    """A model of a task with the given weights, set to a dropout of attention probabilities."""
    torch.manual_seed(0)
    model = task.attach_head(checkpoint.untrained(task, config))
    model.load_state_dict(state)
    set_attention_dropout(model, attention_dropout)
    return model


def train_py_seconds(work, attention_dropout, precision_flag, technique=None):
    """Seconds of one epoch of train.train, including its validation of one note and its save."""
    technique = technique or Technique()
    technique.task = work.notes.task
    model = technique.prepare(work.fresh(attention_dropout))
    changes = {"precision": precision_flag, "epochs": 1, "eval_steps": 0, "accumulate": 1, "patience": 0}
    args = SimpleNamespace(**{**vars(work.args), **changes})
    schedule = Schedule.of(args, len(work.notes.rows["train"].lengths), 1e-5)
    with tempfile.TemporaryDirectory() as directory, redirect_stdout(StringIO()):
        progress_file = ProgressFile(Path(directory) / "p.safetensors", args.save_minutes)
        began = time.perf_counter()
        train.train(model, technique, work.notes, schedule, torch.device("cpu"), progress_file)
        return time.perf_counter() - began


def trainer_seconds(work, encoded, attention_dropout, bf16, order="random", pad_to=None):
    """Seconds of one epoch of the Hugging Face Trainer. order: its sampling; pad_to: tokens of every note."""
    from transformers import Trainer, TrainingArguments, trainer_utils

    args = work.args
    # the sampler asks for the length of input_ids, and for nothing in them
    rows = [{"rows": np.array([i]), "input_ids": range(n)} for i, n in enumerate(encoded.lengths)]
    gather = functools.partial(padded_batch, encoded, work.notes.pad_id, pad_to)
    with tempfile.TemporaryDirectory() as directory, redirect_stdout(StringIO()):
        settings = TrainingArguments(
            directory, per_device_train_batch_size=args.batch_size, num_train_epochs=1,
            learning_rate=1e-5, max_grad_norm=args.clip, weight_decay=args.weight_decay,
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
            bf16=bf16, remove_unused_columns=False, dataloader_pin_memory=False, seed=0,
            train_sampling_strategy=order,
        )  # fmt: skip
        trainer_utils.logging.set_verbosity_error()
        trainer = Trainer(work.fresh(attention_dropout), settings, train_dataset=rows, data_collator=gather)
        began = time.perf_counter()
        trainer.train()
        return time.perf_counter() - began


def padded_batch(encoded, pad_id, pad_to, group):
    """The batch of a group of rows, padded to the longest of them, or all to `pad_to` tokens."""
    batch = collate(encoded, np.concatenate([each["rows"] for each in group]), pad_id)
    del batch["rows"]
    if pad_to and (lack := pad_to - batch["input_ids"].shape[1]):
        for name, filler in (("input_ids", pad_id), ("attention_mask", 0)):
            batch[name] = torch.nn.functional.pad(batch[name], (0, lack), value=filler)
    return batch


def epochs_to_time(work, padded):
    """{row: (function that trains one epoch and returns its seconds, the Encoded notes it trains on)}."""
    args, whole = work.args, work.notes.rows["train"]
    count = padded * args.batch_size
    few = Encoded(whole.ids, whole.starts[: count + 1], whole.owner[:count], whole.labels[:count])
    bf16 = precision.training_precision(args.precision, torch.device("cpu")) == torch.bfloat16
    dropout = args.attention_dropout
    how = f"{'bf16' if bf16 else 'fp32'}, attention dropout {dropout:g}"

    def trainer(notes, *settings):
        return functools.partial(trainer_seconds, work, notes, *settings), notes

    def train_py(*settings):
        return functools.partial(train_py_seconds, work, *settings), whole

    return {
        f"Trainer, padded to {args.max_length} tokens": trainer(few, 0.1, False, "random", args.max_length),
        "Trainer, its default padding": trainer(whole, 0.1, False),
        "Trainer, grouped by length": trainer(whole, 0.1, False, "group_by_length"),
        "train.py, fp32, attention dropout 0.1": train_py(0.1, "fp32"),
        f"Trainer, grouped, {how}": trainer(whole, dropout, bf16, "group_by_length"),
        f"train.py as it comes, {how}": train_py(dropout, args.precision),
    }


def require_accelerate():
    """Raises BadInput if accelerate is not installed; the Hugging Face Trainer needs it."""
    if not find_spec("accelerate"):
        need = "accelerate is not installed, and the Hugging Face Trainer needs it"
        raise BadInput(f"{need}; pip install -r requirements-peers.lock")


def training_rows(words, tokens=40_000, padded=4, rounds=3):
    """Rows of the comparison, a dict each. padded: batches of the row that pads all notes to one length."""
    require_accelerate()
    cpu.keep_memory()
    work = load_workload(words, tokens)
    encoded = work.notes.rows["train"]
    if encoded.labels is None:
        raise BadInput(f"--training: compares tasks with one label per row, not {work.args.task}")

    epochs = epochs_to_time(work, padded)
    epochs["Trainer, its default padding"][0]()  # what only a first call costs, such as imports
    times = {name: [] for name in epochs}
    for name in alternating(epochs, rounds, "training"):
        times[name].append(epochs[name][0]())

    peak, length = matrix_rate(), round(float(encoded.lengths.mean()))
    per_token = multiply_adds(work.fresh(0.0).eval(), length) / length
    table = []
    for name, (_, notes) in epochs.items():
        count, total, took = len(notes.lengths), int(notes.lengths.sum()), statistics.median(times[name])
        share = 3 * per_token * total / took / peak  # forward, and twice as much backward
        row = {"row": name, "notes": count, "tokens_per_note": total / count, "notes_per_s": count / took}
        row |= {"tokens_per_s": total / took, "peak_share": share}
        table.append({**row, "rounds": rounds, "batch": work.args.batch_size})
    return table


def training_table(rows):
    """(header, cells): throughput, and how many times that of each of the Trainer's rows."""
    peers = [(row["row"], row["notes_per_s"]) for row in rows if row["row"].startswith("Trainer")]
    shape = f"{rows[-1]['tokens_per_note']:.0f} tokens per note, batch {rows[-1]['batch']}"
    header = [f"training, {shape}", "notes", "notes/s", "tokens/s", "of fp32 peak, real tokens"]
    header += [f"x {name.removeprefix('Trainer, ')}" for name, _ in peers]
    cells = [
        [
            row["row"],
            str(row["notes"]),
            f"{row['notes_per_s']:.1f}",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['peak_share']:.2f}",
            *(f"{row['notes_per_s'] / other:.2f}" for _, other in peers),
        ]
        for row in rows
    ]
    return header, cells
