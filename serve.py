"""A finished run as a web service: python serve.py RUN_DIR

    POST /predict   {"text": "...", "row_id": "7"}, or a list of such notes -> what predict.py answers
    GET /           a page to paste a note into
    GET /health  /metadata  /metrics (Prometheus)  /docs  /openapi.json

Notes of requests that arrive together are read in one batch. It listens on this machine alone unless --host
says otherwise, and speaks plain HTTP. No note's text is written anywhere. SIGTERM or Ctrl-C ends it, after
it has answered what it has taken. Needs pip install -r requirements-serve.lock; see docs/serving.md.
"""

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import compress
from cli import BadInput, Parser, number, run_script
from fast import cpu
from layers import device_of
from run import checkpoint, engine
from run.card import card_facts
from run.inference import pick_device
from run.machine import same_bits
from run.service import serving

FLUSH_SECONDS = 60  # how long requests may take to end after a signal


def web_libraries():
    """(uvicorn, run.web). Raises BadInput if FastAPI or uvicorn are not installed."""
    try:
        import uvicorn

        from run import web
    except ImportError as error:
        raise BadInput(f"{error.name} is not installed; pip install -r requirements-serve.lock") from None
    return uvicorn, web


def read_token(path):
    """The bearer token in a file, bytes; None without a file. Raises BadInput for one that is no secret."""
    if path is None:
        return None
    try:
        token = Path(path).read_bytes().strip()
    except OSError as error:
        raise BadInput(f"--token-file {path}: cannot be read ({error.strerror})") from None
    if len(token) < 16 or not all(33 <= byte <= 126 for byte in token):
        raise BadInput(f"--token-file {path}: holds no token; write 16 or more letters and digits into it")
    if Path(path).stat().st_mode & 0o077:
        print(f"warning: {path} can be read by others; chmod 600 it")
    return token


@contextlib.contextmanager
def listening_at(host, port):
    """Within, what the system refuses is BadInput."""
    try:
        yield
    except (OSError, OverflowError, TypeError, ValueError) as error:  # the last two: no name of a host
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"--host {host} --port {port}: cannot listen there ({reason})") from None


def reserve(host, port):
    """A socket with this address that nobody can reach until it listens.

    Raises BadInput if the system refuses it, as where another listens already. Of two that are reserved the
    second to listen is refused, then.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with listening_at(host, port), contextlib.ExitStack() as opened:
        reserved = opened.enter_context(socket.socket(family))
        if family == socket.AF_INET6:  # so "::" takes IPv6 alone
            reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if os.name == "posix":  # elsewhere it would let others take the address, too
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # for the sockets that it accepts, too: without it each answer waits 40 ms for the head's receipt
        reserved.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reserved.bind((host, port))
        opened.pop_all()  # closed by whoever asked for it
    return reserved


def load_run(args):
    """The run, on its device. Raises BadInput for one whose task has no answers to give."""
    run = checkpoint.load(args.run)
    if not run.task.labels:
        raise BadInput(
            f"{args.run}: a run of {run.task.name} has no answers to serve; use another task's run"
        )
    if args.calibrated and not run.task.temperature:
        raise BadInput(
            f"--calibrated: {args.run} has no temperature; tasks with classes have, if trained anew"
        )
    run.task.calibrated = args.calibrated
    run.model.to(pick_device("cpu" if compress.cpu_only(run.compression) else args.device))
    return run


def serve(args):
    """Load the run, choose what answers, listen, answer until a signal comes."""
    uvicorn, web = web_libraries()
    limits = web.Limits(args.max_characters, args.max_notes, args.max_body_mb * 10**6)
    if args.max_held < limits.notes:
        raise BadInput(f"--max-held {args.max_held}: less than the {limits.notes} notes of one request")
    token, run, reserved = read_token(args.token_file), load_run(args), reserve(args.host, args.port)
    facts = card_facts(run.task, run.facts)

    with reserved, answered_by(args, run) as torch_itself, open_service(args, run, torch_itself) as service:
        app = web.build_app(service, facts, limits, token, own_names(args.host, token), args.log)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=FLUSH_SECONDS,
            )  # fmt: skip
        )
        with listening_at(args.host, args.port):
            reserved.listen(2048)
        for number_of in (signal.SIGINT, signal.SIGTERM):  # until uvicorn hears them, and after it has ended
            signal.signal(number_of, lambda *_: setattr(server, "should_exit", True))
        tell(args, run, reserved, token)
        server.run(sockets=[reserved])
    print(f"ended; {service.totals['notes']} notes answered")


def answered_by(args, run):
    """The context in which --engine answers; it gives whether that is torch itself."""
    if args.engine == "torch":
        return contextlib.nullcontext(True)
    if not args.notes:
        raise BadInput(f"--engine {args.engine}: is chosen on notes; name a file of such with --notes FILE")
    if args.deterministic:
        raise BadInput(f"--engine {args.engine}: --deterministic chooses nothing by timing; leave it out")
    if device_of(run.model).type != "cpu":
        raise BadInput(f"--engine {args.engine}: other engines are for the CPU; add --device cpu")
    return chosen_engine(args, run)


@contextlib.contextmanager
def chosen_engine(args, run):
    """While open, the engine that --engine asks for answers. Yields whether it is torch itself."""
    notes = engine.notes_to_time(run.task, args.notes)
    with engine.chosen(args.engine, run, args.run, notes, args.batch_tokens) as form:
        yield form == "torch"


def open_service(args, run, torch_itself):
    """The Service; torch's own layers are made ready only if they answer."""
    onednn = torch_itself and cpu.onednn_pays(run.model)
    return serving(run, args.batch_tokens, args.max_held, onednn, frozen=torch_itself)


