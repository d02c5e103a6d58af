"""The HTTP side of serve.py: what is asked and answered, limits, errors, figures, two pages. Needs FastAPI.

No note's text is written or sent back: errors name a place and a rule in one line, logs and figures know
paths of ours and nothing behind a "?", and FastAPI's telemetry is off, whatever the environment asks for.
"""

import asyncio
import functools
import hmac
import json
import math
import re
import sys
import time
from collections import Counter
from html import escape
from pathlib import Path
from string import Template
from typing import Annotated, NamedTuple

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, FailFast, Field, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from run.page import source_hash
from run.service import Closed, Failed, Full, place_of

FRAME = Path(__file__).with_name("web.html")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # bounds of the histogram of times
MOST = 2**63 - 1  # of a row id that is a number
DISCARDED = 8  # times the longest body: so much of a longer one is read and dropped before it is refused
NO_TELEMETRY = dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)
HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


class Limits(NamedTuple):
    """What a request may hold: characters per note, notes, bytes of the body."""

    characters: int = 100_000
    notes: int = 256
    body: int = 8 * 10**6


class SentNote(BaseModel):
    """A note: its text, and a row id of yours that comes back with the answer."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True, title="Note")
    text: str
    row_id: Annotated[str, Field(max_length=200)] | Annotated[int, Field(ge=-MOST, le=MOST)] | None = None


ONE = TypeAdapter(SentNote)


@functools.cache
def list_of(most):
    """What reads a list of at most so many notes. It stops at the first fault: each one costs memory."""
    return TypeAdapter(Annotated[list[SentNote], Field(max_length=most), FailFast()])


# --- a body -> notes ------------------------------------------------------------------------------


async def read_body(request, most):
    """The body of a request. Raises HTTPException 413 if it is longer than `most` bytes.

    A longer one is read on for a while and dropped: a client that is still sending would not see the answer.
    """
    body, length = bytearray(), 0
    async for piece in request.stream():
        length += len(piece)
        if length <= most:
            body += piece
        elif length > DISCARDED * most:
            break
    if length > most:
        raise HTTPException(413, f"the body has more than {most} bytes; send fewer or shorter notes")
    return bytes(body)


def parse_notes(body, limits):
    """(notes, whether the body is a list of them). Raises HTTPException 413 or 422, a line without text."""
    many = body.lstrip()[:1] == b"["
    try:
        notes = list_of(limits.notes).validate_json(body) if many else [ONE.validate_json(body)]
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "too_long":
            raise HTTPException(413, f"more than {limits.notes} notes; send them in parts") from None
        raise HTTPException(422, fault_of(first, many)) from None
    if not notes:
        raise HTTPException(422, "the list holds no note")
    for number, note in enumerate(notes):
        where = f"note {number}" if many else "the note"
        if len(note.text) > limits.characters:
            told = f"{where} has {len(note.text)} characters; at most {limits.characters}"
            raise HTTPException(413, told)
        if not note.text.strip():
            raise HTTPException(422, f"{where} has no text")
    return notes, many


def fault_of(first, many):
    """The first fault of a body, in one line: its place, by names of ours and numbers, and the rule."""
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['msg'].partition(': ')[2]}"
    at = [part for part in first["loc"] if isinstance(part, int) or part in SentNote.model_fields]
    where = f"note {at.pop(0)}" if many and at and isinstance(at[0], int) else "the note"
    rule = {
        "missing": "is missing",
        "extra_forbidden": "has a field that is neither text nor row_id",
        "string_too_long": "is longer than 200 characters",
    }.get(first["type"])
    kinds = {"text": "is no text", "row_id": "is no text or whole number below 2^63"}
    rule = rule or kinds.get(at[0] if at else None, "is no JSON object")
    return ", ".join([where, *map(str, at[:1])]) + f" {rule}"


# --- figures --------------------------------------------------------------------------------------


class Figures:
    """What is counted for /metrics. Paths that are not ours count as one."""

    def __init__(self, service, paths):
        self.service, self.paths = service, paths
        self.requests, self.seconds, self.total = Counter(), [0] * (len(SECONDS) + 1), 0.0

    def path(self, scope):
        """The path of a request if it is one of ours."""
        return scope["path"] if scope["path"] in self.paths else "other"

    def add(self, path, status, seconds):
        """Count a request."""
        self.requests[path, status] += 1
        if path == "/predict" and status == 200:
            self.seconds[next((i for i, s in enumerate(SECONDS) if seconds <= s), len(SECONDS))] += 1
            self.total += seconds

    def lines(self):
        """The lines of Prometheus' text format."""
        service, totals = self.service, self.service.totals
        yield from metric("requests_total", "counter", "Requests by path and status.")
        for (path, status), count in sorted(self.requests.items()):
            yield f'serve_requests_total{{path="{path}",status="{status}"}} {count}'
        yield from metric(
            "predict_seconds", "histogram", "Seconds from request to answer, of those answered 200."
        )
        for i, bound in enumerate((*SECONDS, math.inf)):
            shown = "+Inf" if bound == math.inf else f"{bound:g}"
            yield f'serve_predict_seconds_bucket{{le="{shown}"}} {sum(self.seconds[: i + 1])}'
        yield f"serve_predict_seconds_sum {self.total:.6f}"
        yield f"serve_predict_seconds_count {sum(self.seconds)}"
        for name, kind, words, value in (
            ("notes_total", "counter", "Notes answered.", totals["notes"]),
            ("tokens_total", "counter", "Tokens read, padding not counted.", totals["tokens"]),
            ("batches_total", "counter", "Batches read.", totals["batches"]),
            ("model_seconds_total", "counter", "Seconds in the model.", round(totals["seconds"], 6)),
            ("failed_total", "counter", "Requests that failed in the model.", totals["failed"]),
            ("held_notes", "gauge", "Notes taken and not yet answered.", service.held),
            ("held_notes_limit", "gauge", "Notes that may be held.", service.most),
            ("resident_memory_bytes", "gauge", "Memory of the process, where known.", resident_bytes()),
        ):
            yield from metric(name, kind, words)
            yield f"serve_{name} {value}"


