"""Masked-language-model adaptation: the encoder reads more text of its domain before it learns a task.

All documents of a split are joined and cut into blocks of --block-size tokens, special ones included. 15% of
the tokens are chosen; of these 80% become [MASK], 10% another token, 10% stay, and the model is to name the
original (Devlin et al., 2019). Training blocks get new masks each epoch, validation and test blocks keep
theirs. The scores are the share of masked tokens named correctly, and the perplexity, exp of their mean
-log p. Only the masked places go through the output layer.
"""

import re

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM

import metrics
from cli import BadInput, number
from data import IGNORE, Encoded, Note, frame, pack, tokenise
from tasks.demo_trials import write_both
from tasks.task import COLUMNS, Task

MASKED = 0.15
FIXED = 0  # seed of the masks that never change
REMOVED = str.maketrans("", "", "[]{}():@#$%^&*")  # the reference's list


def mask_tokens(encoded, share, mask_id, special, vocabulary, seed):
    """Encoded rows with new masks; token_labels hold the original id where a token was chosen, else IGNORE.

    special: ids that are never chosen; vocabulary: ids that may replace one. Earlier masks are undone first.
    """
    generator = np.random.default_rng(seed)
    ids = np.where(encoded.token_labels == IGNORE, encoded.ids, encoded.token_labels)
    chosen = (generator.random(len(ids)) < share) & ~np.isin(ids, special)
    fate = generator.random(len(ids))
    others = generator.choice(vocabulary, len(ids))
    masked = np.where(chosen & (fate < 0.8), mask_id, np.where(chosen & (fate >= 0.9), others, ids))
    labels = np.where(chosen, ids, IGNORE)
    return Encoded(masked.astype(np.int32), encoded.starts, encoded.owner, None, labels.astype(np.int32))


