"""Tags of words: reading BIO files, decoding the best allowed tag sequence, and a linear-chain CRF.

O is outside any entity, B-TYPE begins one, I-TYPE goes on with it. I-X is allowed only after B-X or I-X.
"""

import itertools
import re

import numpy as np
import torch
from torch import nn

from cli import BadInput
from data import MAX_ROW_MB, open_text, text_lines

TAG = re.compile(r"O|[BI]-\S+")
DOCUMENT = re.compile(r"-DOCSTART-|#\s*(?:new)?doc\b(?:\W*id\b)?\W*(.*)", re.I)
FORBIDDEN = -1e4  # the score of a tag where BIO does not allow it
CRF_SCALE = 100  # Adam moves a weight by about lr per step: scaled, transitions learn 100 times faster

# --- files -----------------------------------------------------------------------------------------


def read_bio(path, max_mb=MAX_ROW_MB, tagged=True):
    """Yield (line number, document or None, [words], [tags]) for each sentence of a CoNLL/BIO file.

    The first column is the word, the last its tag; tabs, or else white space, separate them, and blank lines
    separate sentences. -DOCSTART-, # doc and # newdoc begin a document, other # lines are comments. If the
    file begins with running_text, all of it is read so. tagged: whether the last column must be a BIO tag;
    else it may be anything, or absent, but in running text. Raises BadInput that names the line.
    """
    file, stream = open_text(path)
    lines = text_lines(path, stream, max_mb)
    head = list(itertools.islice(lines, 100))
    running = begins_running(head)
    if running and tagged:
        print(f"note: {path}: its lines differ in length; a tag is that of the word before it, the rest is O")
    document, documents, columns = None, 0, None
    begin, words, tags = 0, [], []
    for number, line in enumerate(itertools.chain(head, lines, [""]), 1):
        line = line.rstrip("\r\n")
        fields = line.split("\t") if "\t" in line else line.split()

        # a word and its tag
        if not _ends_a_sentence(line, fields, columns or 2, tagged):
            columns, where = columns or len(fields), f"{path}, line {number}"
            begin = begin if words else number
            more = running_text(fields, where) if running else [_word_and_tag(fields, columns, where, tagged)]
            words += [word for word, _ in more]
            tags += [tag for _, tag in more]
            continue

        # a blank line, a comment or the beginning of a document
        if words:
            yield begin, document, words, tags
            words, tags = [], []
        if opens := DOCUMENT.match(line):
            documents += 1
            document = opens[1].strip() if opens[1] else f"document {documents}"
    file.close()


def _ends_a_sentence(line, fields, columns, tagged):
    """Whether a line is blank, a comment or the beginning of a document. A word may be # itself: "# O"."""
    has_tag = TAG.fullmatch(fields[-1]) if fields else False
    is_word = len(fields) == columns and (has_tag or (not tagged and columns == 1))
    return not line.strip() or line.startswith("-DOCSTART-") or (line.startswith("#") and not is_word)


def _word_and_tag(fields, columns, where, tagged):
    """(word, tag) of a line's fields."""
    least = 2 if tagged else 1
    if len(fields) != columns or columns < least:
        raise BadInput(
            f"{where}: {len(fields)} columns where there should be {max(columns, least)}, "
            "a word first and its tag last"
        )
    if tagged and not TAG.fullmatch(fields[-1]):
        raise BadInput(f"{where}: the last column is no BIO tag; it must be O, B-TYPE or I-TYPE")
    return fields[0], fields[-1]


def begins_running(lines):
    """Whether a file begins as running text: two lines with tags, of different length, without tabs.

    A table or a plain note has none, and what looks like one there is not to be printed as a label. Vitamin
    B-12 is no tag here: a type begins with a letter.
    """
    first = [line.split() for line in lines if not _ends_a_sentence(line, line.split(), 2, True)][:2]
    differ = len(first) == 2 and len(first[0]) != len(first[1]) and not any("\t" in line for line in lines)
    return differ and all(
        any(re.fullmatch(r"O|[BI]-[^\W\d]\S*", field) for field in fields) for fields in first
    )


def running_text(fields, where):
    """[(word, tag)] of a line of words in which only some are followed by a tag; the others are O."""
    found = []
    for field in fields:
        if not TAG.fullmatch(field):
            found.append((field, None))
        elif found and found[-1][1] is None:
            found[-1] = (found[-1][0], field)
        else:
            raise BadInput(f"{where}: a tag that follows no word; correct that line")
    return [(word, tag or "O") for word, tag in found]


def repair(tags):
    """(BIO tags, how many I- tags that continue nothing became B-); in IOB1, entities begin with I-."""
    repaired, last = [], "O"
    for tag in tags:
        repaired.append(f"B-{tag[2:]}" if tag[0] == "I" and last[2:] != tag[2:] else tag)
        last = tag
    return repaired, sum(old != new for old, new in zip(tags, repaired, strict=True))


# --- decoding --------------------------------------------------------------------------------------