def metric(name, kind, words):
    """The two lines before the values of a metric."""
    return f"# HELP serve_{name} {words}", f"# TYPE serve_{name} {kind}"


def resident_bytes(process="self"):
    """Resident memory of a process, bytes; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


class Watched:
    """Around the app: counts and times requests, prints a line for each if `log`, sets HEADERS.

    What fails inside was answered with 500; standard error gets its place in the code, not its words.
    """

    def __init__(self, app, figures, hosts=None, log=False):
        self.app, self.figures, self.hosts, self.log = app, figures, hosts, log

    def answering(self, scope):
        """The app that answers a request: ours, or a refusal where it names a host that is not in `hosts`."""
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
        if self.hosts is None or re.sub(r":\d+$", "", host) in self.hosts:
            return self.app
        return JSONResponse({"detail": SAID[421]}, 421)

    async def __call__(self, scope, receive, send):
        """An ASGI app."""
        if scope["type"] != "http":
            return
        began, status, path = time.perf_counter(), None, self.figures.path(scope)
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope  # uvicorn drops the body

        async def watched(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            await self.answering(scope)(asked, receive, watched)
        except asyncio.CancelledError:  # the time for a clean end is over
            if status is None:
                await JSONResponse({"detail": SAID[503]}, 503)(scope, receive, watched)
        except Exception as error:  # its words could quote a note
            print(f"error: {place_of(error)}; a request is answered with 500", file=sys.stderr, flush=True)
        finally:
            seconds = time.perf_counter() - began
            self.figures.add(path, status := status or 499, seconds)
            if self.log:
                now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
                print(f"{now} {scope['method'][:7]} {path} {status} {1e3 * seconds:.1f} ms", flush=True)


async def nobody_there(request, error):
    """The answer to a client that has gone, as nginx counts it."""
    return Response(status_code=499)


async def internal_error(request, error):
    """The answer to a request that met a fault of ours."""
    return JSONResponse({"detail": "internal error"}, 500)


# --- the app --------------------------------------------------------------------------------------

SAID = {
    401: "no bearer token, or a wrong one",
    413: "too many notes, a note too long, or a body too long",
    415: "the body is not announced as application/json",
    421: "asked under another name than localhost; let the proxy send Host: localhost, or use --token-file",
    422: "the body is not a note or a list of notes",
    429: "too many notes wait; try again after the seconds in Retry-After",
    500: "the model could not read a note",
    503: "the server takes no more requests",
}


def build_app(service, facts, limits, token=None, hosts=None, log=False):
    """The ASGI app. facts: what GET /metadata answers; token: bytes, or None if none is asked for.

    hosts: names under which it may be asked, None = any. A page from elsewhere whose name was made to lead
    here (DNS rebinding) asks under that name.
    """
    app = FastAPI(
        title="compressed-clinical-bert",
        version=str(facts.get("checksum", ""))[:16],
        docs_url=None,  # FastAPI's page loads scripts from elsewhere
        redoc_url=None,
        telemetry=NO_TELEMETRY,
        redirect_slashes=False,
        exception_handlers={ClientDisconnect: nobody_there, Exception: internal_error},
    )
    paths = {"/", "/docs", "/openapi.json", "/health", "/metadata", "/metrics", "/predict"}
    figures = Figures(service, paths)

    def admit(request):
        """Raise HTTPException 401 if a token is asked for and another or none came."""
        scheme, _, sent = request.headers.get("authorization", "").partition(" ")
        told = sent.strip().encode("utf-8", "replace") if scheme.lower() == "bearer" else b""
        if token and not hmac.compare_digest(told, token):
            raise HTTPException(401, SAID[401], {"WWW-Authenticate": "Bearer"})

    add_predict(app, service, limits, admit)
    add_facts(app, service, facts, figures, admit)
    add_pages(app)
    if token:
        ask_for_token(app.openapi())
    return Watched(app, figures, hosts, log)


def ask_for_token(schema):
    """Say in a schema, in place, which paths want the bearer token."""
    schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for methods in schema["paths"].values():
        for told in methods.values():
            if "401" in told["responses"]:
                told["security"] = [{"token": []}]


def add_predict(app, service, limits, admit):
    """POST /predict."""
    schema = {"oneOf": [ONE.json_schema(), {"type": "array", "items": ONE.json_schema()}]}
    told = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    responses = {status: {"description": text} for status, text in SAID.items()}

    @app.post("/predict", openapi_extra=told, responses=responses)
    async def predict(request: Request) -> Response:
        """What predict.py answers: one note -> an object, a list of notes -> a list in the same order."""
        admit(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "send JSON, with the header Content-Type: application/json")
        notes, many = parse_notes(await read_body(request, limits.body), limits)
        try:
            found = await service.answer([note.text for note in notes])
        except Full:
            raise HTTPException(429, SAID[429], {"Retry-After": "1"}) from None
        except Closed:
            raise HTTPException(503, SAID[503]) from None
        except Failed:
            raise HTTPException(500, SAID[500]) from None
        answers = [{"row_id": note.row_id, **answer} for note, answer in zip(notes, found, strict=True)]
        return Response(json.dumps(answers if many else answers[0]), media_type="application/json")


def add_facts(app, service, facts, figures, admit):
    """GET /health, /metadata and /metrics."""

    @app.get("/health", responses={503: {"description": SAID[503]}})
    async def health() -> Response:
        """Whether requests are taken: 200 or 503."""
        alive = service.alive
        return JSONResponse({"status": "ok" if alive else "closing"}, 200 if alive else 503)

    @app.get("/metadata", responses={401: {"description": SAID[401]}})
    async def metadata(request: Request) -> Response:
        """The facts of the model card."""
        admit(request)
        return JSONResponse(facts)

    @app.get("/metrics", responses={401: {"description": SAID[401]}}, response_class=PlainTextResponse)
    async def metrics(request: Request):
        """Counts, times and memory in Prometheus' text format."""
        admit(request)
        text = "".join(f"{line}\n" for line in figures.lines())
        return Response(text, media_type="text/plain; version=0.0.4")


