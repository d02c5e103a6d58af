"""Baselines without a network, fitted on the same split and stored as runs are.

majority      the shares of the labels in train, the same answer for every note
rule          the rule that made the labels; where there is one it is right by construction
tfidf         TF-IDF of words, or of words and pairs of words, then logistic regression (scikit-learn)
dictionary    of each word its most frequent tag in train, for entities

Beside run.json and predictions.csv a directory holds the baseline itself, as JSON and safetensors: its bytes
are theirs. A vocabulary is words of notes, so those files are their owner's alone.
"""

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from cli import BadInput
from data import fingerprint
from files import locked, read_json, whole_directory, write_json, write_tensors, write_whole
from metrics import undefined_note
from run import checkpoint
from run.arguments import options_of, settings
from run.card import CardText, write_card
from run.machine import this_machine
from run.origin import Planned, refuse_other_settings
from run.results import print_data, spelled, write_predictions, write_score_files
from run.seen import KEYS, training_keys
from run.untrusted import LOADED, check_file, fitting, read_run, read_task
from tasks import TASKS

C_GRID = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)  # inverse strengths of the regression's penalty
NEVER = -30.0  # logit of a label that train does not have


class Majority:
    """The shares of the labels in train as the probabilities of every note."""

    def __init__(self, task, content):
        self.task, self.content = task, content

    @classmethod
    def fit(cls, task, examples):
        """The shares in examples["train"]."""
        targets = np.asarray(task.targets(examples["train"]))
        if targets.ndim == 1:
            targets = np.eye(len(task.labels))[targets]  # (N, C)
        return cls(task, {"shares": targets.mean(0).tolist()})

    def predict(self, examples):
        """A prediction per example, as the task's models make them."""
        return self.task.from_probabilities(np.tile(np.array(self.content["shares"]), (len(examples), 1)))

    @property
    def parameters(self):
        """How many numbers it holds."""
        return len(self.content["shares"])


class Rule(Majority):
    """The task's own rule; the commonest label where it finds none."""

    def predict(self, examples):
        """Probability 1 for the rule's label, or for each of its set."""
        commonest = int(np.argmax(self.content["shares"]))
        probabilities = np.zeros((len(examples), len(self.task.labels)))
        for row, text in zip(probabilities, self.task.texts(examples), strict=True):
            label = self.task.rule(text)
            row[commonest if label is None else list(label) if isinstance(label, tuple) else label] = 1
        return self.task.from_probabilities(probabilities)


class TfIdf:
    """TF-IDF of words, perhaps of pairs of words, then logistic regression; of label sets one per label."""

    def __init__(self, task, content, idf, weight, bias):
        self.task, self.content, self.weight, self.bias = task, content, weight, bias  # (C, F), (C,)
        self.vectorizer = vectoriser(content["ngrams"], vocabulary=content["vocabulary"])
        self.vectorizer.idf_ = idf  # (F,)

    @classmethod
    def fit(cls, task, examples):
        """Fitted on train; the penalty, and whether pairs are used, are chosen on validation."""
        targets, best = np.asarray(task.targets(examples["train"])), None
        for ngrams in (1, 2):
            vectorizer = vectoriser(ngrams, min_df=2)
            try:
                x = vectorizer.fit_transform(task.texts(examples["train"]))
            except ValueError:  # what is left has no words
                raise BadInput("tfidf: no word is in two training notes; give more notes") from None
            content = {"ngrams": ngrams, "vocabulary": vectorizer.get_feature_names_out().tolist()}
            for c in C_GRID:
                weight, bias = fit_regression(x, targets, len(task.labels), c, class_weight(task))
                found = cls(task, {**content, "C": c}, vectorizer.idf_, weight, bias)
                scores = task.score(examples["validation"], found.predict(examples["validation"])).overall
                if best is None or task.better(scores, best[0]):
                    best = scores, found
        chosen = best[1].content
        size, what = len(chosen["vocabulary"]), ("words", "words and pairs of words")[chosen["ngrams"] - 1]
        print(f"tfidf: C {chosen['C']:g}, {size:,} {what}")
        return best[1]

    def predict(self, examples):
        """A prediction per example, as the task's models make them."""
        x = self.vectorizer.transform(self.task.texts(examples))
        logits = torch.from_numpy(np.asarray(x @ self.weight.T) + self.bias)  # (N, C)
        sets = getattr(self.task, "sets", False)
        probabilities = logits.sigmoid() if sets else logits.softmax(-1)
        return self.task.from_probabilities(probabilities.numpy())

    @property
    def tensors(self):
        """What its safetensors file holds."""
        arrays = {"idf": self.vectorizer.idf_, "weight": self.weight, "bias": self.bias}
        return {name: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()}

    @property
    def parameters(self):
        """How many numbers it holds."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def vectoriser(ngrams, **words):
    """scikit-learn's TfidfVectorizer of n-grams of up to so many words."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # half a second, and few scripts need it

    return TfidfVectorizer(ngram_range=(1, ngrams), sublinear_tf=True, dtype=np.float32, **words)


