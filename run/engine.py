"""Which engine answers for a finished run: PyTorch, ONNX Runtime or OpenVINO, and in which precision.

An engine computes logits in the model's place; all else of a run (tokens, CRF, thresholds) stays. auto times
the forms (run/forms.py) that are installed on a file's first notes, and takes the fastest that gives the same
answers as torch. int8 forms only take part once export.py has made them. The choice is kept in
RUN/engine.json, for the same CPU, threads, versions, weights and lengths of notes.
"""

import contextlib
import itertools
import statistics
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

from cli import BadInput
from data import budget_batches, collate
from fast.attention import multiplies_bf16
from files import Unwritable, read_json, write_json
from layers import has_bf16, has_int8
from run import processes
from run.forms import CONVERTERS, FORMS, Files, call_of, converts, installed
from run.inference import encode_examples, reading
from run.machine import cpu_name
from run.onnx_file import INSTALL

ENGINES = ("auto", "torch", "onnxruntime", "openvino")  # what --engine takes
LEAST = {"fp32": 1.0, "bf16": 1.0, "int8": 0.95}  # share of the first notes that must get torch's answer
ROUNDING = 1e-3  # of the largest logit: the largest difference that is fp32's rounding
GAIN = 1.05  # how much faster than torch another form must be
FIRST = 8192  # tokens of the notes that are timed


# --- do two forms answer alike? -------------------------------------------------------------------


class Said(NamedTuple):
    """What a call says of notes: the logits of every row, and every note's answer without its numbers."""

    logits: list
    said: list


class Agreement(NamedTuple):
    """How two calls differ: largest difference of a logit, share of notes with the same answer."""

    largest: float
    same: float
    size: float = 1.0  # of the largest logit, 1 at least

    def is_rounding(self):
        """Whether the logits differ by fp32's rounding alone. Of two equal ones the other may win then."""
        return self.largest <= ROUNDING * self.size  # false of NaN

    def agrees(self, precision):
        """Whether a form of this precision may answer in torch's place."""
        return self.same >= LEAST[precision] or (precision == "fp32" and self.is_rounding())


@torch.inference_mode()
def said_by(run, examples, encoded, call, tokens=None):
    """What a call says of encoded examples."""
    logits, results = [None] * len(encoded.lengths), [None] * len(encoded.lengths)
    for rows in budget_batches(encoded.lengths, tokens or 2048):
        batch = collate(encoded, rows, run.tokenizer.pad_token_id)
        found = np.asarray(call(batch["input_ids"], batch["attention_mask"]), np.float32)
        outputs = SimpleNamespace(logits=torch.from_numpy(found))
        read = run.task.read_out(run.model, batch, outputs) if run.task.plain_logits else [None] * len(rows)
        for i, (row, result) in enumerate(zip(rows, read, strict=True)):
            length = encoded.lengths[row]
            logits[row] = found[i, :length] if found.ndim == 3 else found[i]
            results[row] = result
    if not run.task.plain_logits:  # masked words: the likeliest word at every place
        return Said(logits, [found.argmax(-1).tolist() for found in logits])
    predictions = run.task.combine(examples, encoded, results)
    said = [run.task.answer(e, p) for e, p in zip(examples, predictions, strict=True)]
    return Said(logits, [without_numbers(answer) for answer in said])


def without_numbers(answer):
    """What an answer says: its label or labels, or its spans without their confidence."""
    if "spans" in answer:
        return [
            {key: value for key, value in span.items() if key != "confidence"} for span in answer["spans"]
        ]
    return answer["predicted"]


def compare(ours, theirs):
    """The Agreement of what two calls say of the same notes. NaN stays NaN; max() would drop it."""
    gaps = [np.abs(a - b).max() for a, b in zip(ours.logits, theirs.logits, strict=True)]
    same = [a == b for a, b in zip(ours.said, theirs.said, strict=True)]
    size = max(1.0, *(float(np.abs(logits).max()) for logits in ours.logits))
    return Agreement(float(np.max(gaps)), sum(same) / len(same), size)


# --- another engine in the model's place ------------------------------------------------------------


@contextlib.contextmanager
def answering(task, call):
    """While open, a task's logits are those of a call; None = the model's own."""

    def forward(model, batch):
        found = call(batch["input_ids"], batch["attention_mask"])
        return SimpleNamespace(logits=torch.from_numpy(found).float())

    if call is not None:
        task.forward = forward
    try:
        yield
    finally:
        vars(task).pop("forward", None)


