"""A finished run on another labelled file: external validation, with the same scores and files as the run's.

python evaluate.py RUN_DIR --data notes.csv
python evaluate.py RUN_DIR --data test.tsv --out results/external
python evaluate.py RUN_DIR --data notes.csv --subgroups SEX,WARD

A run of train.py or of baselines.py. The labels are the run's. Every row of the file that has one is scored:
nothing is folded, sampled or balanced. Rows with other labels are left out and counted; of label sets and BIO
tags the unknown labels are. Texts that stand in the file twice, and notes that the run was trained on, are
counted and named in duplicates.csv; if there are any of the latter, the scores without them stand beside the
scores of all. Groups of the rows are scored as those of a run's test notes are: by --subgroups, and by what
the task tells apart itself.
"""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

import compress
from cli import BadInput, Parser, run_script
from data import text_key
from fast import cpu
from files import writable_directory, write_csv, write_json
from metrics import Scores, undefined_note
from run import checkpoint, processes
from run.arguments import add_reading_flags, take_columns
from run.baseline import is_baseline, load_baseline
from run.inference import ahead, encode_examples, pick_device, precision_of, read_encoded, reading, with_loss
from run.machine import same_bits
from run.results import eval_metrics, group_metrics, print_rows, spelled, write_predictions, write_scores
from run.seen import KEYS, learnt_from
from tasks import TASKS
from tasks.groups import group_scores, refuse_strange_groups, strange_names
from tasks.task import listed

CHUNK = 2048  # examples whose texts and token ids are in memory at once


# --- the file -------------------------------------------------------------------------------------


def read_labelled(task, path):
    """The examples of a labelled file, by the labels of a finished task; says what was left out."""
    counts = Counter({"rows": 0})
    examples, unknown = task.read_to_score(path, counts)
    if not examples:
        raise BadInput(f"{path}: none of its {counts['rows']} rows has a label of the run's, which are "
                       f"{listed(task.labels)}")  # fmt: skip
    tally = task.tally(examples)
    if unknown and not any(tally.values()):
        raise BadInput(f"{path}: none of its {unknown.total():,} labels is one of the run's, which are "
                       f"{listed(list(tally))}")  # fmt: skip
    task.mark(examples)
    refuse_strange_groups(examples)
    print_rows(counts, len(examples), task.unit)
    if unknown:
        print(f"note: {unknown_labels(unknown)}")
    return examples


def unknown_labels(unknown):
    """A sentence on labels that the run does not know; it names those that look like names, not like text.

    One of several words, or with digits, must be there five times: it could be a person's, or a remark.
    """
    free_text = len(unknown) > max(5, unknown.total() / 3)  # nearly every row has another
    plain = [name for name, count in unknown.most_common() if count >= 5 or name.replace("_", "").isalpha()]
    names = [] if free_text else [name for name in plain if not strange_names([name])]
    shown = listed([f"{name} ({unknown[name]:,})" for name in names])
    hidden = f"{len(unknown) - len(names)} that look like text" if len(names) < len(unknown) else ""
    named = " and ".join(part for part in (shown, hidden) if part)
    return f"{unknown.total():,} labels that the run does not know are left out: {named}"


def earlier_rows(examples):
    """{index: row id of the first example with the same text}, of the examples that are not the first."""
    first, found = {}, {}
    for index, example in enumerate(examples):
        earlier = first.setdefault(text_key(example), example)
        if earlier is not example:
            found[index] = earlier.row_id
    return found


# --- answers and scores ---------------------------------------------------------------------------


def chunks(task, examples):
    """The examples by the chunk, with their texts; what did not fit into memory is read again, once."""
    size = len(examples) if task.redraws else CHUNK  # blocks of joined documents are cut from all of them
    remaining, texts = iter(examples), task.texts(examples)
    while chunk := list(islice(remaining, size)):
        pairs = zip(chunk, texts, strict=False)  # the texts go on in the next chunk
        yield [e if e.text is not None else replace(e, text=text) for e, text in pairs]


