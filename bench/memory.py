"""What LoRA saves in training: time and peak memory of an epoch, beside training all weights.

A BERT of base size with random weights reads the notes of --training, with train.py's other arguments. Each
row has a process of its own; its peak memory is all that the process has, libraries and token ids included.
"""

import statistics
from contextlib import redirect_stdout
from io import StringIO

from transformers import BertConfig

import compress
from bench.shape import alternating
from bench.training import fresh_model, load_workload, train_py_seconds
from bench.volume import run_child
from layers import parameter_count
from run import checkpoint

ROWS = {  # heading: technique and its options
    "all weights": ("base", {}),
    "LoRA, rank 8": ("lora", {"lora_rank": 8}),
    "LoRA, rank 1": ("lora", {"lora_rank": 1}),
}
CHILD = """
from bench import memory
from fast import cpu
cpu.keep_memory()
print(*memory.train_epoch(sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4:]), peak())
"""


def train_epoch(name, tokens, depth, words):
    """(seconds, tokens, parameters trained, all parameters) of one epoch of a row of ROWS."""
    work = load_workload(words, tokens)
    task = work.notes.task
    config = BertConfig(num_labels=max(1, len(task.labels)), num_hidden_layers=depth)
    state = task.attach_head(checkpoint.untrained(task, config)).state_dict()
    made = []

    def fresh(attention_dropout):
        made.append(fresh_model(task, config, state, attention_dropout))
        return made[-1]

    technique, options = ROWS[name]
    with redirect_stdout(StringIO()):
        chain = compress.build([technique], options)
        seconds = train_py_seconds(
            work._replace(fresh=fresh), work.args.attention_dropout, work.args.precision, chain
        )
    trained = sum(p.numel() for p in made[0].parameters() if p.requires_grad)
    return seconds, int(work.notes.rows["train"].lengths.sum()), trained, parameter_count(made[0])


def memory_rows(words, tokens=15_000, rounds=3, depth=12):
    """Rows of the comparison, a dict each. depth: layers of the encoder."""
    found = {name: [] for name in ROWS}
    for name in alternating(ROWS, rounds, "memory"):
        found[name].append(run_child(CHILD, name, tokens, depth, *words))
    table = []
    for name, runs in found.items():
        seconds = statistics.median(float(printed[0]) for printed, _ in runs)
        _, read, trained, total = map(float, runs[0][0])
        row = {"row": name, "trained": int(trained), "parameters": int(total), "seconds": seconds}
        row |= {"tokens_per_s": read / seconds, "peak_bytes": max(peak for _, peak in runs)}
        table.append({**row, "rounds": rounds})
    return table


def memory_table(rows):
    """(header, cells): the rows, and how much each needs of what training all weights needs."""
    header = ["training BERT-base", "trained parameters", "tokens/s", "x all", "peak memory, MB", "of all's"]
    first = rows[0]
    cells = [
        [
            row["row"],
            f"{row['trained']:,}",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['tokens_per_s'] / first['tokens_per_s']:.2f}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{row['peak_bytes'] / first['peak_bytes']:.2f}",
        ]
        for row in rows
    ]
    return header, cells