def add_pages(app):
    """GET / and /docs."""
    frame = Template(FRAME.read_text(encoding="utf-8"))
    hashes = {f"{tag}_hash": source_hash(frame.template, tag) for tag in ("style", "script")}
    page = frame.substitute(hashes)

    @app.get("/", include_in_schema=False)
    async def note_page() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        body = docs_html(app.openapi())
        return HTMLResponse(re.sub(r"(?s)<main>.*</main>", lambda _: f"<main>{body}</main>", page))


def docs_html(schema):
    """What /openapi.json says, to read: each path with its answers, then the body of /predict."""
    lines = ["<h1>What this server answers</h1>"]
    for path, methods in schema["paths"].items():
        for method, told in methods.items():
            lines.append(f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(told['description'])}</p><dl>")
            for status, answer in sorted(told["responses"].items()):
                lines.append(f"<div><dt>{status}</dt><dd>{escape(answer['description'])}</dd></div>")
            lines.append("</dl>")
            if "requestBody" in told:
                lines += [
                    "<p>The body:</p>",
                    f"<pre>{escape(json.dumps(told['requestBody'], indent=2))}</pre>",
                ]
    lines.append('<p>The same for programs: <a href="openapi.json">openapi.json</a>. '
                 'To try it by hand: <a href="./">paste a note</a>.</p>')  # fmt: skip
    return "\n".join(lines)
