"""Named-entity recognition: every word of a sentence gets O, B-TYPE or I-TYPE, and runs of B I I are the entities.

The first word piece of a word carries its tag, the other pieces none. A sentence longer than the window is read in
overlapping windows; each word is labelled and answered in the window in whose middle it stands. The answer is the best
tag sequence (Viterbi) among those that BIO allows: no I-X but after B-X or I-X. With --crf the scores of one tag after
another are learnt too: p(y|x) = exp(sum_t e_t(y_t) + s(y_t-1, y_t)) / Z, a linear-chain CRF (Lafferty et al., 2001).
"""

import itertools
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForTokenClassification

import metrics
from cli import BadInput
from data import IGNORE, digest, frame, open_text, pack, text_lines, tokenise, windows
from tasks.demo_ner import write_sentences
from tasks.task import COLUMNS, Task

TAG = re.compile(r"O|[BI]-\S+")
DOCUMENT = re.compile(r"-DOCSTART-|#\s*(?:new)?doc\b(?:\W*id\b)?\W*(.*)", re.I)
WORD = re.compile(r"\w+|[^\w\s]")
CRF_SCALE = 100  # Adam moves each weight by about lr a step; transitions are stored at 1/100 so that they learn 100 times faster


@dataclass(slots=True)
class Sentence:
    """Words with their tags: where it came from, its document, where each word stands in the text (start, stop)."""

    row_id: str
    subject: str
    words: list
    label: list | None = None  # of tags, then of their indices
    offsets: list | None = None

    @property
    def text(self):
        """The words, to compare sentences by."""
        return " ".join(self.words)


# --- BIO ---------------------------------------------------------------------------------------------------------


def read_bio(path):
    """Yield (line number, document or None, [words], [tags]) for each sentence of a CoNLL/BIO file.

    First column the word, last the tag, separated by tabs or else white space; blank lines between sentences. -DOCSTART-,
    # doc and # newdoc begin a document, other # lines are comments. Raises BadInput that names the line.
    """
    raw, stream = open_text(path)
    document, documents, words, tags, columns, begin = None, 0, [], [], None, 0
    for number, line in enumerate(itertools.chain(text_lines(path, stream), [""]), 1):
        line = line.rstrip("\r\n")
        fields = line.split("\t") if "\t" in line else line.split()
        comment = line.startswith("#") and not (len(fields) == (columns or 2) and TAG.fullmatch(fields[-1]))
        opens = DOCUMENT.match(line) if comment or line.startswith("-DOCSTART-") else None
        if not line.strip() or comment or opens:
            if words:
                yield begin, document, words, tags
            words, tags = [], []
            if opens:
                documents += 1
                document = opens[1].strip() if comment and opens[1] else f"document {documents}"
            continue
        columns = columns or len(fields)
        if len(fields) != columns or columns < 2:
            raise BadInput(
                f"{path}, line {number}: {len(fields)} columns where there should be {max(columns, 2)}, a word first and its tag last"
            )
        if not TAG.fullmatch(fields[-1]):
            raise BadInput(f"{path}, line {number}: the last column is no BIO tag; it must be O, B-TYPE or I-TYPE")
        begin = begin if words else number
        words.append(fields[0])
        tags.append(fields[-1])
    raw.close()


def repair(tags):
    """(BIO tags, how many I- tags that continue nothing were turned into B-). Reads IOB1, where entities begin with I-."""
    repaired, last = [], "O"
    for tag in tags:
        repaired.append(f"B-{tag[2:]}" if tag[0] == "I" and last[2:] != tag[2:] else tag)
        last = tag
    return repaired, sum(a != b for a, b in zip(tags, repaired))


def allowed(labels):
    """Which tag may come first, (K,) bool, and which after which, (K, K) bool [before, after]."""
    start = np.array([not label.startswith("I-") for label in labels])
    after = np.array([[not b.startswith("I-") or a[2:] == b[2:] for b in labels] for a in labels])
    return start, after