# --- the choice -----------------------------------------------------------------------------------


def can_answer(form, files):
    """Whether a form can answer here: this CPU has its products, and its file is there or can be made."""
    if form.precision == "bf16" and not multiplies_bf16():
        return False
    if not form.file:
        return not has_bf16(files.run.model)  # which is this form itself
    return (form.precision != "int8" and converts()) or files.has(form)


def possible(asked, files):
    """Names of the forms that --engine may mean here, torch first. int8: those that export.py made.

    Raises BadInput if the engine is not installed, or can neither read a file that is there nor make one.
    """
    if asked != "auto" and not installed(asked):
        raise BadInput(f"--engine {asked}: is not installed; {INSTALL}")
    found = ["torch"]
    for name, form in list(FORMS.items())[1:]:
        if asked not in ("auto", form.engine) or not installed(form.engine):
            continue
        if can_answer(form, files):
            found.append(name)
        elif form.precision == "int8" and files.foreign(form):
            files.say(f"engine: {name} left out: its file is not one that you made from these weights; "
                      "make it again with export.py")  # fmt: skip
    if asked not in ("auto", "torch") and found == ["torch"]:
        raise BadInput(f"--engine {asked}: {' and '.join(CONVERTERS)} convert the model; {INSTALL}")
    return found


def notes_to_time(task, path):
    """The first notes of a file, as examples, for `chosen`."""
    return list(itertools.islice(task.unlabelled(path, Counter()), 512))


def enough_notes(run, examples, tokens=FIRST):
    """(the first of some examples, encoded) that hold about so many tokens; at least one."""
    encoded = encode_examples(run, examples)
    ends = np.cumsum(encoded.lengths)[np.flatnonzero(np.diff(encoded.owner, append=-1))]  # of each example
    count = max(1, int((ends <= tokens).sum()))
    return examples[:count], encode_examples(run, examples[:count])


def conditions(names, files):
    """What a choice depends on besides the notes: machine, versions, run, forms, exported int8 files."""
    engines = sorted({FORMS[name].engine for name in names})
    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "processes": processes.world()[1],
        "versions": {engine: installed(engine) for engine in engines},
        "run": files.key,
        "forms": names,
        "int8": {name: files.mark(FORMS[name]) for name in names if FORMS[name].precision == "int8"},
    }


def kind_of(asked, encoded, tokens):
    """The notes in words: choices differ between long and short ones, one and many."""
    length = 1 << int(np.median(encoded.lengths) - 1).bit_length()  # the next power of two
    together = "one by one" if len(encoded.lengths) == 1 else f"{tokens or 2048} tokens per batch"
    return f"{asked}, rows of {length} tokens, {together}"


def remembered(path, held, kind, names):
    """The form that was chosen under the same conditions; None if there is none."""
    try:
        facts = read_json(path)
        choice = facts["choices"][kind] if facts["on"][kind] == held else None
        return choice["engine"] if choice["engine"] in names else None
    except (BadInput, KeyError, TypeError, IndexError):  # no file, or not one of ours
        return None


def remember(path, held, kind, choice, say):
    """Keep a choice for the next call, whole; say so if that cannot be done."""
    try:
        before = read_json(path)
        facts = {name: {k: v for k, v in before[name].items() if k != kind} for name in ("on", "choices")}
    except (BadInput, KeyError, TypeError, AttributeError):
        facts = {"on": {}, "choices": {}}
    facts["on"][kind], facts["choices"][kind] = held, choice
    try:
        write_json(path, facts)
    except (Unwritable, OSError) as error:
        say(f"engine: the choice is not kept: {error}")


def time_forms(calls, batches, rounds=3):
    """{name: median milliseconds per batch} of calls, in alternating order."""
    seconds = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            began = time.perf_counter()
            for batch in batches:
                calls[name](batch["input_ids"], batch["attention_mask"])
            seconds[name].append(time.perf_counter() - began)
    return {name: 1e3 * statistics.median(each) / len(batches) for name, each in seconds.items()}