def class_weight(task):
    """What --class-weights is called in scikit-learn."""
    return "balanced" if getattr(task.options, "class_weights", False) else None


def fit_regression(x, targets, labels, c, weight):
    """(weights (C, F), biases (C,)) float32 of a logistic regression.

    x (N, F) sparse; targets (N,) of classes, or (N, C) of 0 and 1, which gives one regression per label.
    """
    from sklearn.linear_model import LogisticRegression

    def fitted(y):
        return LogisticRegression(C=c, max_iter=2000, class_weight=weight).fit(x, y)

    weights, biases = np.zeros((labels, x.shape[1]), np.float32), np.full(labels, NEVER, np.float32)
    if targets.ndim == 2:
        for i, column in enumerate(targets.T):
            if column.min() < column.max():
                found = fitted(column)
                weights[i], biases[i] = found.coef_[0], found.intercept_[0]
            elif column[0]:
                biases[i] = -NEVER
    else:
        found = fitted(targets)
        rows = found.classes_ if len(found.classes_) > 2 else found.classes_[1:]
        biases[found.classes_] = 0
        weights[rows], biases[rows] = found.coef_, found.intercept_
    return weights, biases


class Dictionary:
    """Of each word its most frequent tag in train; other words are O."""

    def __init__(self, task, content):
        self.task, self.content = task, content

    @classmethod
    def fit(cls, task, examples):
        """Only words whose most frequent tag is not O are kept."""
        counts = {}
        for sentence in examples["train"]:
            for word, tag in zip(sentence.words, sentence.label, strict=True):
                counts.setdefault(word, Counter())[tag] += 1
        tags = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
        return cls(task, {"tags": {word: task.labels[tag] for word, tag in tags.items() if tag}})

    def predict(self, examples):
        """(tags,) for each sentence."""
        known = self.content["tags"]
        return [(self.task.allowed_tags([known.get(word, "O") for word in e.words]),) for e in examples]

    @property
    def parameters(self):
        """How many words it knows."""
        return len(self.content["tags"])


BASELINES = {"majority": Majority, "rule": Rule, "tfidf": TfIdf, "dictionary": Dictionary}
CONTENT, TENSORS = "baseline.json", "baseline.safetensors"


def reader(found, length, most):
    """A function (token ids (B, T), mask) that lets a baseline read B texts of `length` of its words.

    For benchmark.py, whose notes are token ids at random: the ids themselves are not looked at. most: of B.
    """
    words = [word for word in found.content.get("vocabulary", ()) if " " not in word] or ["word"]
    drawn = np.random.default_rng(0).choice(words, (most, length))
    examples = [found.task.example(str(i), " ".join(row)) for i, row in enumerate(drawn)]
    return lambda input_ids, attention_mask: found.predict(examples[: len(input_ids)])


# --- as a run -------------------------------------------------------------------------------------


def is_baseline(directory):
    """Whether a finished run is a baseline."""
    return read_run(directory, "technique")["technique"] in BASELINES


def make_baseline(args, name):
    """Fit a baseline on the split of these arguments of train.py, and store it. Returns its directory."""
    args.name, directory = name, Path(args.out) / name
    if checkpoint.is_finished(directory) and not args.overwrite:
        refuse_other_settings(directory, name, settings(args))
        print(f"{name}: finished already in {directory}; --overwrite makes it again")
        return directory
    with locked(directory):
        fit_and_store(args, name, directory)
    return directory


