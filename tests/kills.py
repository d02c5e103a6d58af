"""Kill scripts at random moments, start them again, compare every file with an uninterrupted run's.

python tests/kills.py                      some kills of each kind, a few minutes
python tests/kills.py --kills 200 --csv kills.csv

The scripts run in forks of this process, which has imported torch but not used it: a fork starts at once. Of
two processes one is killed, and the other ended as torchrun would end it. In run.json times are not compared.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import evaluate
import predict
import report
import sweep
import train
from cli import run_script
from compress import TECHNIQUES
from files import write_csv
from tasks import TASKS, demo

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TIMES = ("finished", "train_seconds", "run_seconds", "tokens_per_s")  # of run.json, which no two runs share
USUAL = ["--lr", "2e-3", "--epochs", "2", "--precision", "fp32", "--save-minutes", "0", "--deterministic"]
TWO = "base quantization"
CHAIN = "distillation+lowrank+pruning+quantization"


# --- scripts in forks ---------------------------------------------------------------------------------


def fork(main, words, log, rank=0, count=1, port=0):
    """The number of a process that runs main(words); what it prints goes to a file."""
    child = os.fork()
    with contextlib.suppress(OSError):  # one of the two is first; a shell is killed with what it runs
        os.setpgid(child, child)
    if child:
        return child
    if count > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in places.items()}}
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        run_script(lambda: main(words))
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(main, words, log, count):
    """The numbers of the processes of a script."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [fork(main, words, log, rank, count, port) for rank in range(count)]


def wait(numbers, seconds):
    """The exit codes of processes, negative for a signal; those that take longer are killed."""
    codes, until = {}, time.monotonic() + seconds
    while len(codes) < len(numbers):
        for number in numbers:
            if number not in codes:
                found, status = os.waitpid(number, os.WNOHANG)
                if found:
                    codes[number] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            for number in set(numbers) - codes.keys():
                os.killpg(number, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[number] for number in numbers]


def interrupt(numbers, how, after, generator):
    """Send a signal to one of the processes after some seconds. Whether it was still at work."""
    victim = generator.choice(numbers)
    time.sleep(after)
    found, status = os.waitpid(victim, os.WNOHANG)
    if found:
        wait([number for number in numbers if number != victim], 60)
        return False
    os.killpg(victim, how)
    wait([victim], 60)
    time.sleep(0.3)
    others = [number for number in numbers if number != victim]
    for number in others:
        if os.waitpid(number, os.WNOHANG)[0] == 0:
            os.killpg(number, signal.SIGTERM)
            wait([number], 60)
    return True


# --- what is compared ---------------------------------------------------------------------------------


