"""Minutes of mixed requests against serve.py: valid ones, oversized, malformed, broken off.

python tests/soak.py results/mtsamples/seed1/fold1/base --minutes 10 --csv soak.csv

Every valid request must get the answer that predict.py gives for that note, within --tolerance and with the
same label, every other one its status in one line without a note's text, and none may be lost. The server's
memory is looked at once a second; what counts is its growth after the first tenth of the time.
"""

import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.serving import answer_to, our_server, request_of, server, texts_of
from cli import BadInput, Parser, number, run_script
from fast import cpu
from files import write_csv
from predict import predict_note
from run import checkpoint
from run.inference import reading
from run.web import resident_bytes

MARKER = "wyvukofug"  # in every faulty body; no answer may hold it
LIMITS = {"characters": 20_000, "notes": 32, "body": 10**6}
FLAGS = ["--max-characters", 20_000, "--max-notes", 32, "--max-body-mb", 1]


def faulty(generator):
    """(kind, the bytes of a request that must be refused, its status)."""
    note, text = {"text": f"{MARKER} has fever"}, f"{MARKER} "
    bodies = {
        "a long note": ({"text": text * 3000}, 413),
        "many notes": ([note] * 33, 413),
        "a long body": ({"text": text * 10**5 * generator.randint(2, 3)}, 413),
        "another field": ({**note, MARKER: 1}, 422),
        "no text": ([note, {"text": " "}], 422),
        "a number": ([note, {"text": 7}], 422),
        "a list in a list": ([[note]], 422),
        "nothing": ([], 422),
    }
    raw = {
        "no JSON": (f'{{"text": "{MARKER}'.encode(), 422),
        "no UTF-8": (b'{"text": "\xff wyvukofug"}', 422),
        "half of a pair": (b'{"text": "\\ud800 wyvukofug"}', 422),
        "deep": (b"[" * 50_000, 422),
    }
    kind = generator.choice([*bodies, *raw, "another path", "another method", "another type"])
    if kind in bodies:
        return kind, request_of(json.dumps(bodies[kind][0]).encode()), bodies[kind][1]
    if kind in raw:
        return kind, request_of(raw[kind][0]), raw[kind][1]
    body = request_of(json.dumps(note).encode(), f"/{MARKER}" if kind == "another path" else "/predict")
    if kind == "another path":
        return kind, body, 404
    if kind == "another method":
        return kind, body.replace(b"POST", b"PUT", 1), 405
    return kind, body.replace(b"application/json", b"text/plain", 1), 415


def numbers_and_words(answer):
    """An answer as ([numbers], [everything else]), in order."""
    found, words = [], []
    for value in answer.values() if isinstance(answer, dict) else answer:
        if isinstance(value, dict | list):
            more = numbers_and_words(value)
            found, words = found + more[0], words + more[1]
        else:
            (found if isinstance(value, float) else words).append(value)
    return found, words


def is_answer(got, wanted, tolerance):
    """Whether an answer is the one wanted: the same words and offsets, the numbers within the tolerance."""
    got = {name: value for name, value in got.items() if name != "row_id"}
    (numbers, words), (right, told) = numbers_and_words(got), numbers_and_words(wanted)
    near = (
        got.keys() == wanted.keys()
        and len(numbers) == len(right)
        and all(abs(a - b) <= tolerance for a, b in zip(numbers, right))
    )
    return near and (words == told or close_call(wanted, tolerance))


def close_call(wanted, tolerance):
    """Whether an answer's label hangs on less than the tolerance: then either label is right."""
    shares = sorted(wanted.get("probabilities", {}).values())
    return len(shares) > 1 and shares[-1] - shares[-2] <= 2 * tolerance


