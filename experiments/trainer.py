"""train.py's validation scores beside the Hugging Face Trainer's.

python -m experiments.trainer SWEEP [OUT.csv]

SWEEP is a results directory that holds seed1/base, seed2/base and so on, as sweep.py makes them. For each
seed the Trainer trains the same model on the same notes, with the same batch size, epochs, peak rate,
warm-up, cosine, weight decay, clipping, precision and dropout, and notes of similar length together. Both are
scored on the validation notes after the last epoch, by the same code. Test notes are not read.

What differs: the order of the batches, the numbers that dropout draws, and that only train.py leaves alone
the embedding rows that are not in the batch.
"""

import statistics
import sys
import tempfile
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from cli import BadInput, run_script
from data import collate
from files import write_csv
from layers import set_attention_dropout
from run import checkpoint
from run.inference import Notes, evaluate
from run.untrusted import LOADED, read_run
from tasks import TASKS

SCORES = "Accuracy", "F1", "AUROC", "Loss"


def settings_of(args, bf16, directory):
    """The Trainer's settings that are train.py's."""
    from transformers import TrainingArguments

    return TrainingArguments(
        directory, per_device_train_batch_size=args.batch_size, num_train_epochs=args.epochs,
        learning_rate=args.lr, lr_scheduler_type="cosine", warmup_steps=args.warmup, max_grad_norm=args.clip,
        weight_decay=args.weight_decay, bf16=bf16, seed=args.seed, train_sampling_strategy="group_by_length",
        save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=not sys.stderr.isatty(),
        use_cpu=True, remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip


def train_with_trainer(run):
    """{score: value} on the validation notes, after the Trainer's last epoch. run: run.json of train.py's."""
    from transformers import Trainer, trainer_utils

    args = SimpleNamespace(**run["arguments"])
    task = TASKS[args.task](**run["task"]["options"])
    with redirect_stdout(StringIO()):
        examples, _ = task.load(args.data, args.fraction, args.validation, args.test, args.split_seed)
        torch.manual_seed(args.seed)
        model, tokenizer, _ = checkpoint.from_pretrained(args.model, task)
    notes = Notes.read(task, examples, tokenizer, args.max_length, "none")
    set_attention_dropout(model, args.attention_dropout)

    encoded, bf16 = notes.rows["train"], run["precision"] == "bfloat16"
    rows = [{"rows": np.array([i]), "input_ids": range(n)} for i, n in enumerate(encoded.lengths)]

    def gather(group):
        batch = collate(encoded, np.concatenate([row["rows"] for row in group]), notes.pad_id)
        return {name: batch[name] for name in batch if name != "rows"}

    trainer_utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as directory, redirect_stdout(StringIO()):
        settings = settings_of(args, bf16, directory)
        Trainer(model, settings, train_dataset=rows, data_collator=gather).train()
    scores, _ = evaluate(model.eval(), notes, "validation", getattr(torch, run["precision"]))
    return scores.overall


def base_runs(sweep):
    """[run.json] of each seed's base. Raises BadInput if there is none."""
    paths = sorted(Path(sweep).glob("seed*/base"), key=lambda path: (len(path.parent.name), path))
    paths = [path for path in paths if checkpoint.is_finished(path)]
    if not paths:
        raise BadInput(f"{sweep}: holds no seed1/base and so on; sweep.py makes them")
    runs = [read_run(path, *LOADED, "history", "precision") for path in paths]
    if any(run["arguments"].get("class_weights") or run["arguments"]["accumulate"] > 1 for run in runs):
        raise BadInput(
            f"{sweep}: trained with --class-weights or --accumulate, which the Trainer is not given"
        )
    return runs


def main(argv=None):
    """Train, print the table, and write it if a file is named."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) not in (1, 2):
        raise BadInput("usage: python -m experiments.trainer SWEEP [OUT.csv]")
    if not find_spec("accelerate"):
        raise BadInput("accelerate is not installed; pip install -r requirements-peers.lock")
    table = []
    for run in base_runs(words[0]):
        ours, theirs = run["history"][-1], train_with_trainer(run)
        for name, scores in (("train.py", ours), ("Trainer", theirs)):
            table.append([name, run["arguments"]["seed"], *(round(scores[score], 4) for score in SCORES)])
            print(", ".join(map(str, table[-1])), flush=True)
    for name in ("train.py", "Trainer"):
        means = [statistics.mean(row[at] for row in table if row[0] == name) for at in range(2, 6)]
        table.append([name, "mean", *(round(mean, 4) for mean in means)])
        print(", ".join(map(str, table[-1])))
    if len(words) == 2:
        write_csv(words[1], ("training", "seed", *SCORES), table)


if __name__ == "__main__":
    run_script(main)
