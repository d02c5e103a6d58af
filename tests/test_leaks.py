"""No note leaks: marked notes go through every task, technique and fault, then every file is searched.

Searched for: the marker words, and their token ids as numbers and as text. Only the cache may hold token ids,
and only the TF-IDF baseline words; what holds rows, token ids or words is its owner's alone. Compressed
files, such as PNGs, are searched as they are.
"""

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from transformers import AutoTokenizer

import compress
from conftest import ROOT, TASK_TECHNIQUES, run_words
from tasks import TASKS

MARKERS = ("wyvukofug", "kuvyfagw")  # in no vocabulary, so the tiny models spell them letter by letter
MARKED_COLUMNS = {"TEXT", "context", "brief_title"}
# a process that takes [script, arguments, standard input or None] from a file and goes on after bad input
DRIVER = """
import importlib, io, json, os, sys
os.umask(0)  # what is not made private is for everybody
from cli import run_script
for script, words, typed in json.load(open(sys.argv[1])):
    print("---", script, *words, flush=True)
    sys.stdin, code = io.TextIOWrapper(io.BytesIO((typed or "").encode())), 0
    try:
        main = importlib.import_module(script).main
        run_script(lambda: main([str(word) for word in words]))
    except SystemExit as stop:
        code = stop.code
    print("===", script, code, flush=True)
"""


# --- the search


def forms(tokenizer):
    """{what: bytes pattern} of the markers' words and token ids."""
    found = {}
    for word in MARKERS:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(word) and tokenizer.unk_token_id not in ids
        found[word] = re.compile(word.encode(), re.IGNORECASE)
        for kind in ("<u2", "<i4", "<i8", "<f4"):
            found[f"{word} as {kind}"] = re.compile(re.escape(np.array(ids).astype(kind).tobytes()))
        numbers = rb"[^\d.]{1,12}".join(str(number).encode() for number in ids)
        found[f"{word} as numbers"] = re.compile(rb"(?<!\d)" + numbers + rb"(?!\d)")
    return found


def leaks(content, patterns):
    """What of the markers is in some bytes."""
    return [what for what, pattern in patterns.items() if pattern.search(content)]


def found_below(directory, patterns):
    """{path: what of the markers is in the file or in its name}, of the files below a directory."""
    paths = {str(path.relative_to(directory)): path for path in directory.rglob("*")}
    contents = {name: path.read_bytes() if path.is_file() else b"" for name, path in paths.items()}
    found = {name: leaks(name.encode() + contents[name], patterns) for name in paths}
    return {name: what for name, what in found.items() if what}


# --- marked notes


