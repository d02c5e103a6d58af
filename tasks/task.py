"""What every task is. Its defaults are those of one label per note, from a CSV; a task overrides the rest.

A note's way: load -> examples in splits -> encode -> rows of token ids -> (loop: forward, loss) -> read_out,
a small NumPy result per row -> combine, one prediction per example -> score. Predictions never hold text, nor
logits over a vocabulary.
"""

from argparse import Namespace
from collections import Counter
from functools import partial
from itertools import groupby
from operator import attrgetter

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification

import metrics
import stats
from cli import BadInput, keyword, number
from data import (
    MAX_ROW_MB,
    SPLITS,
    Note,
    Table,
    budget_batches,
    collate,
    collector_paused,
    encode,
    fold_duplicates,
    key_of,
    repeated,
    sampled,
    split_by_subject,
    split_fold,
    text_key,
)
from parts import parts_of, read_parts
from tables import open_table
from tasks.groups import refuse_strange_groups

MAX_TEXT = 10**8  # characters of notes in memory; the texts of further ones are read again for their ids

COLUMNS = {
    "--text-columns": {
        "default": None,
        "also": ("--text-column",),
        "help": "column of the note, or several to join, comma-separated, in any case (the task's usual one)",
    },
    "--subject-column": {
        "default": None,
        "help": "column of the patient (SUBJECT_ID if there is one; else every note is its own subject)",
    },
    "--row-column": {
        "default": None,
        "help": "column of the row id (ROW_ID if there is one; else rows are numbered from 1)",
    },
    "--max-row-mb": {
        "type": number(int, 1, 2000),
        "default": MAX_ROW_MB,
        "help": f"millions of characters that a row may have; a longer one is refused ({MAX_ROW_MB})",
    },
}
SUBGROUPS = {
    "--subgroups": {
        "default": None,
        "help": "columns, comma-separated; the test scores of each of their values are given too (none)",
    }
}
LABEL_COLUMN = {
    "--label-column": {
        "default": "label",
        "also": ("--label-columns",),
        "help": "column of the label; for trials also several 0/1 columns, comma-separated (label)",
    }
}
CLASS_WEIGHTS = {
    "--class-weights": {"action": "store_true", "help": "weight the loss by inverse class frequency (off)"}
}


def listed(names, most=30):
    """'a, b, c': at most so many names, and how many more there are."""
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def refuse_empty(splits, files, unit, counts):
    """Raises BadInput for a split without examples. counts: what was read and left out."""
    for split, members in splits.items():
        if not members:
            usable = sum(len(splits[other]) for other in splits if files[other] == files[split])
            seen = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
            more = f"in all files: {seen}" if len(set(files.values())) > 1 else seen
            raise BadInput(
                f"{files[split]}: {usable} usable {unit} ({more}), none left for {split}; give more"
            )


def values_in(splits, value):
    """{split: set of value(example)}."""
    return {split: {value(example) for example in members} for split, members in splits.items()}


def warn_of_leaks(**found):
    """One line for each kind of thing, {split: set of them}, that train shares with validation or test."""
    for what, sets in found.items():
        shared = len(sets["train"] & (sets["validation"] | sets["test"])) if sets else 0
        if shared:
            print(f"warning: {shared} {what} of train are in validation or test too; scores may be too good")


