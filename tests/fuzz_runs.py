"""Damaged and hostile run directories: each is loaded or refused in one line, soon and in little memory.

python tests/fuzz_runs.py --count 20000 --seed 1

It makes its own runs, prints a summary and exits 1 on a failure. A mutant is a copy of a good run directory
with one file changed by random.Random(seed-number), so any one can be made again. Mutants are read in a
process that is watched: each may take 10 s and 2 GB. What is loaded answers a note, and what the report reads
is reported on.
"""

import argparse
import copy
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
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

import predict
import report
from cli import BadInput
from files import checksum_of
from run import checkpoint

SECONDS, MEGABYTES = 10, 2000
REPORTED = ("run.json", "predictions.csv")  # files that the report reads
NOTE = "Patient reports chest pain and fever; denies cough."
VALUES = (
    None, True, False, -1, 0, 1, 7, 10**6, 10**9, 10**20, 1.5, -1e308, float("nan"), float("inf"), "", "a/b",
    "../../../../etc/passwd", "/dev/zero", "x" * 10_000, "9" * 5000, "\0", "\ud800", "evil.py", [], {}, [[]],
    [10**8], [None], [-1] * 100, list(range(2000)), {"a": {"b": 1}}, {"": None}, ["a"] * 3, "bert", "albert",
    "distilbert", "quantization", "lowrank", "pruning",
)  # fmt: skip
KEYS = ("auto_map", "quantization_config", "attn_implementation", "tie_word_embeddings", "is_decoder",
        "num_labels", "num_hidden_layers", "heads", "ranks", "names", "thresholds", "chat_template",
        "fast_tokenizer_files", "init_inputs", "added_tokens_decoder", "model_max_length")  # fmt: skip


# --- edits -------------------------------------------------------------------------------------------


def places(value):
    """(container, key) of everything within a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from places(inner)


def edit_json(path, rng):
    """Delete, change, exchange or add something at a random depth of a JSON file."""
    whole = {"": json.loads(path.read_text())}
    found = list(places(whole))
    container, key = rng.choice(found if rng.random() < 0.5 else found[: 1 + len(found) // 20])
    how = rng.randrange(5)
    if how == 0 and container is not whole:
        del container[key]
    elif how == 1:
        container[key] = copy.deepcopy(rng.choice([c[k] for c, k in found]))
    elif how == 2 and isinstance(container[key], dict):
        container[key][rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
    elif how == 3 and type(container[key]) is int:
        container[key] = rng.choice((-container[key], container[key] * 1000, container[key] + 1, 10**7))
    else:
        container[key] = copy.deepcopy(rng.choice(VALUES))
    path.write_text(json.dumps(whole[""]))


def edit_bytes(path, rng):
    """Flip, cut, insert or repeat bytes, more often near the beginning, where headers are."""
    content = bytearray(path.read_bytes())
    reach = min(len(content), rng.choice((9, 300, 5000, len(content))))
    at, how = rng.randrange(reach or 1), rng.randrange(6)
    if how == 0:
        for _ in range(rng.choice((1, 1, 10))):
            content[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    elif how == 1:
        del content[at:]
    elif how == 2:
        content[at:at] = rng.randbytes(rng.choice((1, 8, 1000)))
    elif how == 3:
        del content[at : at + rng.choice((1, 8, 1000))]
    elif how == 4:
        content[at:at] = rng.choice((b"9" * 30, b"[" * 100_000, b"\xff\xfe", b'"', b"\n,,,\n", b"-", b"{}"))
    else:
        content[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"99999999"))
    path.write_bytes(content)


def exchange(path, rng):
    """Put something else in a file's place."""
    content = path.read_bytes()
    path.unlink()
    how = rng.randrange(8)
    if how == 0:
        os.mkfifo(path)
    elif how == 1:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/stdin", "/proc/kmsg", "/etc/hostname", path.name)))
    elif how == 2:
        path.mkdir()
    elif how == 3:
        with open(path, "wb") as file:
            file.write(content)
            file.truncate(rng.choice((10**8, 10**12)))
    elif how == 4:
        path.write_bytes(rng.choice((b"", b"[" * 10**6, b"[[]," * 10**6 + b"0]", b'"' + b"a" * 10**7 + b'"')))
    elif how == 5:
        path.write_bytes(content * 2)
    elif how == 6:
        path.write_bytes(rng.randbytes(1000))