def marked(source, target):
    """A copy of a task's file, a CSV or a BIO file, with both markers at the beginning of every text."""
    if source.suffix == ".csv":
        with open(source, newline="") as file:
            header, *rows = csv.reader(file)
        texts = [at for at, name in enumerate(header) if name in MARKED_COLUMNS]
        for row in rows:
            for at in texts:
                row[at] = row[at] and f"{MARKERS[0].title()} {MARKERS[1]}. {row[at]}"
        with open(target, "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    else:
        words = "".join(f"{marker}\tO\n" for marker in MARKERS)
        target.write_text(re.sub(r"(\A|\n\n)((?:#.*\n)?)(?=\S)", rf"\1\2{words}", source.read_text()))
    return target


@pytest.fixture(scope="module")
def notes(small, demos, tmp_path_factory):
    """{task: (marked file, the model of the demonstration without markers)}."""
    found, places = tmp_path_factory.mktemp("notes"), {"symptoms": small, **demos}
    for task, (data, model) in places.items():
        (found / task).mkdir()
        for name in TASKS[task].demo_files[1:]:
            shutil.copy(data.parent / name, found / task)  # such as the table of admissions
        places[task] = marked(data, found / task / data.name), model
        assert places[task][0].read_bytes().lower().count(MARKERS[1].encode()) >= 200
    return places


def spoilt(notes, folder):
    """{how: a marked file of notes with one fault}."""
    header, *rows = notes.read_text().splitlines(keepends=True)
    text = f"{MARKERS[0]} {MARKERS[1]} and fever"
    row = f'1,1,1,Nursing,"{text}"\n'
    contents = {
        "quote": header + row * 2500 + f'1,1,1,Nursing,"{text}\n',
        "fields": header + row * 2500 + f"1,1,{text},{text},{text},{text}\n",
        "header": row * 3,
        "column": header.replace("TEXT", "NOTE") + row,
        "nul": header + row + f"1,1,1,Nursing,{text}\0\n",
        "class": header + "".join(row.replace("1,1,1", f"{i},{i},1") for i in range(30)),
        "utf8": None,
    }
    for how, content in contents.items():
        content = (header + row + row).encode() + b"\xff" if content is None else content.encode()
        (folder / f"{how}.csv").write_bytes(content)
    (folder / "tags.tsv").write_text(f"{MARKERS[0]}\tO\n{MARKERS[1]}\t{MARKERS[1]}\n")
    (folder / "tabs.tsv").write_text(f"{MARKERS[0]}\tO\n{MARKERS[0]}\t{MARKERS[1]}\tO\n")
    return {path.stem: path for path in folder.iterdir()}


VARIANTS = (
    "pruning --structured --name structured",
    "distillation --student-layers 1 --student-width 16 --augment 0.3 --name student",
)


def good_calls(notes, out):
    """Yield (script, its words, standard input) of every task, technique and script; all end well."""
    first_and_last = {task: dict.fromkeys((names[0], names[-1])) for task, names in TASK_TECHNIQUES.items()}
    techniques = {**first_and_last, "symptoms": (*sorted({*compress.TECHNIQUES} - {"lora"}), *VARIANTS)}
    for task in TASKS:
        for technique in techniques[task]:
            yield "train", run_words(notes, task, out / task, "--epochs 1 --technique", technique), None
        if task != "mlm":
            file, columns = (
                (notes[task][0], "context") if task == "trials" else (notes["symptoms"][0], "TEXT")
            )
            words = [out / task / "base", file, "--out", out / f"{task}.answers", "--text-column", columns]
            yield "predict", words, None
            yield "predict", [out / task / "base", "-"], " ".join(MARKERS) + " and fever"
        words = [out / task / "base", "--data", notes[task][0], "--out", out / f"{task}-external"]
        yield "evaluate", words, None
        if TASKS[task].baselines:
            yield "baselines", run_words(notes, task, out / task), None
        yield "report", [out / task], None
    vectors = ["--embeddings", out / "vectors.npy"]
    yield "predict", [out / "symptoms/base", notes["symptoms"][0], *vectors], None
    yield "benchmark", [out / "symptoms", "--rounds", 2], None
    (out.parent / "grid.json").write_text('{"base": "--technique base", "int8": "--technique quantization"}')
    grid = f"--grid {out.parent}/grid.json --seeds 1 --rounds 1 --epochs 1"
    yield "sweep", run_words(notes, "symptoms", out / "sweep", grid), None
    if importlib.util.find_spec("onnxscript") and importlib.util.find_spec("onnxruntime"):
        words = ["--to", "onnx", "--out", out / "a.onnx", "--count", 8, "--notes", notes["symptoms"][0]]
        yield "export", [out / "symptoms/base", *words], None
        words = [notes["symptoms"][0], "--engine", "auto", "--out", out / "engine.answers"]
        yield "predict", [out / "symptoms/base", *words], None


def bad_calls(notes, out, faults):
    """Yield (script, its words, standard input) of calls that must be refused."""
    for how, path in faults.items():
        task = "ner" if path.suffix == ".tsv" else "symptoms"
        bad = {task: (path, notes[task][1])}
        yield "train", run_words(bad, task, out / "bad", "--epochs 1"), None
        if task == "symptoms" and how != "class":
            yield "predict", [out / "symptoms/base", path, "--out", out / f"{how}.answers"], None
    for words in ("--label-column context", "--label-column context --label-separator .", "--row-column no"):
        yield "train", run_words(notes, "trials", out / "bad", words), None
    yield "train", run_words(notes, "symptoms", out / "bad", "--symptoms fever,zebra"), None
    words = ["--data", notes["trials"][0], "--out", out / "bad", "--label-column", "context"]
    yield "evaluate", [out / "trials/base", *words], None
    yield "predict", [out / "symptoms/base", "-"], " \n"


# --- the tests


def killed_training(notes, out, environment):
    """Start a training and kill it after its first save; what it printed."""
    words = run_words(notes, "symptoms", out, "--epochs 100 --save-minutes 0 --name killed")
    process = subprocess.Popen(
        [sys.executable, "-c", "import os, train; os.umask(0); train.main()", *words],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while not (out / ".killed.progress.earlier.safetensors").exists() and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    return process.communicate()[0]


@pytest.fixture(scope="module")
def written(notes, tmp_path_factory):
    """(where all was written, what was printed)."""
    home, inputs = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("faults")
    (home / "tmp").mkdir()
    places = {"HOME": home, "TMPDIR": home / "tmp", "XDG_CACHE_HOME": home / "cache", "PYTHONPATH": ROOT}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(path) for name, path in places.items()}}
    faults = spoilt(notes["symptoms"][0], inputs)
    every = [*good_calls(notes, home / "out"), *bad_calls(notes, home / "out", faults)]
    (inputs / "calls.json").write_text(json.dumps(every, default=str))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, inputs / "calls.json"],
        cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    printed = done.stdout + killed_training(notes, home / "out", environment)
    assert done.returncode == 0, printed[-3000:].decode()
    return home, printed