def is_loopback(host):
    """Whether only this machine reaches an address."""
    return host.startswith("127.") or host in ("::1", "localhost")


def own_names(host, token):
    """Names under which it may be asked; None = any, as with a token or where others reach it."""
    if token or not is_loopback(host):
        return None
    return {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host}


def tell(args, run, reserved, token):
    """Print where it listens, and what is unwise about that."""
    host, port = reserved.getsockname()[:2]
    if not is_loopback(host):
        more = "" if token else " and without --token-file"
        print(f"warning: others can reach {host}{more}; plain HTTP, so put TLS before it (docs/serving.md)")
    place = f"[{host}]" if ":" in host else host
    print(f"serving {args.run} ({run.task.name}) on http://{place}:{port}/ (Ctrl-C ends it)", flush=True)


def build_serving_parser():
    """The parser of serve.py."""
    parser = Parser(prog="serve.py", description=__doc__.splitlines()[0])
    add, count = parser.add_argument, number(int, 1, 10**8)
    add("run", help="run directory, such as results/symptoms/quantization")
    add("--host", default="127.0.0.1", help="address to listen on; others can reach all but this (127.0.0.1)")
    add("--port", type=number(int, 0, 65535), default=8000, help="port; 0 = any free one (8000)")
    add("--token-file", help="file with a bearer token that /predict, /metadata and /metrics ask for (none)")
    add("--max-characters", type=count, default=100_000, help="characters per note (100000)")
    add("--max-notes", type=count, default=256, help="notes per request (256)")
    add("--max-body-mb", type=number(int, 1, 1000), default=8, help="MB per request (8)")
    add("--max-held", type=count, default=1024, help="notes held before further ones get 429 (1024)")
    add("--batch-tokens", type=count, help="tokens per batch, padding counted (2048; 65536 on a GPU)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="int8 always on cpu (auto)")
    add("--engine", choices=engine.ENGINES, default="torch", help="as in predict.py; needs --notes (torch)")
    add("--notes", help="file of notes like those that will come, on which --engine is chosen (none)")
    add("--calibrated", action="store_true", help="probabilities after temperature scaling (off)")
    add("--deterministic", action="store_true", help="nothing is chosen by timing; slower (off)")
    add("--log", action="store_true", help="a line per request: time, path, status, milliseconds (off)")
    return parser


def main(argv=None):
    """Parse, load, serve."""
    args = build_serving_parser().parse_args(argv)
    same_bits(args.deterministic)
    cpu.keep_memory()
    sys.setswitchinterval(1e-4)  # the model's thread gets its turn between requests; 5 ms is Python's
    with contextlib.suppress(KeyboardInterrupt):
        serve(args)


if __name__ == "__main__":
    run_script(main)