class Soak:
    """Clients that send requests until a time, and what came of them."""

    def __init__(self, port, wanted, tolerance, seed=0):
        self.port, self.wanted, self.tolerance = port, wanted, tolerance  # wanted {text: answer}
        self.texts, self.generator = list(wanted), random.Random(seed)
        self.counts, self.wrong = Counter(), []

    async def client(self, until):
        """One client; it opens a new connection where the last one was closed."""
        reader, writer = None, None
        while time.monotonic() < until:
            if writer is None or writer.is_closing() or reader.at_eof():
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            draw = self.generator.random()
            if draw < 0.02:  # broken off in the middle
                writer.write(request_of(b'{"text": "' + b"x" * 200)[:-50])
                writer.close()
                self.counts["broken off"] += 1
            elif draw < 0.75:
                await self.valid(reader, writer, self.generator.choice((0, 0, 0, 2, 8)))
            else:
                kind, request, status = faulty(self.generator)
                got, body = await self.asked(kind, reader, writer, request)
                closes = got in (413, None)
                if got is not None and (got != status or MARKER.encode() in body or body.count(b"\n")):
                    self.wrong.append(f"{kind}: {got}")
                if closes:
                    writer.close()
        if writer:
            writer.close()

    async def valid(self, reader, writer, count):
        """Send a note, or a list of `count`; compare the answers."""
        texts = self.generator.choices(self.texts, k=count or 1)
        notes = [{"text": text, "row_id": number} for number, text in enumerate(texts)]
        request = request_of(json.dumps(notes if count else notes[0]).encode())
        status, body = await self.asked("valid", reader, writer, request)
        if status is None:
            return
        answers = json.loads(body) if status == 200 else None
        answers = answers if count or answers is None else [answers]
        ids = answers and [answer["row_id"] for answer in answers]
        right = ids == list(range(len(texts))) and all(
            is_answer(answer, self.wanted[text], self.tolerance) for answer, text in zip(answers, texts)
        )
        if not right:
            self.wrong.append(f"valid: {status}")

    async def asked(self, kind, reader, writer, request):
        """(status, body), or (None, b"") of a request that was lost."""
        try:
            found = await asyncio.wait_for(answer_to(reader, writer, request), 120)
            self.counts[kind] += 1
            return found
        except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError) as error:
            self.wrong.append(f"{kind}: lost, {type(error).__name__}")
            writer.close()
            return None, b""


async def soak(port, process, wanted, seconds, clients, tolerance):
    """(Soak, [(second, resident bytes)]) of so many clients over `seconds`."""
    found, memory, began = Soak(port, wanted, tolerance), [], time.monotonic()

    async def watch():
        while time.monotonic() < began + seconds:
            memory.append((time.monotonic() - began, resident_bytes(process)))
            await asyncio.sleep(min(1, seconds / 20))

    await asyncio.gather(watch(), *(found.client(began + seconds) for _ in range(clients)))
    return found, memory


def growth(memory, seconds):
    """How much larger memory is in the last tenth of the time than in the second: 0.01 is 1% (medians)."""
    early = [size for at, size in memory if 0.1 <= at / seconds <= 0.2]
    late = [size for at, size in memory if at / seconds >= 0.9]
    return statistics.median(late) / statistics.median(early) - 1


def right_answers(run, count):
    """{text: what predict.py answers} of notes of the run's own file."""
    with reading(run.model, run.task, frozen=True, onednn=cpu.onednn_pays(run.model)):
        return {text: predict_note(run, text, False) for text in dict.fromkeys(texts_of(run, count))}


def main(argv=None):
    """Serve, soak, tell."""
    parser = Parser(prog="soak.py", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run directory")
    parser.add_argument("--minutes", type=number(float, 0.01, 10**4), default=10, help="how long (10)")
    parser.add_argument("--clients", type=number(int, 1, 1000), default=16, help="clients (16)")
    parser.add_argument("--notes", type=number(int, 1, 10**5), default=300, help="distinct notes (300)")
    parser.add_argument(
        "--tolerance", type=number(float, 0, 1), default=1e-4, help="of probabilities; int8 needs more (1e-4)"
    )
    parser.add_argument("--csv", help="file for the counts and the memory by second")
    args = parser.parse_args(argv)

    wanted, seconds = right_answers(checkpoint.load(args.run), args.notes), 60 * args.minutes
    with server(*our_server(args.run, *FLAGS)) as (port, process, _):
        found, memory = asyncio.run(soak(port, process, wanted, seconds, args.clients, args.tolerance))
    sizes, grown = [size for _, size in memory], growth(memory, seconds)
    rows = [*found.counts.items(), ("wrong or lost", len(found.wrong))]
    rows += [("MB early", round(sizes[len(sizes) // 10] / 1e6)), ("MB at most", round(max(sizes) / 1e6))]
    print("\n".join(f"{name}: {count}" for name, count in [*rows, ("growth", f"{grown:+.1%}")]))
    if args.csv:
        write_csv(args.csv, ("what", "value"), [*rows, ("growth", grown), *memory])
    if found.wrong or grown > 0.1:
        raise BadInput(f"wrong or lost: {Counter(found.wrong).most_common(5)}; growth {grown:+.1%}")


if __name__ == "__main__":
    run_script(main)