@pytest.fixture(scope="module")
def patterns(notes):
    """What to search for, {what: pattern}, of all tokenizers."""
    return {
        f"{task}: {what}": pattern
        for task, (_, model) in notes.items()
        for what, pattern in forms(AutoTokenizer.from_pretrained(model)).items()
    }


def test_the_calls_did_what_they_should(written):
    home, printed = written
    codes = re.findall(rb"=== (\w+) (\d)", printed)
    expected = [b"0"] * len([*good_calls(dict.fromkeys(TASKS, ("", "")), home / "out")])
    assert [code for _, code in codes[: len(expected)]] == expected, printed.decode()
    assert {code for _, code in codes[len(expected) :]} == {b"2"} and len(codes) > len(expected) + 15
    assert b"Traceback" not in printed


def test_no_file_but_the_cache_and_no_output_holds_a_marker(written, patterns):
    home, printed = written
    found = found_below(home, patterns)
    cached = {name for name in found if name.startswith("cache/compressed-clinical-bert/")}
    assert cached and all("/ids.npy" in name for name in cached)  # the search finds what is there
    fitted = {f"out/{task}/tfidf/baseline.json" for task in TASKS if "tfidf" in TASKS[task].baselines}
    assert found.keys() == cached | fitted
    assert leaks(printed, patterns) == []


def test_what_holds_rows_or_token_ids_is_its_owners_alone(written):
    home, _ = written
    rows = [
        "*predictions.csv",
        "*.answers",
        "*.jsonl",
        "*.parts",
        "*.part",
        "duplicates.csv",
        "*.npy",
        "*.ids.csv",
    ]
    rows += ["train_keys.safetensors", "baseline.json"]
    private = [path for pattern in rows for path in (home / "out").rglob(pattern)]
    assert {path.suffix for path in private} >= {
        ".csv",
        ".answers",
        ".parts",
        ".part",
        ".npy",
        ".safetensors",
        ".json",
    }
    private += (home / "cache/compressed-clinical-bert").rglob("*")
    assert [str(path) for path in private if path.stat().st_mode & 0o077] == []
    # progress files are weights and moments: with the weights' mode; no row and no token id is in them
    assert list((home / "out").glob(".killed.progress*.safetensors"))


@pytest.mark.parametrize("form", ("word", "title", "<u2", "<i4", "<i8", "<f4", "json", "csv", "name"))
def test_a_planted_leak_is_found(form, notes, patterns, tmp_path):
    ids = AutoTokenizer.from_pretrained(notes["ner"][1])(MARKERS[1], add_special_tokens=False)["input_ids"]
    content = {
        "word": f"x{MARKERS[1]}x".encode(),
        "title": MARKERS[1].upper().encode(),
        "json": json.dumps({"ids": [7, *ids, 7]}, indent=2).encode(),
        "csv": ",".join(map(str, ids)).encode(),
        "name": b"",
    }
    written = content[form] if form in content else b"1" + np.array([7, *ids, 7]).astype(form).tobytes()
    name = MARKERS[1] if form == "name" else "a.bin"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / name).write_bytes(written)
    (tmp_path / "c").write_bytes(b"fever")
    assert list(found_below(tmp_path, patterns)) == [f"b/{name}"]
