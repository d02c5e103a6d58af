"""Named-entity recognition: every word of a sentence gets O, B-TYPE or I-TYPE; B I I is one entity.

The first word piece of a word carries its tag, the other pieces none. A sentence longer than the window is
read in overlapping windows; each word is labelled and answered in the window that has it nearest to its
middle. The answer is the best tag sequence (Viterbi) that BIO allows. With --crf the scores of one tag after
another are learnt too. The maths is in tasks/bio.py.
"""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForTokenClassification

import metrics
from cli import BadInput
from data import IGNORE, digest, frame, open_text, pack, text_lines, tokenise, windows
from tasks.bio import CRF, FORBIDDEN, allowed, marginals, read_bio, repair, viterbi
from tasks.demo_ner import write_sentences
from tasks.task import COLUMNS, Task

TOKENS = re.compile(r"\.(tsv|txt|bio|iob2?|conll)(\.gz)?", re.I)  # endings of files of one word per line
WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(slots=True)
class Sentence:
    """Words with their tags; its line, its document, each word's place in the text (start, stop)."""

    row_id: str
    subject: str
    words: list
    label: list | None = None  # of tags, then of their indices
    offsets: list | None = None

    @property
    def text(self):
        """The words, to compare sentences by."""
        return " ".join(self.words)


