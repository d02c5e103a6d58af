"""Training throughput beside the Hugging Face Trainer: same model, same notes, same batch, one epoch, median of the rounds.

Notes are drawn once and tokenised beforehand; loading is not timed. The Trainer neither validates nor saves; train.py
validates one note and saves its progress. Three rows are the Trainer in fp32: every note padded to --max-length, as many
scripts do; padded to the batch's longest in random order, its default; and with notes of similar length together. train.py
is given with the same precision and dropout, and as it comes: on a CPU with bf16 products in bf16, and without dropout of
attention probabilities; so is the Trainer. What train.py has besides, in both its rows: the last layer answers for [CLS]
alone, and on a CPU rows of the embedding table that a batch does not meet are not stepped ("lazy" Adam); in its last row
also attention by bf16 products.
"""

import statistics
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

import train
from bench.shape import matrix_rate, multiply_adds
from cli import BadInput
from compress.technique import Technique
from data import SPLITS, Encoded, collate
from fast import cpu, precision
from run import arguments, checkpoint
from tasks import TASKS, demo


def load_notes(words, tokens):
    """(arguments, task, function making a fresh model, {split: Encoded}, validation, pad id) for train.py's arguments.

    Of the training notes as many, drawn at random, as make up `tokens` tokens.
    """
    args = arguments.parse(words)
    task = TASKS[args.task](**arguments.options_of(TASKS[args.task], args))
    with tempfile.TemporaryDirectory() as directory:
        path, source = args.data, args.model
        if "demo" in (args.data, args.model):
            made = demo.make(directory, args.task)
            path, source = (made[0] if args.data == "demo" else path), (made[1] if args.model == "demo" else source)
        splits, _ = task.load(str(path), args.fraction, args.validation, args.test, args.split_seed)
        model, tokenizer, _ = checkpoint.from_pretrained(source, task)
    order = np.random.default_rng(0).permutation(len(splits["train"]))[:tokens]  # each has a token at least
    drawn = [splits["train"][i] for i in order]
    lengths = task.encode(drawn, tokenizer, args.max_length).lengths
    count = max(args.batch_size, int(np.searchsorted(lengths.cumsum(), tokens)))
    splits = {"train": drawn[:count], "validation": splits["validation"][:1], "test": splits["test"][:1]}
    notes = {split: task.encode(splits[split], tokenizer, args.max_length) for split in SPLITS}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def fresh(attention_dropout):
        torch.manual_seed(0)
        again = task.attach_head(task.auto_class.from_config(model.config, dtype=torch.float32))
        again.load_state_dict(state)
        precision.set_attention_dropout(again, attention_dropout)
        return again

    return args, task, fresh, notes, splits["validation"], tokenizer.pad_token_id


def ours(args, task, model, notes, examples, pad_id, precision):
    """Seconds of train.train for one epoch: its validation of a single note and its save at the end included."""
    technique = Technique()
    technique.task = task
    call = SimpleNamespace(**{**vars(args), "precision": precision, "epochs": 1, "eval_steps": 0, "accumulate": 1, "patience": 0})
    with tempfile.TemporaryDirectory() as directory, redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single note has no F1
        began = time.perf_counter()
        train.train(model, technique, task, notes, examples, pad_id, call, 1e-5, torch.device("cpu"), Path(directory) / "p.safetensors")
        return time.perf_counter() - began


def trainer(args, model, encoded, pad_id, bf16, order):
    """Seconds of one epoch of the Hugging Face Trainer. order: its sampling strategy, or a number of tokens to pad all notes to."""
    width = order if isinstance(order, int) else None
    from transformers import Trainer, TrainingArguments, trainer_utils

    rows = [{"rows": np.array([i]), "input_ids": range(n)} for i, n in enumerate(encoded.lengths)]  # the sampler asks for their length

    def gather(group):
        batch = collate(encoded, np.concatenate([each["rows"] for each in group]), pad_id)
        del batch["rows"]
        if width and (lack := width - batch["input_ids"].shape[1]):
            for name, filler in (("input_ids", pad_id), ("attention_mask", 0)):
                batch[name] = torch.nn.functional.pad(batch[name], (0, lack), value=filler)
        return batch

    with tempfile.TemporaryDirectory() as directory:
        settings = TrainingArguments(
            directory, per_device_train_batch_size=args.batch_size, num_train_epochs=1, learning_rate=1e-5, max_grad_norm=args.clip,
            weight_decay=args.weight_decay, save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
            bf16=bf16, remove_unused_columns=False, dataloader_pin_memory=False, seed=0,
            train_sampling_strategy="random" if width else order,
        )  # fmt: skip
        trainer_utils.logging.set_verbosity_error()
        run = Trainer(model, settings, train_dataset=rows, data_collator=gather)
        with redirect_stdout(StringIO()):
            began = time.perf_counter()
            run.train()
            return time.perf_counter() - began


