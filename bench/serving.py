"""serve.py under load, on this machine's loopback: 1, 8 and 64 clients, each with one note on its way.

Beside it stands what one would write first: FastAPI around the transformers pipeline, with the same base run.
All servers are up; they are measured by turns. A client sends its next note when it has the last answer,
over one connection. The notes are those of the run's own file, as its task shows them to the model. Clients
and servers share the cores.
"""

import asyncio
import contextlib
import itertools
import json
import math
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from bench.shape import alternating
from cli import BadInput
from run import checkpoint
from run.engine import ENGINES
from tasks import demo

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = (1, 8, 64)
PLAIN = "plain FastAPI + pipeline"
PEER = """
import json
import sys
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel
from transformers import pipeline

directory, kind, length, port = sys.argv[1:]
cut = {"truncation": True, "max_length": int(length), "top_k": None}
words = cut if kind == "text-classification" else {}
pipe = pipeline(kind, model=directory, tokenizer=directory, device="cpu", **words)
app = FastAPI()


class Note(BaseModel):
    text: str


@app.post("/predict")
def predict(note: Note):
    return Response(json.dumps(pipe(note.text), default=float), media_type="application/json")


uvicorn.run(app, port=int(port), log_level="error", access_log=False)
"""


# --- servers --------------------------------------------------------------------------------------


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def server(*words):
    """(port, process number, what it prints, a function) of a server once it answers.

    words: its command after Python but the port.

    Raises BadInput if it ends or does not answer within ten minutes, which may have to do for the choice of
    an engine. At the end it gets SIGTERM.
    """
    port = free_port()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            [sys.executable, *map(str, words), str(port)], cwd=ROOT, stdout=told, stderr=told
        )
        try:
            wait_for_port(port, process, told)
            # told.read() would move the place at which the server writes
            yield port, process.pid, lambda: os.pread(told.fileno(), 10**5, 0).decode(errors="replace")
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()


def wait_for_port(port, process, told, seconds=600):
    """Wait until somebody listens. Raises BadInput with the last line that the process printed."""
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    told.seek(0)
    last = (told.read().decode(errors="replace").strip().splitlines() or ["?"])[-1]
    raise BadInput(f"a server to be measured did not start: {last}")


def our_server(run, *flags):
    """The words of serve.py for `server`."""
    return ["serve.py", run, "--device", "cpu", *flags, "--port"]


def plain_server(directory, run):
    """The words of the plain peer for `server`. Raises BadInput for a run that transformers cannot build."""
    if not (Path(directory) / checkpoint.PLAIN).exists():
        raise BadInput(f"--run {directory}: transformers cannot build it; the part serving needs a base run")
    return [
        "-c",
        PEER,
        Path(directory).resolve(),
        run.task.pipeline_tag,
        run.facts["arguments"]["max_length"],
    ]


# --- clients --------------------------------------------------------------------------------------


def file_of(run, folder):
    """The run's own file; of a demonstration one made in the folder."""
    path = run.facts["arguments"]["data"]
    path = str(demo.make(folder, run.task.name)[0]) if path == "demo" else path
    if not Path(path).exists():
        raise BadInput(f"{path}: the run's own notes are not there; the part serving sends them")
    return Path(path).resolve()


def texts_of(run, count):
    """Up to `count` texts of the run's own file, as the task shows them to the model."""
    with tempfile.TemporaryDirectory() as folder:
        examples = list(itertools.islice(run.task.unlabelled(str(file_of(run, folder)), Counter()), count))
    return [" ".join(e.words) if hasattr(e, "words") else e.text for e in examples]


def request_of(body, path="/predict", headers=""):
    """The bytes of a POST of JSON."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def answer_to(reader, writer, request):
    """(status, body) of what a server answers to the bytes of a request."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])
    return int(head.split(None, 2)[1]), await reader.readexactly(length)


