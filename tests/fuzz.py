"""Damaged and hostile input: each is read or refused in one line, soon and in little memory.

python tests/fuzz.py --count 20000 --seed 1
python tests/fuzz.py --count 50000 --seed 1 --parts readers,flags --out fuzz.csv

    runs      run directories with a changed file, loaded, asked a note, reported on
    readers   every task's files, and notes for predict.py, with changed bytes, cells, rows; and text that
              hypothesis draws, read as CSV (compared with Python's csv), BIO, ADMISSIONS
    caches    token ids with a changed file: what comes back is what was kept
    progress  one or both of a training's two progress files changed: it goes on from a whole one, or anew
    flags     command lines of every script, drawn by hypothesis, as far as the first costly step

It makes its own good files, prints a summary of each part and exits 1 on a failure. An input is made from
random.Random("part-seed-number"), so any one can be made again. Inputs are read in a process that is watched:
each may take 10 s and 2 GB, and must end as run_script ends: well, or with one line and exit code 2.
"""

import argparse
import contextlib
import copy
import csv
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from unittest import mock

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from hypothesis import strategies as st

import benchmark
import compress
import export
import predict
import report
import sweep
import train
from cli import BadInput, Parser, run_script
from data import Table, pack
from fast.optimizer import LazyAdamW
from files import checksum_of, write_csv
from fuzz_edits import draw, edit_bytes, edit_cells, edit_json, exchange, zip_up
from run import arguments, checkpoint, plots
from run.cache import cached
from run.progress import Position, ProgressFile
from run.results import print_data
from tasks import TASKS, bio, demo, task
from tasks.admissions import read_admissions

SECONDS, MEGABYTES = 10, 2000
NOTE = "Patient reports chest pain and fever; denies cough."


# --- runs --------------------------------------------------------------------------------------------

REPORTED = ("run.json", "predictions.csv")  # files that the report reads


def make_runs(place):
    """Run directories of several tasks and techniques on small demonstrations."""
    found = []
    chains = {
        "symptoms": ("base", "lowrank", "lora --lora-keep", "pruning --structured", "quantization"),
        "ner": ("base --crf",), "trials": ("base --threshold auto",), "mlm": ("base",),
        "readmission": ("quantization",),
    }  # fmt: skip
    for name, techniques in chains.items():
        data, model = demo.make(place / name, name, notes=400, hidden=32, layers=2)
        length = f"--{TASKS[name].length_flag.replace('_', '-')} {32 if name == 'mlm' else 64}"
        places = ["--data", str(data), "--model", str(model), "--out", str(place / name / "out")]
        for words in techniques:
            call = f"--task {name} --epochs 1 --lr 2e-3 --rank 4 --cache none {length} --technique {words}"
            train.main([*call.split(), *places])
        found += sorted(p for p in (place / name / "out").iterdir() if checkpoint.is_finished(p))
    return found


def good_runs(_, runs):
    """The run directories; undamaged, every one is accepted."""
    for run in runs:
        checkpoint.load(run)
    return runs


def damaged_run(sources, rng, place):
    """A run directory with a changed file."""
    run, source = place / "run", rng.choice(sources)
    shutil.copytree(source, run)
    path = rng.choice(sorted(p for p in run.iterdir() if p.is_file()))
    how = rng.choices((edit_json, edit_bytes, exchange), (10, 5, 1))[0]
    if how is edit_json and path.suffix != ".json":
        path = rng.choice(sorted(run.glob("*.json")))
    for _ in range(rng.choice((1, 1, 1, 2, 3)) if how is edit_json else 1):
        how(path, rng)
    if path.name in REPORTED:
        shutil.copytree(source, place / "base")  # which the report compares it with
    weights = checkpoint.weights_path(run)
    if path == weights and weights.is_file() and not weights.is_symlink() and rng.random() < 0.7:
        facts = json.loads((run / "run.json").read_text())  # a stranger can count a checksum, too
        if weights.stat().st_size < 10**9:
            (run / "run.json").write_text(json.dumps({**facts, "checksum": checksum_of(weights)}))
    return f"{how.__name__} {path.name}", lambda: use_run(place, path.name)


