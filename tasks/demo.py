"""The demonstration: a task's synthetic data and a tiny BERT of random weights; no download.

    python -m tasks.demo DIR [TASK]

The data go through the same reader, labels and split as real files, and the model is an ordinary
checkpoint that `from_pretrained` loads. The wording is ours and describes no patient. Scores on it
show that the code works, not how good a technique is. A task brings its own data: demo_files and
write_demonstration (tasks/task.py).
"""

import sys
from collections import Counter
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from cli import BadInput, run_script
from files import locked, write_whole, writing
from tasks import TASKS

# Random weights need larger steps than pre-trained ones. Every technique uses this rate.
LEARNING_RATE = 5e-4
BANNER = (
    "DEMONSTRATION: synthetic notes or a tiny model of random weights; "
    "scores are not comparable to the paper's."
)


def wordpiece_vocabulary(texts, size):
    """A list of at most `size` pieces: special tokens, characters, "##" characters, common words.

    A word that only lengthens a commoner one ("painless") is left to that word and continuations.
    The tokenizers library's own trainer breaks ties by hash order: two runs give two vocabularies.
    """
    words = Counter(word for text in texts for word, _ in BertPreTokenizer().pre_tokenize_str(text.lower()))
    characters = sorted(set("".join(words)))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    stems = set()
    for word in sorted(words, key=lambda word: (-words[word], word)):
        if len(word) > 1 and not any(word[:cut] in stems for cut in range(4, len(word))):
            stems.add(word)
            pieces.append(word)
    return pieces[:size]


def make_model(directory, texts, hidden=128, layers=4, vocabulary=600, seed=0):
    """Save a tiny BERT of random weights, with a WordPiece vocabulary of these texts."""
    words = wordpiece_vocabulary(texts, vocabulary)
    Path(directory).mkdir(parents=True, exist_ok=True)
    write_whole(Path(directory) / "vocab.txt", "\n".join(words) + "\n")
    tokenizer = BertTokenizerFast.from_pretrained(directory, do_lower_case=True, model_max_length=256)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(2, hidden // 32),
        intermediate_size=2 * hidden,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(), writing(directory):
        torch.manual_seed(seed)
        BertForSequenceClassification(config).save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def refuse_another(directory, task, complete):
    """Raises BadInput if the directory holds the demonstration of a task with other files."""
    ours = set(TASKS[task].demo_files)
    every = {name for cls in TASKS.values() for name in cls.demo_files}
    held = {name for name in every if (directory / name).exists()}
    if held - ours or (complete and held != ours):
        remedy = "choose another directory"
        raise BadInput(f"{directory}: holds the demonstration of another task than {task}; {remedy}")


def make(directory, task="symptoms", notes=4000, hidden=128, layers=4):
    """Make a task's data, about `notes` rows, and a model, unless they are there.

    Returns (path of the data, path of the model), both under the directory.
    """
    if task not in TASKS:
        raise BadInput(f"{task}: no such task; choose one of {', '.join(TASKS)}")
    directory, cls = Path(directory), TASKS[task]
    if not cls.demo_files:
        raise BadInput(f"{task}: this task brings no demonstration; give --data and --model")
    data, model = directory / cls.demo_files[0], directory / "model"
    with locked(directory, wait=True):  # another run of the same results directory may be making it
        complete = (model / "tokenizer.json").exists()  # written last
        refuse_another(directory, task, complete)
        if not complete:
            directory.mkdir(parents=True, exist_ok=True)
            make_model(model, cls.write_demonstration(directory, notes), hidden, layers)
    return data, model


if __name__ == "__main__":
    run_script(lambda: print(*make(*(sys.argv[1:3] or ["demo"])), sep="\n"))