async def one_client(port, requests, until, times):
    """Send requests one after another until a time; times gets (when it was answered, seconds) of each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in requests:
        if (began := time.perf_counter()) > until:
            break
        status, _ = await answer_to(reader, writer, request)
        if status != 200:
            raise BadInput(f"a server that is measured answers {status}")
        times.append((time.perf_counter(), time.perf_counter() - began))
    writer.close()


def cpu_seconds(process):
    """CPU seconds of a process so far, all its threads; NaN where the system does not tell (not Linux)."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(port, process, requests, clients, seconds, warm_up):
    """{notes_per_s, p50_ms, p99_ms, cpu_ms, notes} of so many clients over `seconds`, after a warm-up.

    cpu_ms: of the server, per note, with the warm-up. Other work on the machine moves it least.
    """
    times, used, begins = [], cpu_seconds(process), time.perf_counter() + warm_up
    places = [len(requests) * i // clients for i in range(clients)]  # each begins elsewhere
    orders = [itertools.cycle(requests[place:] + requests[:place]) for place in places]
    await asyncio.gather(*(one_client(port, order, begins + seconds, times) for order in orders))
    used = cpu_seconds(process) - used
    counted = [took for ended, took in times if begins <= ended <= begins + seconds]
    if len(counted) < 2:
        raise BadInput("the part serving: fewer than two answers in the time; give it more with --seconds")
    cuts = statistics.quantiles(counted, n=100, method="inclusive")
    found = {"p50_ms": 1e3 * cuts[49], "p99_ms": 1e3 * cuts[98], "cpu_ms": 1e3 * used / len(times)}
    return {"notes_per_s": len(counted) / seconds, **found, "notes": len(counted)}


# --- the part -------------------------------------------------------------------------------------


def serving_rows(directory, chain=None, seconds=10, rounds=3, clients=CLIENTS, warm_up=3, engine=None):
    """Rows, a dict each: server, clients, notes/s, p50, p99 and CPU ms, medians over the rounds.

    directory: a base run, served by both; chain: another run, served by serve.py alone. engine: --engine of
    one more server of the base run, chosen on the run's own file and kept in its directory; the row names
    what was chosen.
    """
    if not find_spec("fastapi") or not find_spec("uvicorn"):
        raise BadInput("the part serving needs pip install -r requirements-serve.lock")
    run = checkpoint.load(directory)
    requests = [request_of(json.dumps({"text": text}).encode()) for text in texts_of(run, 2000)]
    words = {PLAIN: plain_server(directory, run), f"serve.py, {Path(directory).name}": our_server(directory)}
    words |= {f"serve.py, {Path(chain).name}": our_server(chain)} if chain else {}
    table = []
    with contextlib.ExitStack() as opened:
        if engine:
            notes = file_of(run, opened.enter_context(tempfile.TemporaryDirectory()))
            flags = ["--engine", engine, "--notes", notes]
            words[f"serve.py --engine {engine}, {Path(directory).name}"] = our_server(directory, *flags)
        servers = {name: opened.enter_context(server(*each)) for name, each in words.items()}
        for count in clients:
            found = {name: [] for name in servers}
            for name in alternating(servers, rounds, f"{count} clients"):
                port, process, _ = servers[name]
                measured = load(port, process, requests, count, seconds, warm_up)
                found[name].append(asyncio.run(measured))
            for name, measured in found.items():
                medians = {key: statistics.median(each[key] for each in measured) for key in measured[0]}
                row = with_engine(name, servers[name][2]())
                table.append({"row": row, "clients": count, **medians, "seconds": seconds, "rounds": rounds})
    return table


def with_engine(name, printed):
    """A server's name with the engine that it says it has chosen."""
    found = re.findall(rf"engine: ((?:{'|'.join(ENGINES)})[^,;:]*)[,;]", printed)  # behind what it converted
    return f"{name} ({found[-1]})" if found else name


def serving_table(rows):
    """(header, cells) of serving_rows."""
    plain = {row["clients"]: row for row in rows if row["row"] == PLAIN}
    header = ["server", "clients", "notes/s", "x plain", "p50 ms", "p99 ms", "CPU ms per note", "x plain"]
    cells = [
        [
            row["row"],
            str(row["clients"]),
            f"{row['notes_per_s']:,.1f}",
            f"{row['notes_per_s'] / plain[row['clients']]['notes_per_s']:.2f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['cpu_ms']:.1f}",
            f"{plain[row['clients']]['cpu_ms'] / row['cpu_ms']:.2f}",
        ]
        for row in rows
    ]
    return header, cells
