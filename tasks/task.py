"""What every task is. The defaults here are those of one label per note, read from a CSV; a task overrides what differs.

A task's way: load -> examples in splits -> encode -> rows of token ids -> (loop: forward, loss) -> read_out, a small NumPy
result per row -> combine, one prediction per example -> score. Predictions never hold text, nor logits over a vocabulary.
"""

from argparse import Namespace
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

import metrics
from cli import BadInput, keyword
from data import SPLITS, Note, digest, encode, fold_duplicates, sampled, split_by_subject

COLUMNS = {
    "--text-columns": dict(default=None, help="column of the note, or several to join, comma-separated, in any case (the task's usual)",
                           also=("--text-column",)),
    "--subject-column": dict(default=None, help="column of the patient (SUBJECT_ID if there; else each note stands alone)"),
    "--row-column": dict(default=None, help="column of the row id (the task's usual if there; else rows are numbered from 1)"),
}  # fmt: skip
LABEL_COLUMN = {
    "--label-column": dict(default="label", also=("--label-columns",), help="column of the label; trials: or several 0/1 columns, a,b (label)"),
}  # fmt: skip
CLASS_WEIGHTS = {"--class-weights": dict(action="store_true", help="weight the loss by inverse class frequency")}


class Task:
    """Reads examples, labels and splits them, gives the loss and the scores. OPTIONS are its flags, and its keywords."""

    name, unit = None, "notes"
    auto_class = AutoModelForSequenceClassification
    OPTIONS = {}
    length_flag = "max_length"  # the argument that says how many tokens a row has
    overall, per_label = metrics.OVERALL, metrics.PER_LABEL  # columns of the score files
    overall_csv, per_label_csv, label_column = "{}_metrics.csv", "per_label_{}_metrics.csv", "Label"
    headline = {"Accuracy": "accuracy", "F1": "macro-F1", "AUROC": "AUROC"}  # scores to print and report, and their names there
    selection, lower_is_better = "F1", False  # the validation score by which the best epoch is chosen
    folds = True  # whether texts that are the same to the letter are one example
    resampled = None  # what the bootstrap draws, if not examples
    reads_first = True  # whether the head reads the first token alone, so that the last layer need not answer for the others
    redraws = False  # whether fresh() changes the rows from epoch to epoch
    json_lines = False  # predict.py writes answers as JSON lines, not as rows of a CSV
    usual_text, usual_row, usual_subject = (("TEXT",),), ("ROW_ID",), ("SUBJECT_ID",)
    published = None  # a line on the reference's figures, for the report
    demo_files = ()  # names of the files that write_demonstration makes; the first is what a run reads as --data

    @classmethod
    def write_demonstration(cls, directory, rows):
        """Write demo_files, synthetic data of about so many rows. Returns their texts, for the tiny model's vocabulary."""
        raise NotImplementedError

    def __init__(self, **options):
        defaults = {keyword(flag): words.get("default", False) for flag, words in self.OPTIONS.items()}
        if unknown := options.keys() - defaults:
            raise TypeError(f"{self.name} has no option {', '.join(unknown)}")
        self.options = Namespace(**{**defaults, **options})
        self.labels, self.weights, self.by_subject = [], None, False

    # --- rows of a file -> examples in splits

    def columns(self, table):
        """(indices of the text columns, index of the row id, of the subject); the last two may be None."""
        chosen, names = self.options, {column.strip().casefold() for column in table.columns}
        usual = next((group for group in self.usual_text if all(n.casefold() in names for n in group)), self.usual_text[0])
        text = [name.strip() for name in chosen.text_columns.split(",")] if chosen.text_columns else usual
        found = [[table.column(name, "--text-columns") for name in text]]
        for name, flag, usual in (
            (chosen.row_column, "--row-column", self.usual_row),
            (chosen.subject_column, "--subject-column", self.usual_subject),
        ):
            usual = next((n for n in usual if n.casefold() in names), None)
            found.append(table.column(name or usual, flag) if name or usual else None)
        return tuple(found)

    def rows(self, table, counts, keep=lambda row_id: True):
        """Yield (line, row id, subject or '', text, cells) of the rows that are kept and have text; the others are counted."""
        text_at, row_at, subject_at = self.columns(table)
        self.by_subject = subject_at is not None
        before = counts["rows"]
        for line, row in table:
            counts["rows"] += 1
            row_id = row[row_at] if row_at is not None else str(counts["rows"] - before)
            text = "\n".join(row[at] for at in text_at if row[at].strip())
            if not keep(row_id):
                counts["not sampled"] += 1
            elif not text:
                counts["without text"] += 1
            else:
                yield line, row_id, row[subject_at].strip() if subject_at is not None else "", text, row
        if counts["rows"] == before:
            raise BadInput(f"{table.path}: a header and no rows")

    def read(self, path, keep, counts):
        """The labelled examples of a file whose row id keep() takes; what is left out is counted."""
        raise NotImplementedError

    def prepare_text(self, text):
        """What the model sees of a text; the same in training and in predict.py."""
        return text

    def example(self, row_id, text):
        """An unlabelled example, for predict.py."""
        return Note(row_id, "", self.prepare_text(text))

    def fold(self, examples, counts):
        """Fold what is the same to the letter in one file, so that no text stands on two sides of the split."""
        examples, folded = fold_duplicates(examples)
        counts["exact duplicates"] += folded
        return examples

    def settle_labels(self, examples, counts, path, seed):
        """Find self.labels among the examples and set each one's label index. Returns the examples that have one."""
        return examples

    def strata(self, example):
        """The labels that the split keeps in proportion, a tuple."""
        return (example.label,)

    def tally(self, examples):
        """{label: how many of the examples have it}."""
        return {name: sum(e.label == i for e in examples) for i, name in enumerate(self.labels)}

    def check(self, files, per_split):
        """Raises BadInput if a split lacks what is needed to learn and to score; files {split: path}, per_split {split: tally}."""

    def load(self, path, fraction, validation, test, seed):
        """Read, fold, label and split. validation, test: a share of the file, or a file of its own.

        Returns ({split: [example]}, facts to print and to store).
        """
        counts = Counter({"rows": 0})
        given = {split: file for split, file in (("test", test), ("validation", validation)) if isinstance(file, str)}
        home, examples = {}, []
        for split, file in {**given, "train": path}.items():
            mine = self.fold(self.read(file, lambda row_id: sampled(row_id, fraction, seed), counts), counts)
            home.update((id(example), split) for example in mine)
            examples += mine
        if given and self.folds:  # the first is kept, which is that of the test file
            examples, counts["also in the test or validation file, left out"] = fold_duplicates(examples)
        examples = self.settle_labels(examples, counts, path, seed)
        shares = {split: share for split, share in (("validation", validation), ("test", test)) if split not in given}
        mine = {split: [e for e in examples if home[id(e)] == split] for split in ("train", *given)}
        dealt = split_by_subject(mine.pop("train"), {"train": 1 - sum(shares.values()), **shares}, seed, self.strata)
        splits = {split: {**mine, **dealt}[split] for split in SPLITS}
        files = {split: given.get(split, path) for split in SPLITS}
        for split, members in splits.items():
            if not members:
                left_out = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
                raise BadInput(f"{files[split]}: {len(examples)} usable {self.unit} ({left_out}), none left for {split}; give more")
        per_split = {split: self.tally(members) for split, members in splits.items()}
        self.check(files, per_split)
        for name in self.labels:
            if not per_split["train"].get(name, 1):
                print(f"warning: label {name!r} does not occur in train, so it cannot be learnt")
        if getattr(self.options, "class_weights", False):
            sizes = torch.tensor([max(1, per_split["train"][name]) for name in self.labels], dtype=torch.float)
            self.weights = sizes.sum() / (len(sizes) * sizes)
        subjects = {split: {example.subject for example in members} for split, members in splits.items()}
        texts = {split: {digest(example.text) for example in members} for split, members in splits.items() if given}
        for what, sets in {"subjects": subjects if self.by_subject else {}, "texts": texts}.items():
            if sets and (shared := len(sets["train"] & (sets["validation"] | sets["test"]))):
                print(f"warning: {shared} {what} of train stand in validation or test, too; scores may be too good")
        return splits, {
            "rows": dict(counts), "unit": self.unit, "notes": len(examples),
            "subjects": len(set.union(*subjects.values())) if self.by_subject else None,
            "sizes": {split: len(members) for split, members in splits.items()}, "splits": per_split,
        }  # fmt: skip

    # --- examples -> tensors -> predictions

    def attach_head(self, model):
        """Add what the task's head has beyond the transformers class; before any technique, and before loading."""
        return model

    def head(self):
        """What must be the same for one run's head to serve another's; a model class and its labels by default."""
        return [self.auto_class.__name__, *self.labels]

    def encode(self, examples, tokenizer, max_length, progress=True):
        """Encoded rows of the examples, with labels if they have them."""
        encoded = encode([example.text for example in examples], tokenizer, max_length, progress)
        encoded.labels = self.targets(examples)
        return encoded

    def targets(self, examples):
        """Labels of examples as an array (N,), or None if they have none."""
        return None if any(e.label is None for e in examples) else np.array([e.label for e in examples], np.int64)

    def fresh(self, encoded, seed):
        """The rows as the next epoch sees them; a task that draws anew each epoch does so here."""
        return encoded

    def forward(self, model, batch, **keywords):
        """The model's outputs for a batch, logits among them."""
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **keywords)

    def loss(self, model, batch, outputs):
        """Cross-entropy, class-weighted if asked for: logits (B, C), labels (B,) -> scalar."""
        return F.cross_entropy(outputs.logits, batch["labels"], weight=None if self.weights is None else self.weights.to(outputs.logits))

    def categorical(self, logits, batch):
        """The logits as rows that each go through a softmax, (M, C), for distillation."""
        return logits

    def read_out(self, model, batch, outputs):
        """One NumPy result for each row of a batch: here the probabilities, (C,) each."""
        return outputs.logits.float().softmax(-1).cpu().numpy()

    def combine(self, examples, encoded, results):
        """The rows' results -> one prediction per example; here they are the same."""
        return results

    @classmethod
    def can_fit_head(cls, options):
        """Whether fit_head alone, without epochs, makes a model of the task with these options."""
        return False

    def fit_head(self, model, examples, encoded, pad_id):
        """After training: fit in place what the loop does not learn. Returns JSON facts of it."""
        return {}

    def better(self, scores, best):
        """Whether a validation's scores beat the best so far (None = there is none)."""
        sign = -1 if self.lower_is_better else 1
        return best is None or sign * scores[self.selection] > sign * best[self.selection]

    def calibrate(self, examples, predictions):
        """Choose what is chosen on validation after training, such as thresholds."""

    # --- predictions -> scores and files

    def score(self, examples, predictions, intervals=False):
        """metrics.Scores of predictions; with bootstrap intervals if asked for."""
        labels = np.array([example.label for example in examples])
        return metrics.single_label(labels, np.stack(predictions), self.labels, intervals)

    def table(self, scores):
        """Scores as a text table to print after the test, or None."""

    def header(self):
        """Columns of a prediction after row_id (and label); None = no predictions.csv."""
        return ["predicted", *(f"p_{label}" for label in self.labels)]

    def record(self, prediction):
        """A prediction as the cells of header()."""
        return [self.labels[int(prediction.argmax())], *(f"{p:.6f}" for p in prediction)]

    def answer(self, example, prediction):
        """A prediction as JSON, for one note from standard input."""
        probabilities = {label: round(float(p), 6) for label, p in zip(self.labels, prediction)}
        return {"predicted": self.labels[int(prediction.argmax())], "probabilities": probabilities}

    def truth(self, example):
        """The example's label as predictions.csv shows it."""
        return self.labels[example.label]

    def describe(self):
        """JSON facts from which from_facts makes the same task again."""
        return {"task": self.name, "labels": self.labels, "options": vars(self.options)}

    @classmethod
    def from_facts(cls, facts):
        """The task that describe() told of."""
        task = cls(**facts["options"])
        task.labels = facts["labels"]
        return task