def fit_and_store(args, name, directory):
    """Notes -> baseline -> scores -> a run directory, written whole."""
    planned, began = Planned(args, asked_for=False), time.perf_counter()
    data = planned.sources()[0] if args.data == "demo" else args.data
    task = TASKS[args.task](**options_of(TASKS[args.task], args))
    examples, facts = task.load(data, args.fraction, args.validation, args.test, args.split_seed)
    facts["split"] = fingerprint(examples)
    print_data(task, facts)

    fitting_began = time.perf_counter()
    baseline = BASELINES[name].fit(task, examples)
    seconds = time.perf_counter() - fitting_began

    predictions = {split: baseline.predict(examples[split]) for split in ("validation", "test")}
    task.calibrate(examples["validation"], predictions["validation"])
    validation = task.score(examples["validation"], predictions["validation"])
    test = task.score(examples["test"], predictions["test"])
    test = test._replace(intervals=task.intervals(test.overall, examples["test"], predictions["test"]))
    if note := undefined_note(test, task.unit):
        print(note)
    print(f"{name}: test, {len(examples['test'])} {task.unit}, {spelled(test.overall, task.headline)}")

    record = {
        **planned.record(settings(args)), "technique": name, "demonstration": args.data == "demo",
        "demo_model": False, "device": "cpu", "task": task.describe(),
        "data": facts, "best_epoch": 0, "train_seconds": round(seconds, 1),
        "run_seconds": round(time.perf_counter() - began, 1), "machine": this_machine(), "history": [],
        "validation": validation._asdict(), "test": test._asdict(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }  # fmt: skip
    write_score_files(Path(args.out), task, record)
    with whole_directory(directory) as path:
        write_whole(path / CONTENT, json.dumps(baseline.content), private=True)
        if tensors := getattr(baseline, "tensors", None):
            write_tensors(path / TENSORS, tensors)
        for file, keys in training_keys(examples, facts["split"], args.seed).items():
            write_tensors(path / file, keys)
        write_predictions(path, task, examples["test"], predictions["test"])
        record["sizes"] = sizes_of(path, baseline)
        write_card(path, task, record, card_of_baseline(baseline, record["sizes"]))
        write_json(path / "run.json", record)


def card_of_baseline(baseline, sizes):
    """What its card says of it."""
    words, counted = "the shares of the labels", "numbers"
    if isinstance(baseline, TfIdf):
        words = "words" if baseline.content["ngrams"] == 1 else "words and pairs of words"
    elif isinstance(baseline, Dictionary):
        words = counted = "words"
    files = f"`{CONTENT}` and `{TENSORS}`" if hasattr(baseline, "tensors") else f"`{CONTENT}`"
    return CardText(
        library=None,
        how=(f"baseline, no neural network. {type(baseline).__doc__.splitlines()[0]}",),
        cost=f"{sizes['bytes']:,} bytes of {files}, {sizes['parameters']:,} {counted}.",
        use="`report.py` and `benchmark.py` read it beside the models, to be compared with them, and "
        "`evaluate.py` scores it on another file; predict.py does not.",
        privacy=f"`{CONTENT}` holds {words} of the training notes, and `predictions.csv` and `{KEYS}` are "
        "about single notes. A baseline of credentialed notes, such as MIMIC's, must not be published.",
    )


def sizes_of(path, baseline):
    """Bytes of its own files, how many numbers they hold, how many are not 0."""
    tensors = getattr(baseline, "tensors", {}).values()
    nonzero = sum(int(tensor.count_nonzero()) for tensor in tensors) or baseline.parameters
    size = sum((path / name).stat().st_size for name in (CONTENT, TENSORS) if (path / name).exists())
    return {"bytes": size, "parameters": baseline.parameters, "nonzero": nonzero}


def load_baseline(directory):
    """The baseline of a run directory. Raises BadInput if it is damaged."""
    directory, tensors = Path(directory), {}
    facts = read_run(directory, *LOADED)
    cls = BASELINES[facts["technique"]]
    check_file(directory / CONTENT)
    with fitting(directory):
        task, content = read_task(directory, facts), read_json(directory / CONTENT)
        if cls is TfIdf:
            check_file(directory / TENSORS)
            tensors = {name: tensor.numpy() for name, tensor in load_file(directory / TENSORS).items()}
            if tensors["weight"].shape != (len(task.labels), len(content["vocabulary"])):
                raise BadInput(f"{directory}: its files do not fit together")
        return cls(task, content, **tensors)