def measure(names, run, files, examples, tokens, opened):
    """({form: milliseconds per batch}, {form: Agreement}, {form: why it is left out}).

    Timed are torch and the forms that answer alike.
    """
    examples, encoded = examples
    calls, reasons = {}, {}
    for name in names:
        try:
            calls[name] = call_of(name, run, files, opened)
        except BadInput as error:
            reasons[name] = str(error)

    with reading(run.model, run.task, frozen=True):
        ours, found = said_by(run, examples, encoded, calls["torch"], tokens), {}
        for name in list(calls)[1:]:
            found[name] = compare(ours, said_by(run, examples, encoded, calls[name], tokens))
            coarser = "int8" if has_int8(run.model) else FORMS[name].precision
            if not (found[name].agrees(coarser) and np.isfinite(found[name].largest)):
                del calls[name]
                few = f"only {found[name].same:.1%} of the answers are torch's"
                reasons[name] = few if np.isfinite(found[name].largest) else "it answers NaN"
        batches = budget_batches(encoded.lengths, tokens or 2048)
        batches = [collate(encoded, rows, run.tokenizer.pad_token_id) for rows in (batches[0], batches[-1])]
        return time_forms(calls, batches), found, reasons


def pick(asked, milliseconds):
    """The fastest form that was asked for, None if there is none; with auto torch, unless one gains GAIN."""
    open_to = {n: ms for n, ms in milliseconds.items() if n != "torch" or asked in ("auto", "torch")}
    best = min(open_to, key=open_to.get, default=None)
    if asked == "auto" and milliseconds["torch"] < GAIN * milliseconds[best]:
        return "torch"
    return best


def why(name, count, milliseconds, found, reasons):
    """The choice and its reason, in a line."""
    times = ", ".join(
        f"{form} {ms:.1f}" for form, ms in sorted(milliseconds.items(), key=lambda pair: pair[1])
    )
    left = "".join(f"; {form} left out: {reason}" for form, reason in reasons.items())
    same = found[name].same if name in found else 1.0
    alike = "the same answers as torch" if same == 1.0 else f"{same:.1%} of torch's answers"
    return f"engine: {name}, with {alike} to the first {count} notes; ms per batch: {times}{left}"


def choose_form(asked, run, directory, files, examples, tokens=None):
    """The name of the form that answers for a run: remembered, or timed on examples. Says in a line why."""
    names = possible(asked, files)
    if names == ["torch"]:
        files.say(
            "engine: torch; no other is installed (requirements-engines.lock), and torch has one form here"
        )
        return "torch"
    examples, encoded = enough_notes(run, examples)
    if not len(encoded.lengths):
        return "torch"
    path, held = Path(directory) / "engine.json", conditions(names, files)
    kind = kind_of(asked, encoded, tokens)
    if name := remembered(path, held, kind, names):
        files.say(f"engine: {name}, as chosen before under the same conditions ({path})")
        return name

    with contextlib.ExitStack() as opened:
        milliseconds, found, reasons = measure(names, run, files, (examples, encoded), tokens, opened)
    name = pick(asked, milliseconds)
    if name is None:
        raise BadInput(f"--engine {asked}: {'; '.join(f'{n}: {reason}' for n, reason in reasons.items())}")
    files.say(why(name, len(examples), milliseconds, found, reasons))
    choice = {
        "engine": name,
        "notes": len(examples),
        "milliseconds per batch": {form: round(ms, 3) for form, ms in milliseconds.items()},
        "agreement": {form: agreement._asdict() for form, agreement in found.items()},
    }
    remember(path, held, kind, choice, files.say)
    return name


@contextlib.contextmanager
def chosen(asked, run, directory, examples, tokens=None, say=print):
    """While open, a run's task answers by the engine that --engine asks for. Yields the name of the form.

    examples: the first notes, unlabelled, on which auto decides. Of several processes the first one does.
    """
    if asked != "torch" and not run.task.plain_logits:
        reason = f"--task {run.task.name} needs the logits of some tokens alone, which torch gives"
        if asked != "auto":
            raise BadInput(f"--engine {asked}: {reason}")
        say(f"engine: torch; {reason}")
        asked = "torch"
    if asked == "torch" or not examples:
        yield "torch"
        return
    files = Files(run, directory, say)
    with files.open(), contextlib.ExitStack() as opened:
        name = None
        if processes.is_first():
            name = choose_form(asked, run, directory, files, examples, tokens)
            if FORMS[name].file:
                files.find(FORMS[name])
                files.keep(FORMS[name])
        name = processes.agreed(name)
        call = None if name == "torch" else call_of(name, run, files, opened)
        with answering(run.task, call):
            yield name