def answers_to(run, examples, tokens=None):
    """(predictions, mean loss) of a run on labelled examples; the next chunk is tokenised meanwhile."""
    task, pad_id, precision = run.task, run.tokenizer.pad_token_id, precision_of(run)
    predictions, loss, rows = [], 0.0, 0
    encoded_chunks = ((chunk, encode_examples(run, chunk)) for chunk in chunks(task, examples))
    for chunk, encoded in ahead(encoded_chunks):
        results, lost = read_encoded(run.model, task, encoded, pad_id, tokens, precision, losses=True)
        predictions += task.combine(chunk, encoded, results)
        loss, rows = loss + lost, rows + len(encoded.lengths)
    return predictions, loss / rows


def load_reader(args):
    """(task, a function of labelled examples -> (predictions, mean loss)) of a finished run.

    A baseline has no loss: None.
    """
    if is_baseline(args.run):
        baseline = load_baseline(args.run)
        return baseline.task, lambda examples: (baseline.predict(examples), None)
    run = checkpoint.load(args.run)
    device = pick_device("cpu" if compress.cpu_only(run.compression) else args.device)

    def answers(examples):
        onednn = processes.agreed(cpu.onednn_pays(run.model))
        with (
            processes.dealt_out(run.model.to(device)),
            reading(run.model, run.task, frozen=True, onednn=onednn),
        ):
            return answers_to(run, examples, args.batch_tokens)

    return run.task, answers


def without(examples, predictions, seen):
    """(examples, predictions) of those that the run did not learn from."""
    kept = np.flatnonzero(~seen)
    return [examples[i] for i in kept], [predictions[i] for i in kept]


class Found(NamedTuple):
    """What was found on some examples."""

    scores: Scores
    count: int
    groups: dict  # as tasks.groups.group_scores gives them

    def metrics(self):
        """As eval_metrics.json has them."""
        return {**eval_metrics(self.scores, self.count), **group_metrics(self.groups)}


def score_all(name, task, examples, predictions, loss=None, what=""):
    """The Found of predictions; prints them. loss: the mean, if known; what: which examples, in words."""
    scores = task.final_scores(examples, predictions)
    if loss is not None:
        scores = with_loss(scores, loss)
    if not what:
        if table := task.table(scores):
            print(table)
        if note := undefined_note(scores, task.unit):
            print(note)
    shown = spelled(scores.overall, task.headline)
    print(f"{name}: {len(examples):,} {task.unit}{what}, {shown}", flush=True)
    return Found(scores, len(examples), group_scores(task, examples, predictions, f"{task.unit}{what}"))


def remove_earlier(out):
    """Remove what an earlier evaluation, of whatever task, wrote into a directory."""
    if (out / "eval_metrics.json").exists():
        forms = {form for task in TASKS.values() for form in (task.overall_csv, task.per_label_csv)}
        for form in ("predictions.csv", *forms):
            for path in out.glob(form.format("*")):
                path.unlink()


def write_all(out, name, task, examples, predictions, every, new):
    """The CSVs, predictions.csv, eval_metrics.json. every, new: Found of all, without training notes."""
    remove_earlier(out)
    rows = [{"Epoch": None, **every.scores.overall, "Split": "all"}]
    found = every.metrics()
    if new:
        rows = [{"Epoch": None, **new.scores.overall, "Split": "without training notes"}, *rows]
        found["without_training_notes"] = new.metrics()
    write_scores(out, task, name, rows, every.scores.per_label)
    write_predictions(out, task, examples, predictions)
    write_json(out / "eval_metrics.json", found)