def allowed(labels):
    """Which tag may come first, (K,) bool, and which may follow which, (K, K) bool [before, after]."""
    start = np.array([not label.startswith("I-") for label in labels])
    after = np.array([[not b.startswith("I-") or a[2:] == b[2:] for b in labels] for a in labels])
    return start, after


def viterbi(emissions, start, transitions):
    """The tag sequence with the highest total score, as a list of T indices.

    emissions (T, K), start (K,), transitions (K, K) [before, after].
    """
    score, back = start + emissions[0], []  # score (K,): of the best path that ends in each tag
    for emission in emissions[1:]:
        paths = score[:, None] + transitions  # (before, after)
        back.append(paths.argmax(0))
        score = paths.max(0) + emission

    path = [int(score.argmax())]
    for pointers in reversed(back):
        path.append(int(pointers[path[-1]]))
    return path[::-1]


def marginals(sentences, start, transitions, together=64):
    """Probability of each tag of each word over all tag sequences of its sentence, by forward-backward.

    sentences: the emissions of each, [(T, K)], T at least 1; start (K,), transitions (K, K) [before, after].
    Gives [(T, K)]. So many sentences of similar length are computed together.
    """
    order, found = sorted(range(len(sentences)), key=lambda i: len(sentences[i])), {}
    for at in range(0, len(order), together):
        numbers = order[at : at + together]
        lengths = np.array([len(sentences[i]) for i in numbers])
        emissions = np.zeros((len(numbers), lengths.max(), len(start)))
        for row, i in zip(emissions, numbers, strict=True):
            row[: len(sentences[i])] = sentences[i]
        several = _marginals(emissions, lengths, start, transitions)
        found.update((i, p[:n]) for i, p, n in zip(numbers, several, lengths, strict=True))
    return [found[i] for i in range(len(sentences))]


def _marginals(emissions, lengths, start, transitions):
    """marginals of padded sentences: (S, T, K), lengths (S,) -> (S, T, K)."""
    forward, backward = np.empty((2, *emissions.shape))  # logarithms of sums over paths
    onward, inside = np.exp(transitions), np.arange(emissions.shape[1])[:, None, None] < lengths[:, None]
    with np.errstate(divide="ignore"):  # where nothing leads to a tag
        forward[:, 0] = start + emissions[:, 0]
        for t in range(1, emissions.shape[1]):
            forward[:, t] = _log_sum(forward[:, t - 1], onward) + emissions[:, t]
        backward[:, -1] = 0
        for t in range(emissions.shape[1] - 1, 0, -1):
            further = _log_sum(emissions[:, t] + backward[:, t], onward.T)
            backward[:, t - 1] = np.where(inside[t], further, 0)
    total = forward + backward
    shares = np.exp(total - total.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def _log_sum(logs, weights):
    """log(exp(logs) @ weights): (S, K), (K, K) -> (S, K)."""
    most = logs.max(1)[:, None]
    return np.log(np.exp(logs - most) @ weights) + most


# --- the CRF ---------------------------------------------------------------------------------------


class CRF(nn.Module):
    """Learnt scores of the first tag and of one tag after another: p(y|x) = exp(score(x, y)) / Z.

    score(x, y) = sum_t e_t(y_t) + s(y_t-1, y_t): a linear-chain CRF (Lafferty et al., 2001). What BIO does
    not allow keeps a score of -1e4.
    """

    def __init__(self, labels):
        super().__init__()
        start, after = (torch.from_numpy(np.where(ok, 0.0, FORBIDDEN)).float() for ok in allowed(labels))
        self.register_buffer("forbidden_start", start, persistent=False)
        self.register_buffer("forbidden", after, persistent=False)
        self.start = nn.Parameter(torch.zeros_like(start))
        self.transitions = nn.Parameter(torch.zeros_like(after))

    def scores(self):
        """(start (K,), transitions (K, K) [before, after])."""
        return (self.start * CRF_SCALE + self.forbidden_start, self.transitions * CRF_SCALE + self.forbidden)

    def log_likelihood(self, emissions, tags, mask, begins=None):
        """log p of each tag sequence, (B,): emissions (B, T, K), tags (B, T), mask (B, T) bool, left-aligned.

        begins (B,) bool: whether a row begins its sentence (None = all do); another may begin with any tag.
        """
        start, transitions = self.scores()
        start = start.expand(len(tags), -1) if begins is None else torch.where(begins[:, None], start, 0.0)
        emissions, lengths = emissions.float(), mask.sum(1)

        # the score of the given path, (B,)
        chosen = emissions.gather(2, tags[..., None])[..., 0]  # (B, T)
        steps = transitions[tags[:, :-1], tags[:, 1:]]  # (B, T - 1)
        path = (chosen * mask).sum(1) + start.gather(1, tags[:, :1])[:, 0] + (steps * mask[:, 1:]).sum(1)

        # log Z, the sum over all paths
        score = start + emissions[:, 0]  # (B, K)
        for t in range(1, int(lengths.max())):
            further = torch.logsumexp(score[:, :, None] + transitions, dim=1) + emissions[:, t]  # (B, K)
            score = torch.where(mask[:, t, None], further, score)
        return path - torch.logsumexp(score, dim=1)