def use_run(directory, name):
    """Load a run and ask it one note; report on it if the changed file is one that the report reads."""
    if name in REPORTED:
        with mock.patch.object(plots, "save_figure", lambda figure, _: plots.pyplot().close(figure)):
            report.main([str(directory)])
    run = checkpoint.load(directory / "run")
    if run.task.header():
        json.dumps(predict.predict_note(run, NOTE, False))


# --- readers -----------------------------------------------------------------------------------------

# {directory of good files: (task, its file, options)}
READ = {
    "symptoms": ("symptoms", "NOTEEVENTS.csv", ({}, {"top_k": 4}, {"balance": True})),
    "trials": ("trials", "stop_reasons.csv", ({}, {"multi_label": True}, {"label_separator": ";"})),
    "columns": ("trials", "sets.csv", ({"label_column": "cough,fever"},)),
    "readmission": ("readmission", "NOTEEVENTS.csv", ({}, {"days": 1000.0})),
    "ready": ("readmission", "ready.csv", ({},)),
    "ner": ("ner", "train.tsv", ({}, {"entity_types": "Symptoms"})),
    "mlm": ("mlm", "trials.csv", ({},)),
}  # fmt: skip
CELL = st.one_of(
    st.text(max_size=9), st.text(' ab1,";\r\n\0', max_size=9), st.sampled_from(("0", "1", "fever"))
)
DATE = st.one_of(st.datetimes().map(str), st.text("0123456789-: TZ+.", max_size=20), CELL)
KIND = st.sampled_from(("URGENT", "ELECTIVE", "newborn", ""))
ADMISSION = st.tuples(st.sampled_from("12"), st.sampled_from("123456789"), DATE, DATE, KIND, CELL)
TAGGED = st.one_of(
    st.tuples(CELL, st.sampled_from(("O", "B-a", "I-a", "I-b", "B-", ""))).map("\t".join), CELL
)


def written(rows):
    """Rows as a CSV's text."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue()


def compare_with_csv(path):
    """Read a file by Table. Raises AssertionError if Python's csv reads other rows, or no rows, out of it."""
    try:
        table = Table(path, False)
        ours = [(table.line, list(map(row.__getitem__, range(len(row))))) for row in table]
    except BadInput:
        ours = None
    text, line, rows = path.read_bytes().decode("utf-8-sig"), 1, []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    with contextlib.suppress(csv.Error):
        for row in reader:
            rows += [(line, row)] if row else []
            line = reader.line_num + 1
        good = rows and "\0" not in text and len({len(row) for _, row in rows}) == 1
        assert (rows[1:] if good else None) == ours, "Table and csv read other rows"
        return
    assert ours is None, "Table reads what csv refuses"


ADMISSION_COLUMNS = ("SUBJECT_ID", "HADM_ID", "ADMITTIME", "DISCHTIME", "ADMISSION_TYPE", "DEATHTIME")
TEXTS = {  # what is drawn: (strategy of a file's text, what reads it)
    "CSV text": (st.text(' ab,"\r\n\0\u00e9', max_size=60), compare_with_csv),
    "CSV": (st.lists(st.lists(CELL, min_size=2, max_size=2), max_size=9).map(written), compare_with_csv),
    "BIO": (st.lists(TAGGED, max_size=12).map("\n".join), lambda path: list(bio.read_bio(path))),
    "ADMISSIONS": (
        st.lists(ADMISSION, max_size=9).map(lambda rows: written([ADMISSION_COLUMNS, *rows])),
        lambda path: read_admissions(Table(path, False), 30.0),
    ),
}