class Mlm(Task):
    """Documents -> masked blocks; labels are the masked tokens themselves."""

    name, unit = "mlm", "documents"
    purpose = "Fills in masked words; meant as the encoder that other models start from."
    demo_files = ("trials.csv", "stop_reasons.csv")
    auto_class = AutoModelForMaskedLM
    reads_first, redraws, plain_logits, fewest_labels = False, True, False, 0
    techniques, baselines = ("base", "lora"), ()
    length_flag = "block_size"
    overall, per_label = metrics.MASKED, ()
    headline = {"Accuracy": "masked-token accuracy", "Perplexity": "perplexity"}
    selection, lower_is_better = "CrossEntropy", True
    unbounded = ("Perplexity",)
    json_lines, row_unit = True, "blocks"
    usual_text = (("TEXT",), ("brief_title", "brief_summary", "eligibility_criteria"), ("context",))
    pipeline_tag = "fill-mask"
    published = (
        "Reference (LoRA r = 1 on its own trial texts and encoder), "
        "masked-token accuracy by epochs of training:"
    )
    OPTIONS = {
        "--block-size": {
            "type": number(int, 8, 10**6),
            "default": 128,
            "help": "tokens per block, special ones included (128)",
        },
        **COLUMNS,
    }

    # --- a note's way

    @classmethod
    def write_demonstration(cls, directory, rows):
        """The files of trials: to adapt on descriptions, to classify reasons."""
        return write_both(directory, rows)

    def prepare_text(self, text):
        """Without the characters that the reference removes; white space becomes single blanks."""
        return re.sub(r"\s+", " ", text.translate(REMOVED)).strip()

    def read(self, path, keep, counts):
        """Every row with text is a document."""
        return [
            Note(row_id, subject or f"row {row_id}", self.prepare_text(text), 0)
            for _, row_id, subject, text, _ in self.rows(self.open_table(path), counts, keep)
        ]

    def tally(self, examples):
        """No labels to count."""
        return {}

    def example(self, row_id, text):
        """A text to fill in: [MASK] stays."""
        return Note(row_id, "", text)

    # --- tensors

    def encode(self, examples, tokenizer, max_length, progress=True):
        """Masked blocks; of unlabelled examples the text itself, whose [MASK] tokens are to be filled."""
        self.words, self.mask = tokenizer.convert_ids_to_tokens, tokenizer.mask_token
        self.mask_id = tokenizer.mask_token_id
        if self.mask_id is None:
            raise BadInput("--model: its tokenizer has no mask token, so it is no masked-language model")

        texts = [example.text for example in examples]
        if examples[0].label is None:
            return self._texts_to_fill(texts, tokenizer, max_length, progress)
        return self._masked_blocks(texts, tokenizer, max_length, progress)

    def _texts_to_fill(self, texts, tokenizer, max_length, progress):
        """One row per text; every token but [MASK] is ignored."""
        batches = tokenise(texts, tokenizer, progress, truncation=True, max_length=max_length)
        rows = [ids for batch in batches for ids in batch["input_ids"]]
        return pack(rows, None, [[i if i == self.mask_id else IGNORE for i in ids] for ids in rows])

    def _masked_blocks(self, texts, tokenizer, max_length, progress):
        """All texts joined and cut into blocks of max_length tokens, with the masks that never change.

        A block's owner is the text in which it begins.
        """
        before, after = frame(tokenizer)
        room = max_length - len(before) - len(after)
        batches = tokenise(texts, tokenizer, progress, add_special_tokens=False)
        pieces = [np.asarray(ids, np.int32) for batch in batches for ids in batch["input_ids"]]
        stream, begins = np.concatenate(pieces), range(0, sum(map(len, pieces)), room)
        blocks = [np.concatenate([before, stream[i : i + room], after]) for i in begins]
        owner = np.searchsorted(np.cumsum(list(map(len, pieces))), begins, side="right")
        unmasked = pack(blocks, owner, [np.full(len(block), IGNORE) for block in blocks])

        self.special = np.array(tokenizer.all_special_ids)
        self.vocabulary = np.setdiff1d(np.arange(len(tokenizer)), self.special)
        encoded = self.fresh(unmasked, [FIXED])
        if (encoded.token_labels == IGNORE).all():
            raise BadInput(
                f"a split of {len(stream)} tokens is too small for a masked one; give more documents"
            )
        return encoded

    def fresh(self, encoded, seed):
        """The same blocks with other masks."""
        return mask_tokens(encoded, MASKED, self.mask_id, self.special, self.vocabulary, seed)

    def forward(self, model, batch, **keywords):
        """Logits of the masked places alone, (M, V); the others are not needed, and the head is expensive."""
        head = model.get_output_embeddings()
        chosen = batch["labels"] != IGNORE
        with head.register_forward_pre_hook(lambda _, inputs: (inputs[0][chosen],)):
            return super().forward(model, batch, **keywords)

    def loss(self, model, batch, outputs):
        """Mean cross-entropy of the masked tokens."""
        labels = batch["labels"][batch["labels"] != IGNORE]
        return F.cross_entropy(outputs.logits, labels, reduction="sum") / max(1, len(labels))

    def read_out(self, model, batch, outputs):
        """Of each row (tokens named correctly, tokens masked, sum of -log p), (3,).

        Of an unlabelled text: the five likeliest pieces at each [MASK], as (ids (5,), probabilities (5,)).
        """
        chosen, logits = batch["labels"] != IGNORE, outputs.logits.float()  # (B, T), (M, V)
        labels, per_row = batch["labels"][chosen], chosen.sum(1).tolist()  # (M,)
        if len(labels) and (labels == self.mask_id).all():
            best = logits.softmax(-1).topk(5)
            pairs = list(zip(best.indices.cpu().numpy(), best.values.cpu().numpy(), strict=True))
            return [[pairs.pop(0) for _ in range(count)] for count in per_row]

        surprise = F.cross_entropy(logits, labels, reduction="none")
        table = torch.stack([logits.argmax(-1) == labels, torch.ones_like(surprise), surprise], -1)  # (M, 3)
        return [part.sum(0).numpy() for part in table.cpu().double().split(per_row)]  # MPS has no double

    def combine(self, examples, encoded, results):
        """Of each block its counts and the number of the example in which it begins, (4,).

        Of unlabelled texts the results as they are.
        """
        if examples[0].label is None:
            return results
        return [np.append(*pair) for pair in zip(results, encoded.owner, strict=True)]

    # --- scores and files

    def score(self, examples, predictions):
        """Accuracy and perplexity over all masked tokens."""
        return metrics.masked_tokens(np.stack(predictions)[:, :3])

    def certainty(self, examples, predictions):
        """None: a document has no one answer."""

    def header(self):
        """None: a document has no answer."""

    def stored_columns(self):
        """Counts by block: tokens named rightly, tokens masked, the sum of their -log p in nats."""
        return ["right", "masked", "surprise"]

    def stored(self, examples, predictions):
        """Blocks by number, from 1, each with the subject of the example in which it begins."""
        for block, (right, masked, surprise, at) in enumerate(predictions, 1):
            yield block, examples[int(at)].subject, [int(right), int(masked), f"{surprise:.6f}"]

    def certainty_of(self, rows):
        """None: they state no probabilities."""

    def rescored(self, rows):
        """Accuracy, cross-entropy and perplexity of the blocks."""
        counts = np.array([[float(row[column]) for column in self.stored_columns()] for row in rows])
        return metrics.masked_tokens(counts).overall, metrics.weighted_masked_tokens(counts)

    def answer(self, example, prediction):
        """The five likeliest word pieces at each [MASK], with their probabilities."""
        places = (
            prediction if isinstance(prediction, list) else []
        )  # an array of zeros if the whole batch had no [MASK]
        masks = [self._filled(ids, probabilities) for ids, probabilities in places]
        beyond = example.text.count(self.mask) - len(masks)
        return {"masks": masks, **({"masks beyond the block": beyond} if beyond else {})}

    def _filled(self, ids, probabilities):
        """{word piece: probability} for one [MASK]."""
        pairs = zip(self.words(ids.tolist()), probabilities, strict=True)
        return {word: round(float(probability), 4) for word, probability in pairs}