class Task:
    """Reads, labels and splits examples; gives loss and scores. OPTIONS are its flags and its keywords."""

    name, unit = None, "notes"
    purpose = "Gives a text one of the labels below."  # the model card's first line
    auto_class = AutoModelForSequenceClassification
    OPTIONS = {}
    usual_text, usual_row, usual_subject = (
        (("TEXT",),),
        ("ROW_ID",),
        ("SUBJECT_ID",),
    )  # columns, the first found
    folds = True  # whether examples with exactly the same text are one example
    reads_rows = False  # whether every note comes from one row, whatever the other rows are
    unites = False  # whether they are one in a test file of its own, too; else that is scored row for row
    fewest_labels = 2  # how many labels must occur in train
    length_flag = "max_length"  # the argument that says how many tokens a row has
    reads_first = True  # whether the head reads the first token alone: the last layer may skip the others
    plain_logits = True  # whether forward() gives the logits of whole notes or of all their tokens
    redraws = False  # whether fresh() changes the rows from epoch to epoch

    overall, per_label = metrics.OVERALL, metrics.PER_LABEL  # columns of the score files
    overall_csv, per_label_csv, label_column = "{}_metrics.csv", "per_label_{}_metrics.csv", "Label"
    headline = {
        "Accuracy": "accuracy",
        "F1": "macro-F1",
        "AUROC": "AUROC",
    }  # scores to print, with their wording
    group_score = "Accuracy"  # the score that is shown for groups of test examples
    selection, lower_is_better = "F1", False  # the validation score that chooses the best epoch
    row_unit = None  # what a row of predictions.csv and of the timing is, if not an example
    unbounded = ()  # headline scores that are positive, but no shares
    json_lines = False  # whether predict.py writes JSON lines instead of a CSV
    pipeline_tag = "text-classification"  # the hub's name of the task
    published = None  # a line on the reference's figures, for the report
    as_published = False  # whether the paper's tables (reference/) can stand beside its scores
    techniques = ("base", "pruning", "lowrank", "distillation", "quantization")  # what run_all.sh trains
    baselines = ("majority", "tfidf")  # what baselines.py fits, names in run/baseline.py
    demo_files = ()  # what write_demonstration writes; the first is what a run reads as --data

    @classmethod
    def write_demonstration(cls, directory, rows):
        """Write demo_files, about `rows` rows. Returns their texts, for the tiny model's vocabulary."""
        raise NotImplementedError

    def __init__(self, **options):
        defaults = {keyword(flag): words.get("default", False) for flag, words in self.OPTIONS.items()}
        if unknown := options.keys() - defaults:
            raise TypeError(f"{self.name} has no option {', '.join(unknown)}")
        self.options = Namespace(**{**defaults, **options})
        self.labels, self.weights, self.by_subject = [], None, False
        self.temperature, self.calibrated = None, False  # once fitted; whether stated() applies it
        self.held, self.share = 0, 1  # characters of text in memory; the share of MAX_TEXT for them
        self.part = None  # the part of a file that is read, if not all

    # --- a note's way: rows of a file -> examples with a label -> splits

    def load(self, path, fraction, validation, test, seed):
        """Read, fold, label and split. validation, test: a share of `path`, or the path of a file of its own.

        test may also be [k, n]: the k-th of n folds of `path`. Returns ({split: [example]}, facts to print
        and store). Raises BadInput if nothing can be learnt or scored, or if a split dealt out of `path`
        lacks a label that the task needs. A file of its own may lack labels: they are named.
        """
        counts, given = Counter({"rows": 0}), {"test": test, "validation": validation}
        own = {split: file for split, file in given.items() if isinstance(file, str)}
        files = {split: own.get(split, path) for split in SPLITS}

        # CSV rows -> examples, exact duplicates folded within each file but the test's, and between files
        examples, home = self.read_files({**own, "train": path}, fraction, seed, counts)

        # label by the task, which may leave examples out
        examples = self.settle_labels(examples, counts, path, seed)
        examples = self.sample(examples, home, counts, seed)

        # split by subject what has no file of its own
        shares = {split: given[split] for split in ("validation", "test") if split not in own}
        splits = self.split(examples, home, shares, path, seed)

        # refuse or name what is missing, and name what is in two splits
        refuse_empty(splits, files, self.unit, counts)
        tallies = {split: self.tally(members) for split, members in splits.items()}
        self.check_splits(files, tallies, own)
        self.mark(splits["test"])
        refuse_strange_groups(splits["test"])
        subjects = values_in(splits, lambda example: example.subject) if self.by_subject else {}
        texts = values_in(splits, text_key) if own else {}
        warn_of_leaks(subjects=subjects, texts=texts)

        self.weights = self.class_weights(tallies["train"])
        return splits, {
            "rows": dict(counts),
            "unit": self.unit,
            "notes": len(examples),
            "subjects": len(set.union(*subjects.values())) if subjects else None,
            "sizes": {split: len(members) for split, members in splits.items()},
            "splits": tallies,
        }

    def read_files(self, files, fraction, seed, counts):
        """(examples of {split: file}, {id(example): split, if not train}); duplicates are folded and counted.

        Those of a test file of its own are counted and stay. A text that is in several files is kept in the
        first of them, so the test file must come first.
        """
        examples, home, taken = [], {}, set()
        for split, file in files.items():
            members = self.read_by_all(file, lambda row_id: sampled(row_id, fraction, seed), counts)
            if split == "test" and self.folds and not self.unites:
                counts["duplicates in the test file, kept"] += repeated(members)
            else:
                members = self.fold(members, counts)

            if len(files) > 1 and self.folds:
                keys = list(map(text_key, members))
                members = [m for m, key in zip(members, keys, strict=True) if key not in taken]
                counts["also in the test or validation file, left out"] += len(keys) - len(members)
                taken.update(keys)
            if split != "train":
                home.update((id(example), split) for example in members)
            examples += members
        return examples, home

    def read_to_score(self, path, counts):
        """(examples of a file, {label: rows} of labels that this finished task does not know).

        Row for row: nothing is folded or balanced. Rows of which no label is known are left out and counted.
        """
        examples = self.read_by_all(path, lambda row_id: True, counts)
        if self.unites:
            examples = self.fold(examples, counts)
        known, unknown = self.known_labels(examples)
        if left_out := len(examples) - len(known):
            counts["with a label that the run does not know"] += left_out
        return known, unknown

    def known_labels(self, examples):
        """(the examples that have a label of self.labels, now as indices; Counter of the other labels)."""
        return examples, Counter()

    def split(self, examples, home, shares, path, seed):
        """{split: [example]}. Those of `path` are dealt out by subject to train and to {split: share}.

        home {id(example): the split whose file it came from, if not train's}; they stay there. The share of
        test may be a fold [k, n].
        """
        splits = {split: [] for split in SPLITS}
        for example in examples:
            splits[home.get(id(example), "train")].append(example)
        if isinstance(fold := shares.get("test"), list | tuple):
            self.check_dealable(path, splits["train"], max(fold[1], 1 + len(shares)))
            return {
                **splits,
                **split_fold(splits["train"], fold, shares.get("validation"), seed, self.strata),
            }
        if shares:
            self.check_dealable(path, splits["train"], 1 + len(shares))
        shares = {"train": 1 - sum(shares.values()), **shares}
        return {**splits, **split_by_subject(splits["train"], shares, seed, self.strata)}

    def read(self, path, keep, counts):
        """The labelled examples of a file whose row id keep() takes; what is left out is counted."""
        raise NotImplementedError

    def read_by_all(self, path, keep, counts):
        """What read() gives; a large file with row ids is read by all cores, if no note needs two rows."""
        with collector_paused():
            parts = self._parts(path) if self.reads_rows else []
            found = read_parts(partial(self._read_part, path, keep, 1 / len(parts)), parts) if parts else None
            if found is None:
                return self.read(path, keep, counts)
            notes, rows = [], 0
            for (part_counts, held), part_notes in found:
                for note in part_notes if rows else ():
                    note.row += rows
                notes += part_notes
                rows += part_counts["rows"]
                counts.update(part_counts)
                self.held += held
            return notes

    def _parts(self, path):
        """The parts in which a file is read; [] = by one process. Rows without ids are numbered in order."""
        table = self.open_table(path, progress=False)
        return parts_of(table) if self.columns(table)[1] is not None else []

    def _read_part(self, path, keep, share, part):
        """((counts, characters of text), notes) of a part of a file, which may hold its share of MAX_TEXT."""
        counts, held, self.share, self.part = Counter(), self.held, share, part
        try:
            notes = self.read(path, keep, counts)
            return (counts, self.held - held), notes
        finally:
            self.held, self.share, self.part = held, 1, None

    def open_table(self, path, progress=True):
        """The table in a file, by the file's name, with the row length that was asked for."""
        if self.part:
            return Table(path, progress, self.options.max_row_mb, self.part)
        return open_table(path, progress, self.options.max_row_mb)

    def rows(self, table, counts, keep=lambda row_id: True):
        """Yield (place, row id, subject or '', text, cells) of the rows that are kept and have text.

        The other rows are counted. The place is the row's number in the table, from 1.
        """
        text_at, row_at, subject_at = self.columns(table)
        self.by_subject = subject_at is not None
        before = counts["rows"]
        for place, row in enumerate(table, 1):
            counts["rows"] = before + place
            row_id = row[row_at] if row_at is not None else str(place)
            if not keep(row_id):
                counts["not sampled"] += 1
                continue
            if len(text_at) == 1:
                text = row[text_at[0]]
            else:
                text = "\n".join(cell for at in text_at if (cell := row[at]) and not cell.isspace())
            if not text or text.isspace():
                counts["without text"] += 1
                continue
            subject = row[subject_at].strip() if subject_at is not None else ""
            yield place, row_id, subject, text, row
        if counts["rows"] == before:
            raise BadInput(f"{table.path}: a header and no rows")

    def columns(self, table):
        """(indices of the text columns, index of the row id, of the subject); the last two may be None."""
        chosen = self.options

        def has(names):
            return all(table.column(name, None, required=False) is not None for name in names)

        def one(name, flag, usual):
            name = name or next((name for name in usual if has([name])), None)
            return table.column(name, flag) if name else None

        groups = [chosen.text_columns.split(",")] if chosen.text_columns else self.usual_text
        group = next((names for names in groups if has(names)), groups[0])
        text_at = [table.column(name.strip(), "--text-columns") for name in group]
        row_at = one(chosen.row_column, "--row-column", self.usual_row)
        return text_at, row_at, one(chosen.subject_column, "--subject-column", self.usual_subject)

    def group_reader(self, table):
        """A function (cells) -> {column of --subgroups: value}, or None without any."""
        names = [name.strip() for name in (self.options.subgroups or "").split(",") if name.strip()]
        if not names:
            return lambda cells: None
        at = {name: table.column(name, "--subgroups") for name in names}
        if set(at.values()) & set(self.columns(table)[0]):
            raise BadInput("--subgroups: names a column of the text; name one of groups")
        shared = {}  # equal ones are one dict

        def read(cells):
            values = tuple(cells[i].strip() for i in at.values())
            return shared.setdefault(values, dict(zip(at, values, strict=True)))

        return read

    def note(self, table, place, row_id, subject, text, label, groups=None):
        """A labelled note of a row; it keeps its text while all that are kept fit into MAX_TEXT."""
        note = Note(row_id, subject or f"row {row_id}", text, label, groups=groups)
        self.held += len(text)
        if self.held > MAX_TEXT * self.share:
            note.text, note.key, note.path, note.row = None, key_of(text), table.path, place
        return note

    def unlabelled(self, path, counts):
        """The unlabelled examples of a file, an iterator; what is left out is counted. For predict.py."""
        table = self.open_table(path)
        return (self.example(row_id, text) for _, row_id, _, text, _ in self.rows(table, counts))

    def prepare_text(self, text):
        """What the model sees of a text; the same in training and in predict.py."""
        return text

    def example(self, row_id, text):
        """An unlabelled example, for predict.py."""
        return Note(row_id, "", self.prepare_text(text))

    def fold(self, examples, counts):
        """Fold examples of one file with exactly the same text, so that no text is in two splits."""
        examples, folded = fold_duplicates(examples)
        counts["exact duplicates"] += folded
        return examples

    def settle_labels(self, examples, counts, path, seed):
        """Find self.labels among the examples and set each one's label index. Returns those that have one."""
        return examples

    def sample(self, examples, home, counts, seed):
        """Leave labelled examples out, as a task is asked to; by default none.

        home {id(example): split} has those of a test or validation file of its own, which stay as they are.
        """
        return examples

    def strata(self, example):
        """The labels that the split keeps in proportion, a tuple."""
        return (example.label,)

    # --- what the splits must hold

    def tally(self, examples):
        """{label: how many of the examples have it}."""
        return {name: sum(e.label == i for e in examples) for i, name in enumerate(self.labels)}

    def check_dealable(self, path, examples, ways):
        """Raises BadInput if the examples of a file cannot be dealt out to so many splits."""

    def check_split(self, path, split, tally, dealt):
        """Raises BadInput if train, or a split dealt out of a file, lacks labels that the task insists on."""
        if sum(count > 0 for count in tally.values()) < self.fewest_labels:
            what = "no label" if self.fewest_labels == 1 else "fewer than two classes"
            raise BadInput(f"{path}: {split} has {what}; give more rows")

    def check_splits(self, files, tallies, own):
        """Refuse a split that lacks needed labels; name the labels that a split lacks otherwise, in one line.

        files {split: path}, tallies {split: tally}, own: the splits that are files of their own.
        """
        for split, tally in tallies.items():
            if split not in own:
                self.check_split(files[split], split, tally, dealt=len(own) < 2)

        for split, tally in tallies.items():
            if absent := [name for name, count in tally.items() if not count]:
                where = f"{split} file {files[split]}" if split in own else split
                kind = "warning" if split == "train" else "note"
                so = "they cannot be learnt" if split == "train" else "their scores stay empty"
                print(f"{kind}: {where} has no {self.unit} labelled {listed(absent)}; {so}")

    def class_weights(self, tally):
        """With --class-weights the weight of each label, inverse to its count in train, (C,); else None."""
        if not getattr(self.options, "class_weights", False):
            return None
        sizes = torch.tensor([max(1, tally[name]) for name in self.labels], dtype=torch.float)
        return sizes.sum() / (len(sizes) * sizes)

    # --- examples -> tensors -> predictions

    def attach_head(self, model):
        """Add what the head has beyond the transformers class; before any technique, and before loading."""
        return model

    def head(self):
        """What must be equal for one run's head to serve another's: by default model class and labels."""
        return [self.auto_class.__name__, *self.labels]

    @property
    def plain_head(self):
        """Whether plain transformers can rebuild the head; False if attach_head adds something to it."""
        return True

    def encode(self, examples, tokenizer, max_length, progress=True):
        """Encoded rows of the examples, with labels if they have them."""
        texts = self.shown(self.texts(examples), tokenizer)
        encoded = encode(texts, len(examples), tokenizer, max_length, progress)
        encoded.labels = self.targets(examples)
        return encoded

    def texts(self, examples):
        """Yield the examples' texts. Those that were not kept are read again; out of order, all at once."""
        gone = [example for example in examples if example.text is None]
        in_file = sorted(gone, key=attrgetter("row"))
        in_file.sort(key=attrgetter("path"))
        again = self._read_again(in_file)
        if in_file != gone:
            found = dict(zip(map(id, in_file), again, strict=True))
            again = (found[id(example)] for example in gone)
        for example in examples:
            yield next(again) if example.text is None else example.text

    def shown(self, texts, tokenizer):
        """The texts as the model reads them, in training and in predict.py; a task may hide words in them."""
        return texts

    def _read_again(self, examples):
        """Yield the texts of examples, which stand in the order of their rows."""
        for path, members in groupby(examples, attrgetter("path")):
            rows = self.rows(self.open_table(path, progress=False), Counter())
            for example in members:
                row = next((row for row in rows if row[0] == example.row), None)
                text = row and self.prepare_text(row[3])
                if row is None or key_of(text) != example.key:
                    raise BadInput(f"{path}: was changed while it was read; run the same command again")
                yield text

    marks = False  # whether mark() writes anything

    def mark(self, examples):
        """Write into the groups of test examples what the task tells apart itself, before they are scored."""

    def targets(self, examples):
        """Labels of examples as an array (N,), or None if they have none."""
        if any(example.label is None for example in examples):
            return None
        return np.array([example.label for example in examples], np.int64)

    def fresh(self, encoded, seed):
        """The rows as the next epoch sees them, for a task that draws them anew each epoch."""
        return encoded

    def forward(self, model, batch, **keywords):
        """The model's outputs for a batch, logits among them."""
        mask = None if "full" in batch else batch["attention_mask"]
        return model(input_ids=batch["input_ids"], attention_mask=mask, **keywords)

    def loss(self, model, batch, outputs):
        """Cross-entropy, class-weighted if asked for: logits (B, C), labels (B,) -> scalar."""
        weight = None if self.weights is None else self.weights.to(outputs.logits)
        return F.cross_entropy(outputs.logits, batch["labels"], weight=weight)

    def categorical(self, logits, batch):
        """The logits as rows (M, C), each of which goes through a softmax, for distillation."""
        return logits

    def read_out(self, model, batch, outputs):
        """One NumPy result for each row of a batch: here the probabilities, (C,) each."""
        return outputs.logits.float().softmax(-1).cpu().numpy()

    @torch.inference_mode()
    def cls_vectors(self, model, encoded, pad_id, tokens=4096):
        """The last layer's vector of the first token, [CLS], of every encoded row, (rows, H) float32."""
        model.eval()
        vectors = np.empty((len(encoded.lengths), model.config.hidden_size), np.float32)
        device = next(model.parameters()).device
        for rows in tqdm(
            budget_batches(encoded.lengths, tokens), desc="[CLS]", unit="batch", leave=False, disable=None
        ):
            batch = collate(encoded, rows, pad_id, device)
            hidden = model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"])[
                0
            ]  # (B, T, H)
            vectors[rows] = hidden[:, 0].float().cpu().numpy()
        return vectors

    def combine(self, examples, encoded, results):
        """The rows' results -> one prediction per example; here they are the same."""
        return results

    @classmethod
    def can_fit_head(cls, options):
        """Whether fit_head fits something with these options {keyword: value}; then no epochs are needed."""
        return False

    @property
    def fits_head(self):
        """Whether fit_head will fit something after training."""
        return self.can_fit_head(vars(self.options))

    def fit_head(self, model, examples, encoded, pad_id):
        """After training: fit in place what the loop does not learn. Returns facts of it for run.json."""
        return {}

    def better(self, scores, best):
        """Whether a validation's scores beat the best so far (None = there is none).

        The score of `selection` decides, and a defined one beats an undefined one. Where both are undefined,
        as AUROC is with one class only, the lower "Loss" decides; without one, the later validation wins.
        """
        if best is None:
            return True
        name, lower = self.selection, self.lower_is_better
        if scores.get(name) is None and best.get(name) is None:
            name, lower = "Loss", True
        ours, theirs = scores.get(name), best.get(name)
        if ours is None or theirs is None:
            return theirs is None
        return ours < theirs if lower else ours > theirs

    def calibrate(self, examples, predictions):
        """Choose what is chosen on validation after training: the temperature; a task may add to it."""
        if found := self.certainty(examples, predictions):
            self.temperature = metrics.fit_temperature(*found)

    # --- predictions -> scores and files

    separate = False  # whether each label is a question of its own, with a sigmoid, not one of the classes
    sure_of = "the likeliest class"  # of what the probability is that calibration is about

    def certainty(self, examples, predictions):
        """(truth, probabilities) as metrics.fit_temperature takes them; None if answers have no such form."""
        return np.array([example.label for example in examples]), np.stack(predictions)

    def calibration(self, examples, predictions):
        """metrics.calibration_scores of predictions; None for a task without."""
        found = self.certainty(examples, predictions)
        return found and metrics.calibration_scores(*found, self.temperature)

    def stated(self, probabilities):
        """Probabilities as predict.py shows them: with --calibrated, after temperature scaling."""
        if not self.calibrated:
            return probabilities
        return metrics.tempered(probabilities, self.temperature, self.separate)

    def score(self, examples, predictions):
        """metrics.Scores of predictions."""
        labels = np.array([example.label for example in examples])
        return metrics.single_label(labels, np.stack(predictions), self.labels)

    def final_scores(self, examples, predictions):
        """metrics.Scores with calibration and with 95% intervals, as those of reports: docs/evidence.md."""
        scores = self.score(examples, predictions)
        return scores._replace(
            intervals=self.intervals(scores.overall, examples, predictions),
            calibration=self.calibration(examples, predictions),
        )

    def intervals(self, overall, examples, predictions):
        """{score: (low, high)} of stats.intervals_of, from what predictions.csv has of the examples."""
        columns, stored = self.stored_columns(), [*self.stored(examples, predictions)]
        rows = [dict(zip(columns, cells, strict=True)) for *_, cells in stored]
        numbers = {}
        clusters = [numbers.setdefault(subject, len(numbers)) for _, subject, _ in stored]
        return stats.intervals_of(overall, self.rescored(rows)[1], clusters, self.unbounded)

    def limits(self):
        """Sentences for the model card: what the scores do not say."""
        return []

    def table(self, scores):
        """Scores as a text table to print after the test, or None."""

    def header(self):
        """Columns of a prediction after row_id (and label); None = examples have no answer of their own."""
        return ["predicted", *(f"p_{label}" for label in self.labels)]

    def record(self, prediction):
        """A prediction as the cells of header()."""
        return [self.labels[int(prediction.argmax())], *(f"{p:.6f}" for p in self.stated(prediction))]

    def from_probabilities(self, probabilities):
        """(N, C) -> predictions, as a model's are: for baselines."""
        return list(probabilities)

    def answer(self, example, prediction):
        """A prediction as JSON, for one note from standard input."""
        pairs = zip(self.labels, self.stated(prediction), strict=True)
        probabilities = {label: round(float(p), 6) for label, p in pairs}
        return {"predicted": self.labels[int(prediction.argmax())], "probabilities": probabilities}

    def truth(self, example):
        """The example's label as predictions.csv shows it."""
        return self.labels[example.label]

    # --- predictions.csv, and scores from it

    def stored_columns(self):
        """Columns of predictions.csv after row_id and cluster; None = no such file."""
        header = self.header()
        return header and ["label", *header]

    def stored(self, examples, predictions):
        """Yield (row id, subject, cells of stored_columns) of predictions.csv."""
        for example, prediction in zip(examples, predictions, strict=True):
            yield example.row_id, example.subject, [self.truth(example), *self.record(prediction)]

    def read_back(self, rows):
        """Rows of predictions.csv -> (truth, called, probabilities), (N, L) each, the first two bool."""
        names = np.array(self.labels)
        truth, called = (
            np.array([row[key] for row in rows])[:, None] == names for key in ("label", "predicted")
        )
        columns = [f"p_{label}" for label in self.labels]
        return truth, called, np.array([[float(row[column]) for column in columns] for row in rows])

    def certainty_of(self, rows):
        """certainty() of the rows of predictions.csv; None if they state no probabilities."""
        truth, _, probabilities = self.read_back(rows)
        return truth.argmax(1), probabilities

    def recalibrated(self, rows, temperatures):
        """{score: function of weights (R, N) -> (R,)} of calibration, plain and scaled, of predictions.csv.

        temperatures: of each row that of its run, or None. {} for a task whose rows state no probabilities.
        """
        if not (found := self.certainty_of(rows)):
            return {}
        truth, probabilities = found
        plain, scaled = metrics.weighted_calibration(truth, probabilities), {}
        if None not in temperatures:
            tempered = metrics.tempered(probabilities, np.array(temperatures)[:, None], truth.ndim == 2)
            scaled = metrics.weighted_calibration(truth, tempered)
        return {**plain, **{f"{name}_scaled": score for name, score in scaled.items()}}

    def rescored(self, rows):
        """(overall scores, {score: function of weights (R, N) -> (R,)}) of the rows of predictions.csv."""
        truth, called, probabilities = self.read_back(rows)
        scores = metrics.single_label(truth.argmax(1), probabilities, self.labels)
        return scores.overall, metrics.weighted_single_label(truth, called, probabilities)

    def describe(self):
        """JSON facts from which from_facts makes the same task again."""
        return {
            "task": self.name,
            "labels": self.labels,
            "options": vars(self.options),
            "temperature": self.temperature,
        }

    @classmethod
    def from_facts(cls, facts):
        """The task with the facts that describe() gave."""
        task = cls(**facts["options"])
        task.labels, task.temperature = facts["labels"], facts.get("temperature")  # older runs have none
        return task