def make_mutant(sources, number, directory):
    """A damaged copy of one of the run directories, in directory/run. Returns (what was done, the file)."""
    rng = random.Random(number)
    run, source = directory / "run", rng.choice(sources)
    shutil.copytree(source, run)
    path = rng.choice(sorted(p for p in run.iterdir() if p.is_file()))
    how = rng.choices((edit_json, edit_bytes, exchange), (10, 5, 1))[0]
    if how is edit_json and path.suffix != ".json":
        path = rng.choice(sorted(run.glob("*.json")))
    for _ in range(rng.choice((1, 1, 1, 2, 3)) if how is edit_json else 1):
        how(path, rng)
    if path.name in REPORTED:
        shutil.copytree(source, directory / "base")  # which the report compares it with
    weights = checkpoint.weights_path(run)
    if path == weights and weights.is_file() and not weights.is_symlink() and rng.random() < 0.7:
        facts = json.loads((run / "run.json").read_text())  # a stranger can count a checksum, too
        if weights.stat().st_size < 10**9:
            (run / "run.json").write_text(json.dumps({**facts, "checksum": checksum_of(weights)}))
    return f"{how.__name__} {path.name}", path.name


# --- reading them ------------------------------------------------------------------------------------


def use(directory, name):
    """Load a mutant and ask it one note; report on it if the changed file is one that the report reads."""
    if name in REPORTED:
        report.report_data(directory)
    run = checkpoint.load(directory / "run")
    if run.task.header():
        json.dumps(predict.predict_note(run, NOTE, False))


def outcome(sources, number):
    """(what was done, 'accepted', 'refused' or a traceback, CPU seconds, peak MB) of a mutant."""
    with tempfile.TemporaryDirectory() as place:
        done, name = make_mutant(sources, number, Path(place))
        began, said = time.process_time(), "accepted"  # of this process alone, whatever else runs here
        try:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                use(Path(place), name)
        except BadInput as error:
            said = "refused" if len(str(error).splitlines()) == 1 else f"several lines: {error}"
        except Exception:
            said = traceback.format_exc(limit=-4)
        took = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    return done, said, took, peak


def work(sources, numbers, pipe):
    """In a process of its own: send the outcome of each mutant."""
    torch.set_num_threads(1)
    for number in numbers:
        pipe.send(outcome(sources, number))


def watched(sources, numbers):
    """Yield (number, outcome) of mutants from a process that is watched, and replaced if it hangs or dies."""
    numbers = list(numbers)
    while numbers:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        worker = multiprocessing.get_context("fork").Process(target=work, args=(sources, numbers, theirs))
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


def fuzz(sources, count, seed):
    """(Counter of 'accepted', 'refused', 'failed'; failures; slowest seconds; peak MB) of so many mutants."""
    for source in sources:
        checkpoint.load(source)  # undamaged, every one is accepted
    counts, failures, slowest, peak = Counter(), [], 0.0, 0.0
    for number, (done, said, took, megabytes) in watched(sources, (f"{seed}-{i}" for i in range(count))):
        slowest, peak = max(slowest, took), max(peak, megabytes)
        if said in ("accepted", "refused") and (took > SECONDS or megabytes > MEGABYTES):
            said = f"{said} after {took:.1f} s, with {megabytes:.0f} MB"
        if said not in ("accepted", "refused"):
            failures.append(f"{number}: {done}: {said}")
            said = "failed"
        counts[said] += 1
    return counts, failures, slowest, peak


def make_runs(place):
    """Run directories of several tasks and techniques on small demonstrations."""
    from tasks import TASKS, demo
    from train import main as train

    found = []
    chains = {
        "symptoms": ("base", "lowrank", "lora --lora-keep", "pruning --structured", "quantization"),
        "ner": ("base --crf",), "trials": ("base --threshold auto",), "mlm": ("base",),
        "readmission": ("quantization",),
    }  # fmt: skip
    for task, techniques in chains.items():
        data, model = demo.make(place / task, task, notes=400, hidden=32, layers=2)
        length = f"--{TASKS[task].length_flag.replace('_', '-')} {32 if task == 'mlm' else 64}"
        for words in techniques:
            call = f"--task {task} --epochs 1 --lr 2e-3 --rank 4 --cache none {length} --technique {words}"
            train(
                [
                    *call.split(),
                    "--data",
                    str(data),
                    "--model",
                    str(model),
                    "--out",
                    str(place / task / "out"),
                ]
            )
        found += sorted(p for p in (place / task / "out").iterdir() if checkpoint.is_finished(p))
    return found


def main():
    """Make runs, fuzz them, print a summary; exit code 1 on a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="mutants (2000)")
    parser.add_argument("--seed", type=int, default=1, help="seed (1)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        with redirect_stdout(StringIO()):
            sources = make_runs(Path(place))
        counts, failures, slowest, peak = fuzz(sources, args.count, args.seed)
    print(*(text.encode("ascii", "backslashreplace").decode() for text in failures), sep="\n\n")
    print(
        f"{args.count} inputs of {len(sources)} runs, seed {args.seed}: {counts['accepted']} accepted, "
        f"{counts['refused']} refused, {counts['failed']} failures; "
        f"slowest {slowest:.1f} CPU seconds, peak {peak:.0f} MB"
    )
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