def good_files(place, runs):
    """(directory of good files, {task: one of its runs})."""
    for name, (task_name, file, _) in READ.items():
        directory = place / name
        directory.mkdir()
        if name == task_name:
            TASKS[name].write_demonstration(directory, 60)
        else:
            header = ["TEXT", "SUBJECT_ID", "label" if name == "ready" else "cough", "fever"]
            rows = [(f"pain and fever {i}", i // 2, i % 2, int(i % 3 == 0)) for i in range(60)]
            write_csv(directory / file, header, rows)
    loaded = map(checkpoint.load, runs)
    return place, {run.task.name: run for run in loaded}


def damaged_file(sources, rng, place):
    """A changed file of a task, or of notes to predict, or one whose text is drawn."""
    good, runs = sources
    kind = rng.choice(("drawn", "drawn", "read", "read", "predicted"))
    if kind == "drawn":
        what, (strategy, read) = rng.choice(list(TEXTS.items()))
        (place / "drawn").write_bytes(draw(strategy, rng).encode())
        return f"drawn {what}", lambda: read(place / "drawn")

    # which files, which of them is changed, and how
    run = rng.choice(list(runs.values()))
    notes = "trials" if run.task.name in ("trials", "mlm") else "symptoms"
    name = rng.choice(list(READ)) if kind == "read" else notes
    task_name, file, options = READ[name]
    files = Path(shutil.copytree(good / name, place / "files"))
    path = files / file if rng.random() < 0.7 else rng.choice(sorted(files.iterdir()))
    how = rng.choices((edit_bytes, edit_cells, exchange), (5, 10, 1))[0]
    zipped = rng.random()
    if zipped < 0.1 and how is edit_bytes:
        path = zip_up(path)
    how(path, rng, *([range(2, 8)] if how is exchange else []))
    if zipped > 0.9 and how is not exchange:
        path = zip_up(path)

    main, done = next(files.glob(f"{file}*"), files / file), f"{how.__name__} {name}/{path.name}"
    if kind == "predicted":
        call = (run, str(main), place / "predictions", None, 16)
        return f"{done}, {run.task.name}", lambda: predict.predict_file(*call)
    split = rng.choice((1.0, 0.5)), 0.2, rng.choice((0.2, str(good / name / file))), 1
    kept = rng.choice((100, task.MAX_TEXT))
    made = TASKS[task_name], rng.choice(options), run.tokenizer, kept
    return done, lambda: read_task(*made, str(main), *split)


def read_task(cls, options, tokenizer, kept, *split):
    """Read a task's file as far as token ids. kept: characters of text in memory."""
    ours = cls(**options)
    with mock.patch.object(task, "MAX_TEXT", kept):
        splits, facts = ours.load(*split)
    print_data(ours, facts)
    for members in splits.values():
        ours.encode(members, tokenizer, 64, progress=False)


# --- caches ------------------------------------------------------------------------------------------

ROWS = pack([np.arange(500), np.arange(7)], token_labels=[np.arange(500), np.arange(7)])


def good_cache(place, _):
    """A directory of token ids."""
    cached(place, "key", lambda: ROWS)
    return place


def damaged_cache(source, rng, place):
    """A changed file of token ids."""
    shutil.copytree(source, place / "cache")
    path = rng.choice(sorted((place / "cache" / "key").iterdir()))
    how = rng.choice((edit_json, edit_bytes, exchange) if path.suffix == ".json" else (edit_bytes, exchange))
    kinds = (
        [(0, 1, 2, 4, 5, 6, 7)] if how is exchange else []
    )  # without a terabyte, which has a checksum, too
    how(path, rng, *kinds)
    return f"{how.__name__} {path.name}", lambda: use_cache(place / "cache")


def use_cache(directory):
    """Raises AssertionError if other rows come out of the cache, or if it is not mended."""
    made = []
    for _ in range(2):
        rows = cached(directory, "key", lambda: made.append(1) or ROWS)
        for name in ("ids", "starts", "owner", "token_labels"):
            np.testing.assert_array_equal(getattr(rows, name), getattr(ROWS, name))
    assert len(made) < 2, "the damaged files stay"


# --- progress files ----------------------------------------------------------------------------------

PROGRESS = ".base.progress.safetensors"


def small_training(directory):
    """(a model, its optimizer, the progress file of its training in a directory)."""
    model = torch.nn.Linear(6, 4)
    file = ProgressFile(directory / PROGRESS, 1)
    file.settle({"lr": 0.1})
    return model, LazyAdamW(model.parameters(), lr=0.1), file


def good_progress(place, _):
    """(directory of two progress files, {step: the weights then})."""
    model, optimizer, file = small_training(place)
    weights = {}
    for step in (1, 2):
        model(torch.ones(1, 6)).sum().backward()
        optimizer.step()
        position = Position(step=step)
        position.keep({"Epoch": step}, model)
        file.save(position, model, optimizer)
        weights[step] = model.weight.detach().clone()
    return place, weights


def damaged_progress(sources, rng, place):
    """One or both progress files changed."""
    directory, weights = sources
    shutil.copytree(directory, place / "out")
    newest, older = place / "out" / PROGRESS, place / "out" / PROGRESS.replace("ss.", "ss.earlier.")
    chosen, done = rng.choice(([newest], [older], [newest, older])), []
    for path in chosen:
        how = rng.choices((edit_bytes, exchange), (5, 1))[0]
        how(path, rng)
        done.append(f"{how.__name__} {path.name}")
    steps = {2} if newest not in chosen else {1, 2} if older not in chosen else {0, 1, 2}
    return ", ".join(done), lambda: resume(place / "out", weights, steps)


def resume(directory, weights, steps):
    """Raises AssertionError if the training goes on with other weights, or not from one of the steps."""
    model, optimizer, file = small_training(directory)
    step = file.load(model, optimizer).step
    assert step in steps, f"it goes on from step {step}"
    assert not step or torch.equal(model.weight, weights[step]), "with other weights"


# --- flags -------------------------------------------------------------------------------------------

SCRIPTS = {  # what reads the command line, and one that is accepted
    "train.py": (train.main, "--data notes.csv --out out"),
    "predict.py": (predict.main, "run notes.csv --out p.csv"),
    "report.py": (report.main, "results"),
    "sweep.py": (sweep.plan_sweep, "--data notes.csv --out out --seeds 1,2"),
    "benchmark.py": (benchmark.main, "run --out out"),
    "export.py": (export.main, "run --to onnx --out out.onnx"),
}
WORDS = (
    "", " ", "-", "--", "-1", "0", "1", "2", "1e309", "nan", "-inf", "9" * 5000, "\uff11", "1_0", "a,b",
    ",", "a,a", "1,1", "TEXT", "text,TEXT", "CATEGORY", ".", "..", "../x", "x" * 300, "a\nb", "\udcff",
    "%s", "{base}", "{}", "@", "@nowhere", "@.", "@words", "demo", "symptoms", "ner", "trials",
    "base+base", "lora+lowrank", "pruning+quantization", "notes.csv", "run", "run/run.json", "results",
    "out", "fever,cough", "a b",
)  # fmt: skip


class Found(Exception):
    """Holds a script's parser."""


def parser_of(main):
    """The parser that a script makes."""

    def stop(self, *_, **__):
        raise Found(self)

    with mock.patch.object(Parser, "parse_known_args", stop):
        try:
            main([])
        except Found as found:
            return found.args[0]


def command_lines(main, good):
    """A strategy of a script's command lines: the good one, and some flags with any values."""
    actions = [action for action in parser_of(main)._actions if action.option_strings]
    if main is sweep.plan_sweep:  # train.py's come after its own
        actions += [action for action in parser_of(train.main)._actions if action.option_strings]
    text = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=6)

    def words(action):
        usual = [str(action.default), *map(str, action.choices or ())]
        value = st.one_of(st.sampled_from(usual), st.sampled_from(WORDS), st.integers().map(str),
                          st.floats().map(str), text)  # fmt: skip
        flag = st.sampled_from(action.option_strings)
        joined = st.tuples(flag, value).map(lambda pair: ["=".join(pair)])
        return flag.map(lambda name: [name]) if action.nargs == 0 else st.tuples(flag, value) | joined

    flags = st.lists(st.sampled_from(actions).flatmap(words), max_size=3)
    return st.tuples(st.just(good.split()), flags).map(lambda parts: sum(map(list, parts[1]), parts[0]))


def good_place(place, runs):
    """(directory with notes, a run, a results directory; the run; {script: strategy of command lines})."""
    TASKS["symptoms"].write_demonstration(place, 60)
    (place / "NOTEEVENTS.csv").rename(place / "notes.csv")
    shutil.copytree(runs[0], place / "run")
    (place / "results").mkdir()
    (place / "results" / "base").symlink_to("../run")
    strategies = {name: command_lines(*words) for name, words in SCRIPTS.items()}
    return place, checkpoint.load(runs[0]), strategies


def odd_command(sources, rng, place):
    """A command line of a script, perhaps with words dropped, exchanged or put into an @ file."""
    directory, run, strategies = sources
    shutil.copytree(directory, place, symlinks=True, dirs_exist_ok=True)
    name = rng.choice(list(SCRIPTS))
    words = list(draw(strategies[name], rng))
    if rng.random() < 0.2:
        at = rng.randrange(len(words))
        words[at : at + 1] = rng.choice(([], [rng.choice(WORDS)]))
    if rng.random() < 0.2:
        cut = rng.randrange(len(words) + 1)
        lines = " ".join(words[cut:]).replace("\n", " ")
        (place / "words").write_bytes(lines.encode(errors="surrogatepass"))
        if rng.random() < 0.5:
            edit_bytes(place / "words", rng)
        words[cut:] = ["@words"]

    def call():
        with cheap(run), contextlib.chdir(place):
            SCRIPTS[name][0](words)

    return f"{name} {words}"[:500], call


@contextlib.contextmanager
def cheap(run):
    """Stand-ins for what takes long once the flags are checked: models, plots, timing, ONNX."""
    load = checkpoint.load
    measured = ("macs", "p50_ms", "p95_ms", "notes_per_s", "length", "batch", "rounds", "device")

    def load_known(directory):
        known = str(directory) in ("run", "results/base")
        return run._replace(task=copy.deepcopy(run.task)) if known else load(directory)

    def part(args, words, out):
        return benchmark.Measured([{"a": 1}], (["a"], [["1"]]), "none")

    stands_in = {
        (checkpoint, "load"): load_known, (train, "run"): train_until_notes,
        (report, "draw_all"): lambda *_: [],
        (benchmark, "PARTS"): dict.fromkeys(benchmark.PARTS, part),
        **{(export, name): lambda: None for name in LIBRARIES},
        (benchmark, "measure_runs"): lambda runs, *_: dict.fromkeys(runs, dict.fromkeys(measured, 1.0)),
        (export, "write_checked"): lambda run, args, name, out: nothing_written(out or Path("run/a.onnx")),
        (sys, "stdin"): io.TextIOWrapper(io.BytesIO(NOTE.encode())),
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for (where, name), new in stands_in.items():
            stack.enter_context(mock.patch.object(where, name, new))
        yield


LIBRARIES = ("onnx_library", "onnx_runtime", "openvino_library", "nncf_library")  # whether they are installed


def nothing_written(path):
    """What export.write_checked gives, without a model: the path of an empty file."""
    for part in {path, path.with_suffix(".bin")}:
        part.write_bytes(b"")
    return path


def train_until_notes(planned):
    """What train.run does before it loads a model."""
    args = planned.args
    planned.announce()
    if args.model != "demo":
        checkpoint.refuse_source(Path(args.model), args.model, TASKS[args.task], "--model")
    ours = TASKS[args.task](**arguments.options_of(TASKS[args.task], args))
    if args.data != "demo":
        print_data(ours, ours.load(args.data, args.fraction, args.validation, args.test, args.split_seed)[1])
    compress.build(args.parts, vars(args))


# --- running -----------------------------------------------------------------------------------------


class Part(NamedTuple):
    """What is fuzzed: its share of the inputs, and two functions."""

    share: float
    make: object  # (directory, runs) -> good sources
    damage: object  # (sources, random numbers, directory) -> (what was done, a call that reads it)


PARTS = {
    "runs": Part(0.04, good_runs, damaged_run),
    "readers": Part(0.4, good_files, damaged_file),
    "caches": Part(0.15, good_cache, damaged_cache),
    "progress": Part(0.16, good_progress, damaged_progress),
    "flags": Part(0.25, good_place, odd_command),
}


def ending(call):
    """How a script that makes this call ends: 'accepted', 'refused', or what is wrong."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")  # as a terminal, which takes no half of a character
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_script(call)
        return "accepted"
    except SystemExit as stop:
        code = stop.code
    except Exception:
        return traceback.format_exc(limit=-5)
    err.seek(0)
    lines = [line for line in err.read().splitlines() if not line.startswith("warning: ")]
    if not code:  # --help
        return "accepted"
    one_line = code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    return "refused" if one_line else f"exit code {code} with {lines}"


def peak_megabytes():
    """The most memory that this process has had so far, a fork's from what its parent had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def outcome(part, sources, number):
    """(what was done, how it ended, CPU seconds, peak MB) of an input."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory, "a", "b")  # what is written beside it goes, too
        place.mkdir(parents=True)
        done, call = PARTS[part].damage(sources, random.Random(number), place)
        began = time.process_time()  # of this process alone, whatever else runs here
        said = ending(call)
        took = time.process_time() - began
    return done, said, took, peak_megabytes()


def work(part, sources, numbers, pipe):
    """In a process of its own: send the outcome of each input, its memory beyond what this one began with."""
    torch.set_num_threads(1)
    before = peak_megabytes()
    for number in numbers:
        *told, peak = outcome(part, sources, number)
        pipe.send((*told, peak - before))


def watched(part, sources, numbers):
    """Yield (number, outcome) of inputs from a process that is watched, and replaced if it hangs or dies."""
    numbers = list(numbers)
    while numbers:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        words = part, sources, numbers, theirs
        worker = multiprocessing.get_context("fork").Process(target=work, args=words)
        worker.start()
        theirs.close()
        alive = True
        while numbers and alive:
            number, fault = numbers.pop(0), ("", "", SECONDS, 0)
            try:
                alive = ours.poll(6 * SECONDS)
                result = ours.recv() if alive else (*fault[:1], "hangs", *fault[2:])
            except EOFError:
                alive, result = False, (*fault[:1], "the process died", *fault[2:])
            yield number, result
            alive = alive and result[3] < MEGABYTES
        worker.kill()
        worker.join()


def fuzz(part, runs, count, seed):
    """(row of figures, failures) of so many inputs of a part. runs: good run directories."""
    counts, failures, slowest, peak = Counter(), [], 0.0, 0.0
    with tempfile.TemporaryDirectory() as place:
        with contextlib.redirect_stdout(io.StringIO()):
            sources = PARTS[part].make(Path(place), runs)
        numbers = (f"{part}-{seed}-{i}" for i in range(count))
        for number, (done, said, took, megabytes) in watched(part, sources, numbers):
            slowest, peak = max(slowest, took), max(peak, megabytes)
            if said in ("accepted", "refused") and (took > SECONDS or megabytes > MEGABYTES):
                said = f"{said} after {took:.1f} s, with {megabytes:.0f} MB"
            if said not in ("accepted", "refused"):
                failures.append(f"{number}: {done}: {said}")
                said = "failures"
            counts[said] += 1
    figures = {name: counts[name] for name in ("accepted", "refused", "failures")}
    return {"part": part, "inputs": count, **figures, "cpu_s_max": slowest, "peak_mb": round(peak)}, failures


def main():
    """Make runs, fuzz the parts, print a summary of each; exit code 1 on a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="inputs, dealt out to the parts (2000)")
    parser.add_argument("--seed", type=int, default=1, help="seed (1)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {','.join(PARTS)} (all)")
    parser.add_argument("--out", help="CSV to write the figures to (none)")
    args = parser.parse_args()
    rows, parts = [], args.parts.split(",")
    whole = sum(PARTS[part].share for part in parts)
    with tempfile.TemporaryDirectory() as place:
        with contextlib.redirect_stdout(io.StringIO()):
            runs = make_runs(Path(place))
        for part in parts:
            count = round(args.count * PARTS[part].share / whole)
            row, failures = fuzz(part, runs, count, args.seed)
            print(*(text.encode("ascii", "backslashreplace").decode() for text in failures), sep="\n\n")
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            rows.append(row)
    if args.out:
        write_csv(args.out, list(rows[0]), [row.values() for row in rows])
    sys.exit(any(row["failures"] for row in rows))


if __name__ == "__main__":
    main()