def viterbi(emissions, start, transitions):
    """Indices of the tag sequence of the highest total score. emissions (T, K), start (K,), transitions (K, K) [before, after]."""
    score, back = start + emissions[0], []
    for emission in emissions[1:]:
        paths = score[:, None] + transitions  # (before, after)
        back.append(paths.argmax(0))
        score = paths.max(0) + emission
    path = [int(score.argmax())]
    for pointers in reversed(back):
        path.append(int(pointers[path[-1]]))
    return path[::-1]


def marginals(emissions, start, transitions):
    """Probability of each tag of each word over all tag sequences, (T, K): forward-backward."""
    ahead, behind = [start + emissions[0]], [np.zeros_like(start)]
    for emission in emissions[1:]:
        ahead.append(np.logaddexp.reduce(ahead[-1][:, None] + transitions, axis=0) + emission)
    for emission in emissions[:0:-1]:
        behind.append(np.logaddexp.reduce(transitions + emission + behind[-1], axis=1))
    total = np.array(ahead) + np.array(behind[::-1])
    return np.exp(total - np.logaddexp.reduce(total, axis=1, keepdims=True))


class CRF(nn.Module):
    """Learnt scores of the first tag and of one tag after another; what BIO forbids has a score of -1e4 for good."""

    def __init__(self, labels):
        super().__init__()
        start, after = (torch.from_numpy(np.where(ok, 0.0, -1e4)).float() for ok in allowed(labels))
        self.register_buffer("forbidden_start", start, persistent=False)
        self.register_buffer("forbidden", after, persistent=False)
        self.start = nn.Parameter(torch.zeros_like(start))
        self.transitions = nn.Parameter(torch.zeros_like(after))

    def scores(self):
        """(start (K,), transitions (K, K) [before, after])."""
        return self.start * CRF_SCALE + self.forbidden_start, self.transitions * CRF_SCALE + self.forbidden

    def log_likelihood(self, emissions, tags, mask, begins=None):
        """log p of each tag sequence, (B,). emissions (B, T, K), tags (B, T), mask (B, T) bool, true from the left.

        begins (B,) bool: whether a row begins its sentence (all of them if None); another may begin with any tag, I- too.
        """
        start, transitions = self.scores()
        start = start.expand(len(tags), -1) if begins is None else torch.where(begins[:, None], start, 0.0)  # (B, K)
        emissions, lengths = emissions.float(), mask.sum(1)
        chosen = emissions.gather(2, tags[..., None])[..., 0]  # (B, T)
        path = (chosen * mask).sum(1) + start.gather(1, tags[:, :1])[:, 0] + (transitions[tags[:, :-1], tags[:, 1:]] * mask[:, 1:]).sum(1)
        score = start + emissions[:, 0]  # (B, K)
        for t in range(1, int(lengths.max())):
            further = torch.logsumexp(score[:, :, None] + transitions, dim=1) + emissions[:, t]
            score = torch.where(mask[:, t, None], further, score)
        return path - torch.logsumexp(score, dim=1)


# --- the task ----------------------------------------------------------------------------------------------------


