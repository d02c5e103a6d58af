"""Faults of the machine: a killed process, two at once, a full disk, damaged files."""

import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

import files
import predict
import train
from cli import BadInput
from conftest import ROOT, read_csv, write_notes
from files import Unwritable, locked, read_json, whole_directory, write_json, write_whole
from run import checkpoint, progress
from run.cache import cached


def script(name, *words, **keywords):
    """A script in a process of its own, one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / name), *map(str, words)],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords,
    )  # fmt: skip


def small_files(megabytes):
    """For a process that cannot write larger files: the system refuses them as it does on a full disk."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(megabytes * 1e6), -1))

    return limit


def tree(directory):
    """{path: bytes} of the files below a directory, hidden ones too."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


# --- files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(Unwritable, match="a.json: cannot be written"), files.whole_file(tmp_path / "a.json"):
        raise OSError(28, "No space left on device")
    with pytest.raises(Unwritable, match="No space left"), files.writing("here"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")  # as safetensors says it
    with pytest.raises(RuntimeError, match="our own"), files.writing("here"):
        raise RuntimeError("our own")
    assert tree(tmp_path) == {"a.json": b"1\n"}


def test_a_call_that_fails_leaves_no_empty_directory(tmp_path):
    (tmp_path / "model").mkdir()
    out = ("--out", tmp_path / "new" / "out")
    call = script("train.py", "--data", tmp_path / "no.csv", "--model", tmp_path / "model", *out)
    assert "no.csv: no such file" in call.communicate()[1] and call.returncode == 2
    assert not (tmp_path / "new").exists()


def test_remains_of_killed_processes_are_removed_and_of_living_ones_kept(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for number in (ended.pid, os.getpid(), os.getppid()):
        (tmp_path / f".a.txt.{number}.tmp").mkdir()
        (tmp_path / f".a.txt.{number}.tmp/a.txt").write_text("half")
    write_whole(tmp_path / "a.txt", "whole")
    assert tree(tmp_path) == {"a.txt": b"whole", f".a.txt.{os.getppid()}.tmp/a.txt": b"half"}


def test_tensors_are_written_in_a_directory_that_the_next_call_removes(tmp_path, monkeypatch):
    beside = []

    def killed(_, temporary, *__):  # as safetensors, which writes beside the path that it is given
        temporary.with_name(".tmpXYZ").write_text("half")
        beside.extend(tree(tmp_path))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "save_file", killed)
        files.write_tensors(tmp_path / "a.safetensors", {})
    assert beside == [f".a.safetensors.{os.getpid()}.tmp/.tmpXYZ"] and not tree(tmp_path)


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path):
    with whole_directory(tmp_path / "run") as path:
        (path / "a").write_text("1")
    with pytest.raises(KeyboardInterrupt), whole_directory(tmp_path / "run") as path:
        (path / "a").write_text("2")
        raise KeyboardInterrupt
    assert tree(tmp_path) == {"run/a": b"1"}
    (tmp_path / "run").rename(tmp_path / ".run.old")  # killed between the two renames
    files.remove_remains_of(tmp_path / "run")
    assert tree(tmp_path) == {"run/a": b"1"}


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Unwritable, match="pipe: is no regular file"):
        write_whole(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


def test_a_lock_is_held_by_one_process_and_freed_when_it_is_killed(tmp_path):
    hold = "print(1, flush=True)\n time.sleep(60)"
    code = f"import time, files\nwith files.locked({str(tmp_path / 'run')!r}):\n {hold}"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(BadInput, match="run: another process is writing it"), locked(tmp_path / "run"):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path / "run"):
        assert list(tmp_path.iterdir()) == [tmp_path / ".run.lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_cell_with_a_carriage_return_comes_back(tmp_path):
    files.write_csv(tmp_path / "a.csv", ["row_id", "x"], [["a1\rb", 0.5], ["c\nd", None], ['"', "e"]])
    assert [list(row.values()) for row in read_csv(tmp_path / "a.csv")] == [
        ["a1\rb", "0.500000"],
        ["c\nd", ""],
        ['"', "e"],
    ]


# --- the disk is full


def test_training_on_a_full_disk_ends_in_one_line_and_leaves_nothing(arguments, tmp_path):
    call = [*arguments, "--epochs", "1", "--cache", tmp_path / "cache"]
    run = script("train.py", *call, "--out", tmp_path / "out", preexec_fn=small_files(0.01))
    out, err = run.communicate()
    lines = [line for line in err.splitlines() if "warning" not in line]
    assert run.returncode == 2 and len(lines) == 1, err
    assert "cannot be written (File too large)" in lines[0]
    assert "warning: progress was not saved" in out and "token ids are not kept" in out
    assert not [
        name for name in tree(tmp_path / "out") if "progress" in name or "tmp" in name or "base/" in name
    ]
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]


def test_a_prediction_on_a_full_disk_ends_in_one_line_and_goes_on_later(runs, small, tmp_path):
    out = tmp_path / "p.csv"
    call = ("predict.py", runs / "base", small[0], "--out", out)
    run = script(*call, preexec_fn=small_files(0.001))
    _, err = run.communicate()
    assert run.returncode == 2 and err.count("\n") == 1 and "p.csv" in err and "File too large" in err
    assert "are kept" not in err and not list(tmp_path.iterdir())
    run = script(*call)
    run.communicate()
    assert run.returncode == 0 and list(tree(tmp_path)) == ["p.csv"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_standard_output_is_one_line():
    code = "import cli; cli.run_script(lambda: print('x' * 10**6))"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and done.stderr == "error: No space left on device\n"


# --- progress files


@pytest.fixture
def interrupted(arguments, tmp_path, monkeypatch):
    """(call, its results directory) of a training that was interrupted in its second epoch."""
    original, count = train.collate, [0]

    def breaks(*words):
        count[0] += 1
        if count[0] == 22:
            raise KeyboardInterrupt
        return original(*words)

    call = [*arguments, "--out", str(tmp_path / "out"), "--save-minutes", "0"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "collate", breaks)
        train.main(call)
    return call, tmp_path / "out"


def damage(path, how):
    """Damage a file in one of the usual ways."""
    content = bytearray(path.read_bytes())
    changes = {
        "empty": b"",
        "cut": content[:-1],
        "header": bytes([content[0] ^ 255]) + content[1:],
        "one bit": content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
        "no position": content.replace(b'"position"', b'"positiom"'),
    }
    path.write_bytes(changes[how])


@pytest.mark.parametrize("how", ("empty", "cut", "header", "one bit", "no position"))
def test_a_damaged_progress_file_costs_one_save(interrupted, runs, capsys, how):
    call, out = interrupted
    damage(out / ".base.progress.safetensors", how)
    train.main(call)
    printed = capsys.readouterr().out
    assert "base.progress.safetensors is damaged and not used" in printed and "resuming at epoch" in printed
    whole, ours = (path / "base" / "model.safetensors" for path in (runs, out))
    assert whole.read_bytes() == ours.read_bytes()
    assert not [name for name in tree(out) if name.startswith(".")]


def test_a_damaged_progress_file_does_not_replace_the_earlier_one(interrupted, monkeypatch, capsys):
    def killed(*_):
        raise KeyboardInterrupt

    call, out = interrupted
    damage(out / ".base.progress.safetensors", "one bit")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(progress, "write_tensors", killed)
        train.main(call)
    train.main(call)
    assert capsys.readouterr().out.count("resuming at epoch") == 2


def test_a_pipe_in_the_place_of_progress_is_not_waited_for(tmp_path, capsys):
    file = progress.ProgressFile(tmp_path / "progress.safetensors", 1)
    os.mkfifo(file.path)
    file.settle({})
    assert file.found is None and "is damaged and not used" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_with_both_progress_files_damaged_training_begins_anew(interrupted, runs, capsys):
    call, out = interrupted
    for path in out.glob(".base.progress*"):
        damage(path, "one bit")
    train.main(call)
    printed = capsys.readouterr().out
    assert printed.count("is damaged and not used") == 2 and "resuming" not in printed
    assert (runs / "base/model.safetensors").read_bytes() == (out / "base/model.safetensors").read_bytes()


def test_progress_made_with_other_arguments_is_not_used(interrupted, capsys):
    call, out = interrupted
    train.main([*call, "--seed", "7"])
    assert "resuming" not in capsys.readouterr().out
    assert not [name for name in tree(out) if name.startswith(".")]


def test_a_save_that_fails_does_not_end_the_training(arguments, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise Unwritable("progress: cannot be written (No space left on device)")

    monkeypatch.setattr(progress, "write_tensors", full)
    train.main([*arguments, "--epochs", "1", "--out", str(tmp_path)])
    assert "warning: progress was not saved" in capsys.readouterr().out and (tmp_path / "base").is_dir()


# --- two processes at once


def test_two_trainings_into_one_directory(arguments, tmp_path):
    call = [*arguments, "--out", tmp_path]
    both = [script("train.py", *call) for _ in range(2)]
    said = [process.communicate() for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 2], [0, 0]), said  # one may have ended before the other began
    for (_, err), code in zip(said, codes, strict=True):
        assert "Traceback" not in err and (code == 0 or "another process is writing it" in err)
    checkpoint.load(tmp_path / "base")
    assert not [name for name in tree(tmp_path) if name.endswith((".lock", ".tmp"))]


def test_two_predictions_into_one_file(runs, small, tmp_path):
    out = tmp_path / "p.csv"
    with locked(out), pytest.raises(BadInput, match="p.csv: another process is writing it"):
        predict.predict_file(checkpoint.load(runs / "base"), small[0], out)


# --- the cache


@pytest.mark.parametrize("how", ("one bit", "cut", "empty", "absent", "pipe", "nested", "fewer"))
@pytest.mark.parametrize("name", ("ids.npy", "starts.npy", "checksums.json"))
def test_damaged_token_ids_are_made_again(tmp_path, capsys, name, how):
    from data import pack

    made = []

    def make():
        made.append(1)
        return pack([np.arange(500), np.arange(7)], None, [np.arange(500), np.arange(7)])

    cached(tmp_path, "key", make)
    path = tmp_path / "key" / name
    if how in ("absent", "pipe"):
        path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    elif how == "nested":
        path.write_text("[" * 10**5)
    elif how == "fewer":  # the labels are not named
        sums = tmp_path / "key" / "checksums.json"
        write_json(sums, {key: value for key, value in read_json(sums).items() if "token" not in key})
    elif how != "absent":
        damage(path, how)
    again = cached(tmp_path, "key", make)
    assert len(made) == 2 and again.ids.tolist() == again.token_labels.tolist() == [*range(500), *range(7)]
    assert "are damaged; they are made again" in capsys.readouterr().out
    cached(tmp_path, "key", make)
    assert len(made) == 2


def test_a_run_is_the_same_with_a_warm_cache(arguments, tmp_path):
    for out in ("cold", "warm"):
        train.main(
            [*arguments, "--epochs", "1", "--cache", str(tmp_path / "c"), "--out", str(tmp_path / out)]
        )
    cold, warm = (tree(tmp_path / out / "base") for out in ("cold", "warm"))
    assert cold.keys() == warm.keys()
    assert [name for name in cold if cold[name] != warm[name]] == ["run.json"]  # times


# --- predictions


def odd_notes(path, count=300):
    """Notes whose row ids hold carriage returns, newlines, quotes and commas."""
    ids = ("a{}\rb", "c{}\nd", 'e"{}', "f,{}", "{}", "\r{}")
    rows = [(ids[i % 6].format(i), str(i), f"pain and fever, note {i}") for i in range(count)]
    return write_notes(path, rows), [row[0] for row in rows]


@pytest.mark.parametrize("task", ("symptoms", "ner"))
def test_a_resumed_prediction_has_every_row_once_whatever_the_ids(runs, trained, tmp_path, monkeypatch, task):
    notes, ids = odd_notes(tmp_path / "notes.csv")
    run = checkpoint.load((runs if task == "symptoms" else trained["ner"]) / "base")
    out, resumed = tmp_path / "whole", tmp_path / "resumed"
    predict.predict_file(run, notes, out, chunk=32)
    original, calls = predict.predict_examples, []

    def breaks(*words):
        calls.append(words)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*words)

    monkeypatch.setattr(predict, "predict_examples", breaks)
    with pytest.raises(KeyboardInterrupt):
        predict.predict_file(run, notes, resumed, chunk=32)
    predict.predict_file(run, notes, resumed, chunk=32)
    assert resumed.read_bytes() == out.read_bytes() and len(calls) == 3 + 8
    if task == "symptoms":
        assert [row["row_id"] for row in read_csv(out)] == ids
    else:
        assert [json.loads(line)["row_id"] for line in out.read_text().splitlines()] == ids


def test_a_prediction_leaves_the_answers_of_another_alone(tmp_path):
    names = ("p", "p.csv", "p.csv.gz")
    for name in names:
        predict.Answers(tmp_path / name, "a call").open()
    predict.Answers(tmp_path / "p.csv", "another call").open()
    left = sorted(path.name for path in tmp_path.iterdir())
    own = {name: predict.Answers(tmp_path / name, "a call").directory.name for name in names}
    assert own["p"] in left and own["p.csv.gz"] in left and own["p.csv"] not in left and len(left) == 3


def test_a_bad_last_row_keeps_the_answers_before_it(runs, tmp_path, monkeypatch):
    notes = write_notes(tmp_path / "notes.csv", [(i, i, f"cough {i}") for i in range(100)])
    right = notes.read_bytes()
    notes.write_bytes(right + b'100,100,"not closed\n')
    run, out = checkpoint.load(runs / "base"), tmp_path / "p.csv"
    with pytest.raises(BadInput, match="line 102: .*; the answers to 96 notes before it are kept"):
        predict.predict_file(run, notes, out, chunk=32)
    assert not out.exists()
    notes.write_bytes(right)
    calls, original = [], predict.predict_examples
    monkeypatch.setattr(predict, "predict_examples", lambda *words: calls.append(1) or original(*words))
    predict.predict_file(run, notes, out, chunk=32)
    assert len(calls) == 1 and len(read_csv(out)) == 100


def test_predictions_are_their_owners_alone(runs, small, tmp_path):
    predict.predict_file(checkpoint.load(runs / "base"), small[0], tmp_path / "p.csv")
    for path in (tmp_path / "p.csv", runs / "base" / "predictions.csv"):
        assert path.stat().st_mode & 0o077 == 0