class Ner(Task):
    """Spans with their type; scored exactly, start, end and type, as conlleval does."""

    name, unit = "ner", "sentences"
    purpose = "Finds entities in a text: where each begins and ends, and its type."
    demo_files = ("train.tsv",)
    auto_class = AutoModelForTokenClassification
    folds, fewest_labels, reads_first = False, 1, False
    overall, per_label, label_column = metrics.SPANS, (*metrics.SPANS, "Support"), "Type"
    per_label_csv = "per_type_{}_metrics.csv"
    headline = {"F1": "F1", "Precision": "precision", "Recall": "recall"}
    group_score = "F1"
    sure_of = "a predicted span (the tag of its least certain word)"
    baselines = ("dictionary",)
    json_lines = True
    pipeline_tag = "token-classification"
    published = "As published: on other, synthetic data (menstrual and IVF conversations, five types)."
    OPTIONS = {
        "--entity-types": {
            "default": None,
            "help": "types to find, comma-separated; others count as O (all in the data)",
        },
        "--crf": {
            "action": "store_true",
            "help": "learn transition scores between tags: a linear-chain CRF (off)",
        },
        **COLUMNS,
    }

    # --- a note's way

    @classmethod
    def write_demonstration(cls, directory, rows):
        """A BIO file of about so many sentences, 2,000 at most."""
        return write_sentences(directory / "train.tsv", min(rows, 2000))

    @property
    def types(self):
        """Entity types, in the order of the labels."""
        return [label[2:] for label in self.labels if label.startswith("B-")]

    def read(self, path, keep, counts):
        """Sentences with BIO tags. Sentences outside any document are grouped by their words."""
        sentences, repairs, begins, last, opening = [], 0, 0, None, None
        for line, document, words, tags in read_bio(path, self.options.max_row_mb):
            counts["rows"] += 1
            if not keep(document or str(line)):
                counts["not sampled"] += 1
                continue
            tags, changed = repair(tags)
            repairs, begins = repairs + changed, begins + sum(tag[0] == "B" for tag in tags)
            if document != last:
                last, opening = (document, digest(*words))  # two files may number their documents alike
            subject = f"{document} {opening:016x}" if document else f"{digest(*words):016x}"
            self.by_subject |= document is not None
            sentences.append(Sentence(str(line), subject, words, tags))

        if not sentences:
            raise BadInput(f"{path}: no sentence in it; lines must hold a word and its tag")
        if repairs:
            # in IOB1 B- is the exception: only where an entity follows another of its type
            what = "IOB1 tags read as BIO" if repairs > begins / 2 else "stray I- tags turned into B-"
            counts[what] += repairs
        return sentences

    def fold(self, examples, counts):
        """Nothing is folded: documents stay whole, and sentences without one are split by their words."""
        return examples

    def settle_labels(self, examples, counts, path, seed):
        """Tags of all types in the data, or of those asked for; the others become O."""
        found = sorted({tag[2:] for sentence in examples for tag in sentence.label if tag[0] == "B"})
        if not found:
            raise BadInput(f"{path}: no entity in {len(examples)} sentences; every tag is O")

        types = self._wanted_types(found, path)
        self.labels = ["O", *(f"{prefix}-{name}" for name in types for prefix in "BI")]
        return self.known_labels(examples)[0]

    def known_labels(self, examples):
        """All sentences; tags of other types become O."""
        index = {label: i for i, label in enumerate(self.labels)}
        tags = (tag for sentence in examples for tag in sentence.label)
        unknown = Counter(tag[2:] for tag in tags if tag[0] == "B" and tag not in index)
        for sentence in examples:
            sentence.label = [index.get(tag, 0) for tag in sentence.label]
        return examples, unknown

    def _wanted_types(self, found, path):
        """The types of --entity-types, each once, or all that were found."""
        if not self.options.entity_types:
            return found
        wanted = list(dict.fromkeys(name.strip() for name in self.options.entity_types.split(",")))
        for name in wanted:
            if name not in found:
                there = ", ".join(found)
                raise BadInput(f"--entity-types {name}: no such entity in {path}; there are {there}")
        return wanted

    def strata(self, example):
        """The entity types of a sentence, or O."""
        return tuple(sorted({self.labels[tag][2:] for tag in example.label if tag} or {"O"}))

    def tally(self, examples):
        """Entities of each type."""
        counts = Counter(tag for sentence in examples for tag in sentence.label)
        return {name: counts[self.labels.index(f"B-{name}")] for name in self.types}

    def check_split(self, path, split, tally, dealt):
        """Some entity in every split."""
        if not any(tally.values()):
            raise BadInput(f"{path}: no entity in {split}; give more data, or other --entity-types")

    # --- tensors

    def unlabelled(self, path, counts):
        """Notes of a table, or the sentences of a file of one word per line; tags in it are ignored."""
        if self._is_table(path):
            return super().unlabelled(path, counts)
        return self._untagged(path, counts)

    def _is_table(self, path):
        """Whether a file is a table of notes, by its name, and if that does not say, by its first line."""
        if self.options.text_columns or not TOKENS.search(Path(path).name):
            return True
        file, stream = open_text(path)
        with file:
            names = next(text_lines(path, stream, self.options.max_row_mb), "").casefold().strip().split("\t")
        return len(names) > 1 and any(usual[0].casefold() in names for usual in self.usual_text)

    def _untagged(self, path, counts):
        """Yield the sentences of a file of one word per line."""
        for line, document, words, _ in read_bio(path, self.options.max_row_mb, tagged=False):
            counts["rows"] += 1
            yield Sentence(str(line), document or "", words)

    def example(self, row_id, text):
        """A sentence of the words of a text, with their offsets."""
        matches = list(WORD.finditer(text))
        return Sentence(row_id, "", [m.group() for m in matches], None, [m.span() for m in matches])

    def encode(self, examples, tokenizer, max_length, progress=True):
        """Windows of word pieces. token_labels mark the first piece of each word that a window answers.

        Words of unlabelled sentences are marked by 0.
        """
        before, after = frame(tokenizer)
        room = max_length - len(before) - len(after)
        rows, owner, labels, at = [], [], [], -1
        # byte-level tokenizers tell a word from a word's end by the blank before it
        blank = " " if "ByteLevel" in repr(tokenizer.backend_tokenizer.pre_tokenizer) else ""
        words = [[blank + word for word in example.words] for example in examples]
        for batch in tokenise(words, tokenizer, progress, is_split_into_words=True, add_special_tokens=False):
            for i, ids in enumerate(batch["input_ids"]):
                at += 1
                ids, first = _first_pieces(ids, batch.word_ids(i), len(words[at]), tokenizer.unk_token_id)
                tags = np.full(len(ids), IGNORE)
                tags[first] = examples[at].label if examples[at].label is not None else 0

                # neighbouring windows overlap by a quarter; each answers up to the middle of the overlap
                spans = windows(len(ids), room, room // 4)
                cuts = [0, *((left[1] + right[0]) // 2 for left, right in pairwise(spans)), len(ids)]
                for (start, stop), (low, high) in zip(spans, pairwise(cuts), strict=True):
                    mine = np.full(len(before) + stop - start + len(after), IGNORE)
                    mine[len(before) + low - start : len(before) + high - start] = tags[low:high]
                    rows.append(np.concatenate([before, ids[start:stop], after]))
                    labels.append(mine)
                    owner.append(at)
        return pack(rows, owner, labels)

    def attach_head(self, model):
        """Add the CRF, if asked for."""
        if self.options.crf:
            model.crf = CRF(self.labels)
        return model

    def head(self):
        """What must be equal for heads to be exchanged: also whether there is a CRF."""
        return [*super().head(), self.options.crf]

    @property
    def plain_head(self):
        """False with a CRF, which plain transformers does not know."""
        return not self.options.crf

    def loss(self, model, batch, outputs):
        """Mean over words of the cross-entropy, or of the CRF's -log p. logits (B, T, K), labels (B, T)."""
        labels = batch["labels"]
        words = (labels != IGNORE).sum().clamp(min=1)
        if not self.options.crf:
            flat, targets = outputs.logits.flatten(0, 1), labels.flatten()  # (B * T, K), (B * T,)
            return F.cross_entropy(flat, targets, ignore_index=IGNORE, reduction="sum") / words

        # the words of each row that has any, padded again: (rows, words, K), (rows, words) twice
        pairs = zip(outputs.logits, labels, strict=True)
        rows = [(logits[m], row[m], m[m]) for logits, row in pairs if (m := row != IGNORE).any()]
        if not rows:
            return outputs.logits.sum() * 0
        emissions, tags, mask = (pad_sequence(part, batch_first=True) for part in zip(*rows, strict=True))

        # only a sentence's first window answers the word right after [CLS]
        begins = labels[(labels != IGNORE).any(1), 1] != IGNORE
        return -model.crf.log_likelihood(emissions, tags, mask, begins).sum() / words

    def categorical(self, logits, batch):
        """The logits of words, (words, K)."""
        return logits[batch["labels"] != IGNORE]

    def read_out(self, model, batch, outputs):
        """Of each row: (scores of its words' tags (W, K), start (K,), transitions (K, K))."""
        if self.options.crf:
            scores = outputs.logits.float()
            start, transitions = (x.detach().cpu().numpy() for x in model.crf.scores())
        else:
            scores = outputs.logits.float().log_softmax(-1)
            start, transitions = (np.where(ok, 0.0, FORBIDDEN) for ok in allowed(self.labels))
        marked = (batch["labels"] != IGNORE).cpu()
        pairs = zip(scores.cpu(), marked, strict=True)
        return [(row[mark].numpy(), start, transitions) for row, mark in pairs]

    def combine(self, examples, encoded, results):
        """Per sentence (best allowed tags, scores of its words, start, transitions), its windows joined."""
        joined = [[] for _ in examples]
        for owner, result in zip(encoded.owner, results, strict=True):
            joined[owner].append(result)

        predictions = []
        for parts in joined:
            scores, (_, start, transitions) = np.concatenate([part[0] for part in parts]), parts[0]
            tags = [self.labels[i] for i in viterbi(scores, start, transitions)] if len(scores) else []
            predictions.append((tags, scores, start, transitions))
        return predictions

    # --- scores and files

    def score(self, examples, predictions):
        """Exact spans, with their type."""
        truth = [metrics.spans([self.labels[i] for i in sentence.label]) for sentence in examples]
        called = [metrics.spans(tags) for tags, *_ in predictions]
        return metrics.span_scores(truth, called, self.types)

    def certainty(self, examples, predictions):
        """(tags (N,), probabilities (N, K)) of all words: on these the temperature is fitted.

        None with a CRF, whose transitions no such scaling reaches, and for a baseline, which states none.
        """
        if self.options.crf or len(predictions[0]) == 1:
            return None
        scores = np.concatenate([scores for _, scores, *_ in predictions])
        return np.concatenate([sentence.label for sentence in examples]), np.exp(scores)

    def calibration(self, examples, predictions):
        """Of the predicted spans: how often those of a confidence are exactly right; None if there are none.

        So of the answers that users see, as Jagannatha and Yu (2020, ACL) calibrate entities; of single words
        most are easy Os. A span that is missed has no confidence and counts in recall alone.
        """
        if len(predictions[0]) == 1:  # a baseline
            return None
        truth = [set(metrics.spans([self.labels[i] for i in sentence.label])) for sentence in examples]
        called = [metrics.spans(tags) for tags, *_ in predictions]
        right = np.array([span in true for true, spans in zip(truth, called, strict=True) for span in spans])
        if not len(right):
            return None

        def scores(temperature):
            sure = np.concatenate(self.confidences(predictions, temperature)).clip(0, 1)
            return metrics.answer_calibration(right, sure)

        scaled = self.temperature and scores(self.temperature)
        return {"temperature": self.temperature, "plain": scores(1.0), "scaled": scaled}

    def confidences(self, predictions, temperature=1.0):
        """Of each sentence an array: of each of its predicted spans the probability that answer() states.

        temperature: of the words' scores. The best sequence stays the best, as a CRF has no temperature.
        """
        found = [np.empty(0)] * len(predictions)
        with_spans = [i for i, (tags, *_) in enumerate(predictions) if metrics.spans(tags)]
        if not with_spans:
            return found
        _, _, start, transitions = predictions[with_spans[0]]
        sure = marginals([predictions[i][1] / temperature for i in with_spans], start, transitions)
        for i, probabilities in zip(with_spans, sure, strict=True):
            tags = predictions[i][0]
            of_tags = probabilities[np.arange(len(tags)), [self.labels.index(tag) for tag in tags]]
            found[i] = np.array([of_tags[first:stop].min() for first, stop, _ in metrics.spans(tags)])
        return found

    def header(self):
        """One column of spans."""
        return ["predicted"]

    def record(self, prediction):
        """The spans found, by word numbers."""
        return [_spelled(prediction[0])]

    def truth(self, example):
        """The true spans, written the same."""
        return _spelled([self.labels[i] for i in example.label])

    def certainty_of(self, rows):
        """None: they state no probabilities."""

    def rescored(self, rows):
        """Exact spans, counted by sentence."""
        pairs = [(set(row["label"].split()), set(row["predicted"].split())) for row in rows]
        counts = np.array([[len(true & called), len(true), len(called)] for true, called in pairs])
        scores = metrics.weighted_spans(counts)
        once = np.ones((1, len(counts)), np.float32)
        with np.errstate(invalid="ignore"):  # without predictions precision is undefined
            overall = {name: float(score(once)[0]) for name, score in scores.items()}
        return {name: None if np.isnan(x) else x for name, x in overall.items()}, scores

    def allowed_tags(self, tags):
        """Tags as BIO allows them: an I- that continues nothing becomes B-."""
        return repair(tags)[0]

    def answer(self, example, prediction):
        """Spans with type, place and confidence.

        The place is character offsets, end excluded; of a file of words, word numbers from 0. Confidence is
        the probability of the tag of the least certain word, with --calibrated after temperature scaling.
        """
        sure = self.confidences([prediction], self.temperature if self.calibrated else 1.0)[0]
        spans = [
            {"type": kind, **place(example, first, stop), "confidence": round(float(probability), 4)}
            for (first, stop, kind), probability in zip(metrics.spans(prediction[0]), sure, strict=True)
        ]
        return {"spans": spans}


def place(sentence, first, stop):
    """Where the words from first to stop, excluded, stand in the text, or in a sentence without offsets."""
    if sentence.offsets is None:
        return {"start_word": first, "end_word": stop}
    return {"start": sentence.offsets[first][0], "end": sentence.offsets[stop - 1][1]}


def _first_pieces(ids, word_ids, words, unknown):
    """(ids (T,), index of the first piece of each word (words,)); a word without pieces becomes unknown."""
    ids, word_ids = np.asarray(ids, np.int64), np.asarray(word_ids, np.int64)
    if missing := sorted(set(range(words)) - set(word_ids.tolist())):
        places = np.searchsorted(word_ids, missing)
        ids, word_ids = np.insert(ids, places, unknown), np.insert(word_ids, places, missing)
    return ids, np.flatnonzero(np.diff(word_ids, prepend=-1))


def _spelled(tags):
    """'0-2:Symptoms 5-6:Hormones': the entities by word numbers, the end excluded."""
    return " ".join(f"{start}-{stop}:{kind}" for start, stop, kind in metrics.spans(tags))