def write_duplicates(out, examples, earlier, seen):
    """duplicates.csv: which row has the text of an earlier row, and which that of a training note."""
    rows = (
        [example.row_id, earlier.get(i, ""), "yes" if seen is not None and seen[i] else ""]
        for i, example in enumerate(examples)
        if i in earlier or (seen is not None and seen[i])
    )
    write_csv(out / "duplicates.csv", ["row_id", "text_of_row", "text_of_training_note"], rows, private=True)


def say_duplicates(task, total, earlier, seen):
    """Lines on texts that stand twice in the file, and on notes that the run learnt from."""
    if earlier:
        print(
            f"note: {len(earlier):,} of {total:,} {task.unit} have the text of an earlier one; all are scored"
        )
    if seen is None:
        print(f"note: the run has no {KEYS}, so its training notes are not looked for")
    elif seen.any():
        print(f"warning: {seen.sum():,} of {total:,} {task.unit} are notes that the run was trained or "
              "validated on; see duplicates.csv")  # fmt: skip


# --- the command line -----------------------------------------------------------------------------


def evaluation_arguments(argv):
    """Parsed arguments."""
    parser = Parser(prog="evaluate.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("run", help="run directory, such as results/symptoms/lowrank")
    add("--data", required=True, help="labelled file in the form of the run's task, plain or .gz")
    add("--out", default="evaluation", help="directory to write (evaluation)")
    add("--label-column", "--label-columns", help="column of the label (as the run was trained)")
    add("--admissions", help="of readmission: the file's ADMISSIONS table (the one beside it)")
    add("--subgroups", help="columns of the file, comma-separated, whose values are scored each (none)")
    add_reading_flags(parser)
    return parser.parse_args(argv)


def take_options(task, args):
    """Read the file by the run's options and those given for it. Raises BadInput for another task's flag."""
    for name in ("label_column", "admissions", "subgroups"):
        if getattr(args, name) and not hasattr(task.options, name):
            raise BadInput(f"--{name.replace('_', '-')}: a run of {task.name} has no such flag")
    take_columns(task.options, args)
    for name in {"admissions", "subgroups"} & vars(task.options).keys():  # another file has its own
        setattr(task.options, name, getattr(args, name))
    if args.label_column and args.label_column != task.options.label_column:
        if len(getattr(task, "label_columns", "a")) > 1:
            raise BadInput("--label-column: this run's labels are its columns; name them alike in the file")
        task.options.label_column, task.label_columns = args.label_column, [args.label_column]


def evaluate_file(args):
    """Load the run, read the file, answer, score, write."""
    out, name = Path(args.out), Path(args.run).resolve().name
    task, answers = load_reader(args)
    take_options(task, args)
    if checkpoint.is_finished(out) or out.resolve() == Path(args.run).resolve().parent:
        raise BadInput(f"--out {out}: holds the run's own scores; name another directory")
    if out.is_dir() and any(checkpoint.is_finished(path) for path in out.iterdir()):
        raise BadInput(f"--out {out}: holds finished runs, whose scores stand there; name another directory")
    if Path(args.data).resolve().parent == out.resolve():
        raise BadInput(f"--out {out}: holds --data, which could be written over; name another directory")
    writable_directory(out)
    examples = read_labelled(task, args.data)
    earlier, seen = earlier_rows(examples), learnt_from(args.run, examples)
    say_duplicates(task, len(examples), earlier, seen)

    predictions, loss = answers(examples)
    every, new = score_all(name, task, examples, predictions, loss), None
    if seen is not None and 0 < seen.sum() < len(examples) and task.header():
        others = without(examples, predictions, seen)
        new = score_all(name, task, *others, what=" without training notes")
    if processes.is_first():
        write_all(out, name, task, examples, predictions, every, new)
        write_duplicates(out, examples, earlier, seen)
        print(f"-> {out}")


def main(argv=None):
    """Parse and evaluate."""
    args = evaluation_arguments(argv)
    same_bits(args.deterministic)
    cpu.keep_memory()
    with processes.joined(args.device):
        evaluate_file(args)


if __name__ == "__main__":
    run_script(main)