def run(words, tokens=40_000, padded=4, rounds=3):
    """Rows of the comparison, a dict each. padded: batches for the rows that pad all notes to one length, which are slow."""
    try:
        import accelerate  # noqa: F401  the Trainer needs it
    except ImportError:
        raise BadInput(
            "accelerate is not installed, and the Hugging Face Trainer needs it; pip install -r requirements-peers.txt"
        ) from None
    cpu.keep_memory()
    args, task, fresh, notes, examples, pad_id = load_notes(words, tokens)
    if notes["train"].labels is None:
        raise BadInput(f"--training: the comparison takes tasks of one label a row, not {args.task}")
    encoded = notes["train"]
    part = padded * args.batch_size
    few = Encoded(encoded.ids, encoded.starts[: part + 1], encoded.owner[:part], encoded.labels[:part])
    bf16 = precision.training_precision(args.precision, torch.device("cpu")) == torch.bfloat16
    dropout, how = args.attention_dropout, "bf16" if bf16 else "fp32"
    calls = {
        f"Trainer, padded to {args.max_length} tokens": (lambda: trainer(args, fresh(0.1), few, pad_id, False, args.max_length), few),
        "Trainer, its default padding": (lambda: trainer(args, fresh(0.1), encoded, pad_id, False, "random"), encoded),
        "Trainer, grouped by length": (lambda: trainer(args, fresh(0.1), encoded, pad_id, False, "group_by_length"), encoded),
        "train.py, fp32, attention dropout 0.1": (lambda: ours(args, task, fresh(0.1), notes, examples, pad_id, "fp32"), encoded),
        f"Trainer, grouped, {how}, attention dropout {dropout:g}": (
            lambda: trainer(args, fresh(dropout), encoded, pad_id, bf16, "group_by_length"), encoded),
        f"train.py as it comes, {how}, attention dropout {dropout:g}": (
            lambda: ours(args, task, fresh(dropout), notes, examples, pad_id, args.precision), encoded),
    }  # fmt: skip
    calls["Trainer, its default padding"][0]()  # what only a first call costs, such as imports
    times = {name: [] for name in calls}
    for turn in tqdm(range(rounds), desc="training", unit="round", leave=False, disable=None):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            times[name].append(calls[name][0]())
    peak = matrix_rate()
    length = round(float(encoded.lengths.mean()))
    per_token = multiply_adds(fresh(0.0).eval(), length) / length
    table = []
    for name, (_, rows) in calls.items():
        took, tokens = statistics.median(times[name]), int(rows.lengths.sum())
        table.append({
            "row": name, "notes": len(rows.lengths), "tokens_per_note": tokens / len(rows.lengths), "notes_per_s": len(rows.lengths) / took,
            "tokens_per_s": tokens / took, "peak_share": 3 * per_token * tokens / took / peak, "rounds": rounds, "batch": args.batch_size,
        })  # fmt: skip
    return table


def as_markdown(table):
    """Header and cells: throughput, and how many times that of each of the Trainer's rows."""
    peers = [(row["row"].removeprefix("Trainer, "), row["notes_per_s"]) for row in table if row["row"].startswith("Trainer")]
    header = [f"training, {table[-1]['tokens_per_note']:.0f} tokens a note, batch {table[-1]['batch']}", "notes", "notes/s", "tokens/s",
              "of fp32 peak, real tokens", *(f"x {name}" for name, _ in peers)]  # fmt: skip
    cells = [[row["row"], str(row["notes"]), f"{row['notes_per_s']:.1f}", f"{row['tokens_per_s']:,.0f}", f"{row['peak_share']:.2f}",
              *(f"{row['notes_per_s'] / other:.2f}" for _, other in peers)] for row in table]  # fmt: skip
    return header, cells