class Ner(Task):
    """Spans with their type; scored exactly, start, end and type, as conlleval does."""

    name, unit = "ner", "sentences"
    demo_files = ("train.tsv",)
    auto_class = AutoModelForTokenClassification
    reads_first = False
    overall, per_label, label_column = metrics.SPANS, (*metrics.SPANS, "Support"), "Type"
    per_label_csv = "per_type_{}_metrics.csv"
    headline = {"F1": "F1", "Precision": "precision", "Recall": "recall"}
    json_lines, folds, resampled = True, False, "documents, or sentences where there are none"
    published = "Reference (other, synthetic data; menstrual and IVF conversations, five types): precision 0.72, recall 0.68, F1 0.70."
    OPTIONS = {
        "--entity-types": dict(default=None, help="types to find, comma-separated; others count as O (all in the data)"),
        "--crf": dict(action="store_true", help="learn transition scores between tags: a linear-chain CRF"),
        **COLUMNS,
    }  # fmt: skip

    @classmethod
    def write_demonstration(cls, directory, rows):
        """A BIO file of about so many sentences, 2,000 at most."""
        return write_sentences(directory / "train.tsv", min(rows, 2000))

    @property
    def types(self):
        """Entity types, in the order of the labels."""
        return [label[2:] for label in self.labels if label.startswith("B-")]

    def read(self, path, keep, counts):
        """Sentences with BIO tags; a sentence outside any document stands alone, with those of the same words."""
        sentences, repairs, begins, last, opening = [], 0, 0, None, None
        for line, document, words, tags in read_bio(path):
            counts["rows"] += 1
            if not keep(document or str(line)):
                counts["not sampled"] += 1
                continue
            tags, changed = repair(tags)
            repairs, begins = repairs + changed, begins + sum(tag[0] == "B" for tag in tags)
            if document != last:
                last, opening = document, digest(*words)  # two files may number their documents alike
            subject = f"{document} {opening:016x}" if document else f"{digest(*words):016x}"
            self.by_subject |= document is not None
            sentences.append(Sentence(str(line), subject, words, tags))
        if not sentences:
            raise BadInput(f"{path}: no sentence in it; lines must hold a word and its tag")
        if repairs:
            # in IOB1 B- is the exception: only where an entity follows another of its type
            counts["IOB1 tags read as BIO" if repairs > begins / 2 else "stray I- tags turned into B-"] += repairs
        return sentences

    def fold(self, examples, counts):
        """Nothing is folded: documents stay whole, and sentences without one are split by their words."""
        return examples

    def settle_labels(self, examples, counts, path, seed):
        """Tags of all types in the data, or of those asked for; the others become O."""
        found = Counter(tag[2:] for sentence in examples for tag in sentence.label if tag[0] == "B")
        wanted = (
            list(dict.fromkeys(name.strip() for name in self.options.entity_types.split(",")))
            if self.options.entity_types
            else sorted(found)
        )
        for name in wanted:
            if name not in found:
                raise BadInput(f"--entity-types {name}: no such entity in {path}; there are {', '.join(sorted(found)) or 'none'}")
        if not wanted:
            raise BadInput(f"{path}: no entity in {len(examples)} sentences; every tag is O")
        self.labels = ["O", *(f"{prefix}-{name}" for name in wanted for prefix in "BI")]
        index = {label: i for i, label in enumerate(self.labels)}
        for sentence in examples:
            sentence.label = [index.get(tag, 0) for tag in sentence.label]
        return examples

    def head(self):
        """With a CRF or without."""
        return [*super().head(), self.options.crf]

    def strata(self, example):
        """The entity types of a sentence, or O."""
        return tuple({self.labels[tag][2:] for tag in example.label if tag} or {"O"})

    def tally(self, examples):
        """Entities of each type."""
        counts = Counter(tag for sentence in examples for tag in sentence.label)
        return {name: counts[self.labels.index(f"B-{name}")] for name in self.types}

    def check(self, files, per_split):
        """Some entity in every split; types that train lacks are named."""
        for split, counts in per_split.items():
            if not any(counts.values()):
                raise BadInput(f"{files[split]}: no entity in {split}; give more data, or other --entity-types")
        if unseen := [name for name in self.types if not per_split["train"][name]]:
            print(f"warning: {len(unseen)} entity types do not occur in train, so they cannot be found: {', '.join(unseen)}")

    def example(self, row_id, text):
        """A sentence of the words of a text, with their offsets."""
        matches = list(WORD.finditer(text))
        return Sentence(row_id, "", [m.group() for m in matches], None, [m.span() for m in matches])

    def encode(self, examples, tokenizer, max_length, progress=True):
        """Windows of word pieces; token_labels mark the first piece of each word that is answered there (0 if unlabelled)."""
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
                spans = windows(len(ids), room, room // 4)
                cuts = [0, *((left[1] + right[0]) // 2 for left, right in zip(spans, spans[1:])), len(ids)]
                tags = np.full(len(ids), IGNORE)
                tags[first] = examples[at].label if examples[at].label is not None else 0
                for (start, stop), low, high in zip(spans, cuts, cuts[1:]):
                    mine = np.full(len(before) + stop - start + len(after), IGNORE)
                    mine[len(before) + low - start : len(before) + high - start] = tags[low:high]
                    rows.append(np.concatenate([before, ids[start:stop], after]))
                    labels.append(mine)
                    owner.append(at)
        return pack(rows, owner, labels)

    def attach_head(self, model):
        """The CRF, if asked for."""
        if self.options.crf:
            model.crf = CRF(self.labels)
        return model

    def loss(self, model, batch, outputs):
        """Mean over words of the cross-entropy, or of the CRF's -log p. logits (B, T, K), labels (B, T)."""
        labels = batch["labels"]
        words = (labels != IGNORE).sum().clamp(min=1)
        if not self.options.crf:
            return F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum") / words
        rows = [(logits[m], row[m], m[m]) for logits, row in zip(outputs.logits, labels) if (m := row != IGNORE).any()]
        if not rows:
            return outputs.logits.sum() * 0
        emissions, tags, mask = (pad_sequence(part, batch_first=True) for part in zip(*rows))
        begins = labels[(labels != IGNORE).any(1), 1] != IGNORE  # only a sentence's first window answers its own first word
        return -model.crf.log_likelihood(emissions, tags, mask, begins).sum() / words

    def categorical(self, logits, batch):
        """The logits of words, (words, K)."""
        return logits[batch["labels"] != IGNORE]

    def read_out(self, model, batch, outputs):
        """Of each row: (scores of its words' tags (W, K), start, transitions)."""
        if self.options.crf:
            scores = outputs.logits.float()
            start, transitions = (x.detach().cpu().numpy() for x in model.crf.scores())
        else:
            scores = outputs.logits.float().log_softmax(-1)
            start, transitions = (np.where(ok, 0.0, -1e4) for ok in allowed(self.labels))
        marked = (batch["labels"] != IGNORE).cpu()
        return [(row[mark].numpy(), start, transitions) for row, mark in zip(scores.cpu(), marked)]

    def combine(self, examples, encoded, results):
        """Per sentence the scores of all its words, windows joined, and the best allowed tags: (tags, scores, start, transitions)."""
        joined = [[] for _ in examples]
        for owner, result in zip(encoded.owner, results):
            joined[owner].append(result)
        predictions = []
        for parts in joined:
            scores, (_, start, transitions) = np.concatenate([part[0] for part in parts]), parts[0]
            tags = [self.labels[i] for i in viterbi(scores, start, transitions)] if len(scores) else []
            predictions.append((tags, scores, start, transitions))
        return predictions

    def score(self, examples, predictions, intervals=False):
        """Exact spans; the bootstrap draws whole documents where there are some."""
        truth = [metrics.spans([self.labels[i] for i in sentence.label]) for sentence in examples]
        called = [metrics.spans(tags) for tags, *_ in predictions]
        return metrics.span_scores(truth, called, self.types, [sentence.subject for sentence in examples], intervals)

    def header(self):
        """One column of spans."""
        return ["predicted"]

    def record(self, prediction):
        """Spans by word numbers: '0-2:Symptoms 5-6:Hormones', the end excluded."""
        return [_spelled(prediction[0])]

    def truth(self, example):
        """The true spans, written the same."""
        return _spelled([self.labels[i] for i in example.label])

    def answer(self, example, prediction):
        """Spans with type, character offsets (end excluded), and confidence: the least sure word's probability of its tag."""
        tags, *scores = prediction
        if not tags:
            return {"spans": []}
        sure = marginals(*scores)[np.arange(len(tags)), [self.labels.index(tag) for tag in tags]]
        return {"spans": [
            {"type": kind, "start": example.offsets[a][0], "end": example.offsets[b - 1][1], "confidence": round(float(sure[a:b].min()), 4)}
            for a, b, kind in metrics.spans(tags)
        ]}  # fmt: skip


def _first_pieces(ids, word_ids, words, unknown):
    """(ids (T,), index of the first piece of each word (words,)); a word without any piece gets the unknown token."""
    ids, word_ids = np.asarray(ids, np.int64), np.asarray(word_ids, np.int64)
    if missing := sorted(set(range(words)) - set(word_ids.tolist())):
        places = np.searchsorted(word_ids, missing)
        ids, word_ids = np.insert(ids, places, unknown), np.insert(word_ids, places, missing)
    return ids, np.flatnonzero(np.diff(word_ids, prepend=-1))


def _spelled(tags):
    return " ".join(f"{start}-{stop}:{kind}" for start, stop, kind in metrics.spans(tags))