def contents(directory):
    """{path: bytes} of all files below a directory but logs; run.json and sweep.csv without times."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.suffix != ".log" and "cache" not in path.parts:
            found[str(path.relative_to(directory))] = comparable(path)
    return found


def comparable(path):
    """The bytes of a file, without what differs from run to run: times, and the paths of other runs."""
    if path.name == "run.json":
        record = json.loads(path.read_text())
        return {key: value for key, value in record.items() if key not in (*TIMES, "start", "teacher")}
    timed = path.name.startswith("sweep") or (path.parent / "benchmark.csv").exists()
    if timed or path.suffix == ".png":
        return path.exists()
    return path.read_bytes()


def differences(ours, theirs):
    """Names of the files that differ, or that only one of two directories has."""
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


# --- cases --------------------------------------------------------------------------------------------


def cases(place):
    """{name: (main, words with {out}, processes that it can have)}; what they read is made in `place`."""
    found = {}
    for task in TASKS:
        with_demo = demo.make(place / task, task, notes=420, hidden=32, layers=2)
        length = f"--{TASKS[task].length_flag.replace('_', '-')}"
        words = ["--task", task, "--data", with_demo[0], "--model", with_demo[1], length, "32", *USUAL]
        techniques = (*TECHNIQUES, CHAIN) if task == "symptoms" else ("base", "lora")
        for technique in techniques:
            own = [*words, "--technique", technique, "--rank", "4", "--out", "{out}"]
            own += ["--crf"] if task == "ner" else []
            found[f"train.py {task} {technique}"] = (train.main, own, (1, 2))

    runs, notes = place / "runs", place / "symptoms" / "NOTEEVENTS.csv"
    base = found["train.py symptoms base"][1]
    finish(train.main, [str(word).format(out=runs) for word in base], place)
    found["predict.py"] = (predict_in_small_chunks, [runs / "base", notes, "--out", "{out}/p.csv"], (1, 2))
    vectors = [runs / "base", notes, "--embeddings", "{out}/v.npy"]
    found["predict.py --embeddings"] = (predict_in_small_chunks, vectors, (1, 2))
    words = [runs / "base", "--data", notes, "--deterministic", "--out", "{out}/external"]
    found["evaluate.py"] = (evaluate.main, words, (1, 2))
    found["report.py"] = (report_of_a_copy, [runs, "{out}/runs"], (1,))
    grid = place / "grid.json"
    grid.write_text(json.dumps({"base": "--technique base", "int8": "--technique quantization"}))
    cut = base.index("--technique")
    common = ["--grid", grid, "--seeds", "1", "--rounds", "1", *base[:cut], *base[cut + 2 :]]
    found["sweep.py"] = (sweep.main, common, (1,))
    found["run_all.sh"] = (run_all, [*base[:cut], *base[cut + 2 :]], (1,))
    return found


def predict_in_small_chunks(words):
    """predict.py with 32 notes per chunk, so that a small file has several."""
    original = predict.answer_file
    predict.answer_file = lambda run, path, out, chunk, *given: original(run, path, out, 32, *given)
    predict.main([*words, "--deterministic"])


def report_of_a_copy(words):
    """report.py, which writes beside the runs that it reads."""
    if not Path(words[1]).exists():
        shutil.copytree(words[0], f"{words[1]}.half")
        os.rename(f"{words[1]}.half", words[1])
    report.main([words[1]])


def run_all(words):
    """run_all.sh, two techniques."""
    os.execvpe("bash", ["bash", str(ROOT / "run_all.sh"), *words], {**os.environ, "TECHNIQUES": TWO})


def finish(main, words, place, count=1):
    """Run a script to its end. Returns the seconds that it took."""
    began, log = time.monotonic(), place / "last.log"
    codes = wait(start(main, [str(word) for word in words], log, count), 600)
    if any(codes):
        raise SystemExit(f"exit codes {codes}:\n{log.read_text()[-3000:]}")
    return time.monotonic() - began


def trial(main, words, count, seconds, place, generator, tally):
    """Start a script, kill it at a random moment, up to three times; then run it to its end. Its files."""
    out = Path(tempfile.mkdtemp(dir=place))
    words = [str(word).format(out=out) for word in words]
    for _ in range(generator.randint(1, 3)):
        how = generator.choice(SIGNALS)
        running = start(main, words, out / "killed.log", count)
        if not interrupt(running, how, generator.uniform(0, seconds), generator):
            break
        tally["kills"] += 1
        tally[how.name] += 1
    finish(main, words, out, count)
    files = contents(out)
    shutil.rmtree(out)
    return files


def build_kill_parser():
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--kills", type=int, default=20, help="fewest kills in all (20)")
    add("--seed", type=int, default=1, help="seed of moments and signals (1)")
    add("--only", default="", help="cases whose name holds one of these, joined by commas (all)")
    add("--csv", default=None, help="file for the counts (none)")
    return parser


def main(argv=None):
    """Kill, compare, print a table; exit code 1 if any file differs."""
    args = build_kill_parser().parse_args(argv)
    place, generator = Path(tempfile.mkdtemp()), random.Random(args.seed)
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    chosen = [
        (name, main, words, count)
        for name, (main, words, counts) in cases(place).items()
        for count in counts
        if any(part in name for part in args.only.split(","))
    ]
    tallies, references, faults = {}, {}, 0
    while sum(tally["kills"] for tally in tallies.values()) < args.kills:
        for name, script, words, count in chosen:
            key, tally = (name, count), tallies.setdefault((name, count), Counter())
            if key not in references:
                out = Path(tempfile.mkdtemp(dir=place))
                took = finish(script, [str(word).format(out=out) for word in words], out, count)
                references[key] = took, contents(out)
            seconds, expected = references[key]
            files = trial(script, words, count, seconds, place, generator, tally)
            tally["runs"] += 1
            if wrong := differences(files, expected):
                faults += 1
                tally["unequal"] += 1
                print(f"UNEQUAL: {name}, {count} processes, {tally['runs']}: {wrong}", flush=True)
        print(f"{sum(tally['kills'] for tally in tallies.values())} kills, {faults} unequal", flush=True)

    header = ("script", "processes", "runs", "kills", *(how.name for how in SIGNALS), "unequal")
    rows = [(*key, *(tally[column] for column in header[2:])) for key, tally in tallies.items()]
    if args.csv:
        write_csv(args.csv, header, rows)
    for row in (header, *rows):
        print(*row, sep="\t")
    shutil.rmtree(place)
    return faults


if __name__ == "__main__":
    sys.exit(bool(main()))
