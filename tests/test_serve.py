"""serve.py: its answers are predict.py's, its limits hold, nothing leaks, it ends cleanly, its page works."""

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import serve
import train
from conftest import ROOT, run_words
from predict import predict_note
from run import checkpoint, service
from run.card import card_facts
from run.inference import reading

pytest.importorskip("fastapi", reason="FastAPI is not installed: pip install -r requirements-serve.lock")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed: requirements-serve.lock")

import soak  # noqa: E402
from bench import serving as load_test  # noqa: E402
from run import web  # noqa: E402

MARKER, WIDE = "wyvukofug", web.Limits()
NOTES = [
    "Patient denies fever. Reports cough and pain.",
    "edema of both legs",
    "x",
    "Bleeding, severe \N{GRINNING FACE} pain; 2 mg daily.\nNo acute distress. " * 9,
    "42-year-old with chest pain and fever " * 40,
    ". , ;",
    "\N{SNOWMAN}\0 null",
    "\N{GRINNING FACE} worried that the ovarian cyst causes her pain.\nTold of a fibroid, ovarian cyst. " * 2,
] * 3


@pytest.fixture(scope="module")
def served(arguments, demos, tmp_path_factory):
    """{task: run directory} of small base runs, "int8": one of int8 layers."""
    out, found = tmp_path_factory.mktemp("served"), {}
    for task in ("ner", "readmission", "trials"):
        words = run_words(
            demos, task, out / task, "--technique", "base", f"--epochs {8 if task == 'ner' else 2}"
        )
        found[task] = train.run_all(train.parse_arguments(words))
    once = [*arguments, "--epochs", "1", "--out", str(out / "symptoms")]
    for name, technique in (("symptoms", "base"), ("int8", "quantization")):
        found[name] = train.run_all(train.parse_arguments([*once, "--technique", technique]))
    return found


@contextlib.contextmanager
def up(run, limits=WIDE, token=None, most=1024, tokens=256, log=False, flush=None, hosts=None):
    """(port, Service) of a server in a thread."""
    with service.serving(run, tokens, most, onednn=False) as one, serve.reserve("127.0.0.1", 0) as listening:
        listening.listen()
        app = web.build_app(one, card_facts(run.task, run.facts), limits, token, hosts, log)
        told = {"log_config": None, "log_level": "error", "timeout_graceful_shutdown": flush}
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", **told))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1], one
        finally:
            server.should_exit = True
            thread.join()


def ask(port, path="/predict", body=None, method=None, **headers):
    """(status, text, headers) of a request; a body that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    told = {"Content-Type": "application/json"} if body is not None else {}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    body = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method or ("GET" if body is None else "POST"), path, body, told)
    answer = connection.getresponse()
    with contextlib.closing(connection):
        return answer.status, answer.read().decode(), answer.headers


def ask_all(port, bodies):
    """The answers to bodies that are sent together."""
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda body: ask(port, body=body), bodies))
    assert {status for status, *_ in found} == {200}
    return [json.loads(text) for _, text, _ in found]


@pytest.fixture(scope="module")
def symptoms(served):
    """(port, Service, run) of a server of the symptoms run, with small limits."""
    run = checkpoint.load(served["symptoms"])
    with up(run, web.Limits(1000, 8, 20_000)) as (port, one):
        yield port, one, run


# --- batches


def rows(*lengths):
    return [service.WaitingRow(None, 0, [0] * length, None) for length in lengths]


def test_a_batch_is_the_oldest_row_and_its_like():
    def lengths(parts):
        return [[len(row.ids) for row in part] for part in parts]

    assert lengths(service.next_batch(rows(10, 300, 9, 11, 21, 4), 64)) == [[10, 9], [300, 11, 21, 4]]
    assert lengths(service.next_batch(rows(10, 300, 9, 11, 12, 5), 64)) == [[10, 9, 11, 12], [300, 5]]
    assert lengths(service.next_batch(rows(10, 9, 9), 20)) == [[10, 9], [9]]
    assert lengths(service.next_batch(rows(100, 9), 20)) == [[100], [9]]  # longer than a batch: alone
    assert lengths(service.next_batch(rows(*[8] * 7), 10**6)) == [[8] * 4, [8] * 3]


# --- answers


@pytest.mark.parametrize("task", ("symptoms", "ner", "readmission", "trials"))
def test_answers_are_those_of_predict_py_whatever_else_is_asked(served, task):
    run = checkpoint.load(served[task])
    with reading(run.model, run.task, frozen=True, onednn=False):
        wanted = [predict_note(run, text, False) for text in NOTES]
    assert task != "ner" or any(len(answer["spans"]) > 1 for answer in wanted)
    with up(run) as (port, one):
        answers = ask_all(port, [{"text": text, "row_id": str(i)} for i, text in enumerate(NOTES)])
        lists = ask_all(port, [[{"text": text} for text in NOTES[i : i + 9]] for i in range(14)])
        assert one.totals["notes"] == len(NOTES) + 9 * 14 and not one.totals["failed"]
        assert task == "ner" or one.totals["batches"] < one.totals["notes"]  # of its notes many are windows
    for i, (answer, right) in enumerate(zip(answers, wanted)):
        assert answer["row_id"] == str(i)
        assert soak.is_answer(answer, right, 2e-4 if task == "ner" else 2e-6), (answer, right)
    for start, part in enumerate(lists):
        assert len(part) == 9 and all(
            soak.is_answer(answer, right, 2e-4) for answer, right in zip(part, wanted[start : start + 9])
        )


def test_int8_answers_are_near_whatever_shares_their_batch(served):
    run = checkpoint.load(served["int8"])
    with reading(run.model, run.task, frozen=True):
        wanted = [predict_note(run, text, False) for text in NOTES]
    with up(run) as (port, _):
        answers = ask_all(port, [{"text": text} for text in NOTES])
    assert all(soak.is_answer(answer, right, 0.02) for answer, right in zip(answers, wanted))


def test_the_comparison_sees_another_answer():
    right = {"predicted": "a", "probabilities": {"a": 0.6, "b": 0.4}}
    for wrong in ({"predicted": "b"}, {"probabilities": {"a": 0.61, "b": 0.39}}, {"spans": []}):
        assert not soak.is_answer({**right, **wrong, "row_id": 1}, right, 1e-4)
    assert soak.is_answer({**right, "row_id": 1}, right, 1e-4)


# --- limits and errors

NOTE = {"text": f"{MARKER} has fever"}
REFUSED = {
    "a long note": ({"text": MARKER * 200}, 413, "the note has 1800 characters; at most 1000"),
    "a long note in a list": ([NOTE, {"text": MARKER * 200}], 413, "note 1 has 1800 characters"),
    "many notes": ([NOTE] * 9, 413, "more than 8 notes; send them in parts"),
    "a long body": ({"text": MARKER * 9000}, 413, "the body has more than 20000 bytes"),
    "a body of MB": ({"text": MARKER * 10**6}, 413, "the body has more than 20000 bytes"),
    "no text": ({"text": " \n"}, 422, "the note has no text"),
    "missing": ([NOTE, {"row_id": MARKER}], 422, "note 1, text is missing"),
    "null": ({"text": None}, 422, "the note, text is no text"),
    "another field": ({**NOTE, MARKER: MARKER}, 422, "the note has a field that is neither text nor row_id"),
    "a row id": ({**NOTE, "row_id": {MARKER: 1}}, 422, "the note, row_id is no text or whole number"),
    "a row id of many digits": ({**NOTE, "row_id": 10**30}, 422, "row_id is no text or whole number below"),
    "half a row id": ({**NOTE, "row_id": 1.5}, 422, "the note, row_id is no text or whole number"),
    "a long row id": ({**NOTE, "row_id": MARKER * 30}, 422, "the note, row_id is longer than 200"),
    "a word": (MARKER, 422, "the note is no JSON object"),
    "a word in a list": ([MARKER], 422, "note 0 is no JSON object"),
    "nothing": ([], 422, "the list holds no note"),
    "no body": (b"", 422, "the body is not JSON"),
    "half": (b'{"text": "wyvukofug', 422, "the body is not JSON"),
    "no UTF-8": (b'{"text": "wyvukofug \xff"}', 422, "the body is not JSON"),
    "half of a pair": (b'{"text": "wyvukofug \\ud800"}', 422, "the body is not JSON"),
    "deep": (b"[" * 15_000, 422, "the body is not JSON"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_faulty_body_is_refused_in_one_line_without_its_text(symptoms, kind):
    body, status, line = REFUSED[kind]
    got, text, headers = ask(symptoms[0], body=body)
    assert got == status and json.loads(text).keys() == {"detail"} and line in json.loads(text)["detail"]
    assert MARKER not in text + str(headers) and "\\n" not in text and len(text) < 200


def test_other_requests_are_refused_too(symptoms):
    port = symptoms[0]
    assert ask(port, body=NOTE, Content_Type="text/plain")[0] == 415
    assert ask(port, f"/{MARKER}", body=NOTE)[:2] == (404, '{"detail":"Not Found"}')
    assert ask(port, method="PUT", body=NOTE)[0] == 405
    assert ask(port, f"/predict?text={MARKER}", body={"text": "fever"})[0] == 200
    assert ask(port)[0] == 405  # GET


def test_notes_beyond_the_queue_get_429_and_the_others_their_answers(served, monkeypatch):
    run, gate, really = checkpoint.load(served["symptoms"]), threading.Event(), service.predict_rows
    monkeypatch.setattr(service, "predict_rows", lambda *words: gate.wait(60) and really(*words))
    with up(run, most=4) as (port, one), concurrent.futures.ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, port, body=[{"text": "fever"}] * 3)
        while one.held < 3:
            time.sleep(0.01)
        status, text, headers = ask(port, body=[{"text": "pain"}] * 2)
        assert status == 429 and headers["Retry-After"] == "1" and "too many notes" in text
        second = pool.submit(ask, port, body={"text": "pain"})
        while one.held < 4:
            time.sleep(0.01)
        gate.set()
        assert first.result()[0] == second.result()[0] == 200
        assert ask(port, body=[{"text": "pain"}] * 4)[0] == 200


def test_a_note_that_breaks_the_model_or_the_tokenizer_fails_alone(served, monkeypatch, capfd):
    run, really, encode = checkpoint.load(served["symptoms"]), service.predict_rows, service.encode_examples
    bad = run.tokenizer(f"{MARKER} x")["input_ids"]

    def fails(model, task, encoded, *words):
        if any(list(encoded.ids[a:b]) == bad for a, b in zip(encoded.starts, encoded.starts[1:])):
            raise RuntimeError(f"{MARKER} cannot be multiplied")
        return really(model, task, encoded, *words)

    def refuses(run, examples):
        if any(example.text == f"{MARKER} y" for example in examples):
            raise ValueError(f"{MARKER} cannot be tokenised")
        return encode(run, examples)

    monkeypatch.setattr(service, "predict_rows", fails)
    monkeypatch.setattr(service, "encode_examples", refuses)
    with up(run) as (port, one), concurrent.futures.ThreadPoolExecutor(16) as pool:
        ends = ["x", "y", *(f"z{i}" for i in range(30))]
        found = list(pool.map(lambda end: ask(port, body={"text": f"{MARKER} {end}"}), ends))
        assert [status for status, *_ in found] == [500, 500] + [200] * 30 and one.totals["failed"] == 2
        assert ask(port, body=[{"text": f"{MARKER} x"}, {"text": "fever"}])[0] == 500
    told = "".join(capfd.readouterr()) + "".join(text for _, text, _ in found)
    assert MARKER not in told and "RuntimeError in fails, line" in told and "ValueError in refuses" in told


def test_a_list_is_read_up_to_its_first_fault():
    with pytest.raises(web.ValidationError) as refused:
        web.list_of(5).validate_json(b"[1, 2, 3]")
    assert refused.value.error_count() == 1


def unfinished(port):
    """A connection that has sent half of a request's body."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100"
    connection.sendall(f"{head}\r\n\r\n{{".encode())
    return connection


def test_half_a_request_gets_503_when_the_server_ends(served, capfd):
    with up(checkpoint.load(served["symptoms"]), flush=1) as (port, _):
        connection = unfinished(port)
        ask(port, body=NOTE)  # so the server has read the half
    with connection:
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 503") and answer.endswith(
        json.dumps({"detail": web.SAID[503]}).encode().replace(b": ", b":")
    )
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_hangs_up_is_counted_as_gone(symptoms):
    port, line = symptoms[0], 'serve_requests_total{path="/predict",status="499"} 1\n'
    unfinished(port).close()
    until = time.monotonic() + 30
    while line not in ask(port, "/metrics")[1]:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_nobody_waits_for_is_not_read(served, monkeypatch):
    run, read, really = checkpoint.load(served["symptoms"]), [], service.predict_rows
    monkeypatch.setattr(service, "predict_rows", lambda *words: read.append(1) or really(*words))

    async def gives_up(one):
        waiting = asyncio.ensure_future(one.answer([f"{'fever ' * n}" for n in range(1, 200)]))
        while not read:
            await asyncio.sleep(0.001)
        waiting.cancel()
        await asyncio.wait([waiting])

    with service.serving(run, 8, onednn=False) as one:
        asyncio.run(gives_up(one))
    assert len(read) < 199 and one.totals["failed"] == 0


def test_the_thread_outlives_a_fault(served, monkeypatch, capfd):
    with up(checkpoint.load(served["symptoms"])) as (port, _):
        monkeypatch.setattr(service, "next_batch", lambda *_: [][1])
        assert ask(port, body=[NOTE] * 3)[0] == 500
        monkeypatch.undo()
        assert ask(port, body=NOTE)[0] == ask(port, "/health")[0] == 200
    assert "IndexError in <lambda>" in capfd.readouterr().err


def test_a_fault_of_the_server_is_a_500_without_words(served, monkeypatch, capfd):
    def fails(*_):
        raise RuntimeError(MARKER)

    monkeypatch.setattr(web, "parse_notes", fails)
    with up(checkpoint.load(served["symptoms"])) as (port, _):
        assert ask(port, body=NOTE)[:2] == (500, '{"detail":"internal error"}')
    told = "".join(capfd.readouterr())
    assert MARKER not in told and "RuntimeError in fails" in told


def test_a_token_is_asked_for(served):
    token = b"0123456789abcdef"
    with up(checkpoint.load(served["symptoms"]), token=token) as (port, _):
        for path in ("/predict", "/metadata", "/metrics"):
            body = NOTE if path == "/predict" else None
            for sent in ({}, {"Authorization": "Bearer 0123456789abcdeg"}, {"Authorization": token.decode()}):
                status, text, headers = ask(port, path, body, **sent)
                assert status == 401 and headers["WWW-Authenticate"] == "Bearer" and MARKER not in text
            for scheme in ("Bearer", "bearer"):
                assert ask(port, path, body, Authorization=f"{scheme} {token.decode()}")[0] == 200
        assert [ask(port, path)[0] for path in ("/", "/health", "/docs", "/openapi.json")] == [200] * 4
        schema = json.loads(ask(port, "/openapi.json")[1])
    assert schema["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    wanted = {path for path, told in schema["paths"].items() if "security" in next(iter(told.values()))}
    assert wanted == {"/predict", "/metadata", "/metrics"}


def test_without_a_token_it_answers_under_this_machines_own_names(served):
    hosts = serve.own_names("127.0.0.1", None)
    assert serve.own_names("0.0.0.0", None) is serve.own_names("127.0.0.1", b"token") is None
    with up(checkpoint.load(served["symptoms"]), hosts=hosts) as (port, _):
        for name in ("127.0.0.1", "localhost", f"LOCALHOST:{port}", "[::1]:80"):
            assert ask(port, body=NOTE, Host=name)[0] == 200
        for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
            status, text, _ = ask(port, body=NOTE, Host=name)
            assert status == 421 and "another name than localhost" in text and MARKER not in text


def test_what_can_be_got_has_a_head(symptoms):
    for path in ("/health", "/metrics", "/"):
        status, text, headers = ask(symptoms[0], path, method="HEAD")
        assert status == 200 and text == "" and int(headers["Content-Length"]) > 10
    assert ask(symptoms[0], "/predict", method="HEAD")[0] == 405


# --- facts and figures


def test_metadata_holds_the_facts_of_the_card(symptoms, served):
    port, _, run = symptoms
    facts = json.loads(ask(port, "/metadata")[1])
    card = (served["symptoms"] / "README.md").read_text()
    assert facts["labels"] == run.task.labels and facts["checksum"] == run.facts["checksum"]
    for score, found in facts["scores"].items():
        if score in run.task.overall and found["interval_95"]:
            assert (
                f"{found['value']:.4f} [{found['interval_95'][0]:.3f}, {found['interval_95'][1]:.3f}]" in card
            )
    assert all(limit in card for limit in facts["limits"]) and f"{facts['sizes']['bytes']:,} bytes" in card
    assert str(served["symptoms"].parent.parent) not in json.dumps(facts)


def test_metrics_count_what_was_asked(symptoms):
    def figures():
        lines = ask(symptoms[0], "/metrics")[1].splitlines()
        assert all(
            re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"(,\w+="\w+")*\})? [\d.e+-]+', x)
            for x in lines
        )
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    before = figures()
    ask(symptoms[0], body=[NOTE] * 3), ask(symptoms[0], f"/{MARKER}"), ask(symptoms[0], body=[])
    after = figures()

    def more(name):
        return after[name] - before.get(name, 0)

    assert more('serve_requests_total{path="/predict",status="200"}') == 1
    assert more('serve_requests_total{path="/predict",status="422"}') == 1
    assert more('serve_requests_total{path="other",status="404"}') == 1
    assert more("serve_notes_total") == 3 and more("serve_predict_seconds_count") == 1
    assert after['serve_predict_seconds_bucket{le="+Inf"}'] == after["serve_predict_seconds_count"]
    assert after["serve_held_notes"] == 0 and not any(MARKER in name for name in after)


def test_the_api_is_described_and_nothing_is_loaded_from_elsewhere(symptoms):
    schema = json.loads(ask(symptoms[0], "/openapi.json")[1])
    assert list(schema["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]
    assert "securitySchemes" not in schema.get("components", {})
    assert schema["paths"].keys() == {"/predict", "/health", "/metadata", "/metrics"}
    body = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["oneOf"][0]["required"] == ["text"] and body["oneOf"][1]["type"] == "array"
    assert {"401", "413", "422", "429"} <= schema["paths"]["/predict"]["post"]["responses"].keys()
    for path in ("/", "/docs"):
        _, text, headers = ask(symptoms[0], path)
        assert (
            not re.search(r"(src|href)=\"?(https?:)?//|url\(|@import", text) and "default-src 'none'" in text
        )
        assert headers["Cache-Control"] == "no-store" and headers["X-Frame-Options"] == "DENY"
    assert "POST /predict" in text and "too many notes wait" in text and 'id="form"' not in text


# --- the script


def test_a_signal_is_heard_as_soon_as_it_serves(served):
    words = [sys.executable, "serve.py", str(served["symptoms"]), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("serving ") for line in lines)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0 and "ended; 0 notes answered\n" in list(lines)


def test_the_script_answers_what_it_has_taken_and_logs_no_text(served, tmp_path):
    words = [sys.executable, "serve.py", str(served["symptoms"]), "--port", "0", "--log", "--device", "cpu"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = iter(process.stdout.readline, "")
    port = int(next(filter(None, (re.search(r"127\.0\.0\.1:(\d+)/", line) for line in lines)))[1])
    body = [{"text": f"{MARKER} has fever " * 60, "row_id": i} for i in range(200)]

    async def clients():
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        request = load_test.request_of(json.dumps(body).encode(), f"/predict?{MARKER}")
        waiting = [asyncio.ensure_future(load_test.answer_to(*pair, request)) for pair in pairs]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        process.send_signal(signal.SIGTERM)
        return len(done), await asyncio.gather(*waiting)

    done, answers = asyncio.run(clients())
    assert done < 5 and [status for status, _ in answers] == [200] * 5
    assert all([a["row_id"] for a in json.loads(found)] == list(range(200)) for _, found in answers)
    assert process.wait(60) == 0
    told = "".join(lines)
    assert MARKER not in told and told.endswith("ended; 1000 notes answered\n")
    assert len(re.findall(r"POST /predict 200 [\d.]+ ms\n", told)) == 5


def test_what_cannot_be_served_is_refused_in_one_line(served, demos, tmp_path, refuses, monkeypatch):
    words = run_words(demos, "mlm", tmp_path, "--technique", "base", "--epochs 1")
    masked = train.run_all(train.parse_arguments(words))
    assert "a run of mlm has no answers to serve" in refuses(serve.main, [masked])
    with serve.reserve("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):  # nobody waits while the engine is chosen
            socket.create_connection(("127.0.0.1", port))
        taken.listen()
        assert "cannot listen there" in refuses(serve.main, [served["symptoms"], "--port", port])
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    (tmp_path / "token").write_text("short")
    call = [served["symptoms"], "--token-file", tmp_path / "token"]
    assert "holds no token" in refuses(serve.main, call)
    assert "--max-held 3" in refuses(serve.main, [served["symptoms"], "--max-held", 3])
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "uvicorn is not installed; pip install -r" in refuses(serve.main, [served["symptoms"]])


def test_another_engine_answers_as_torch_does(served, small, capsys, refuses):
    pytest.importorskip("onnxruntime")
    words = [str(served["symptoms"]), "--engine", "onnxruntime", "--notes", str(small[0])]
    args, run = serve.build_serving_parser().parse_args(words), checkpoint.load(served["symptoms"])
    with reading(run.model, run.task, frozen=True, onednn=False):
        wanted = [predict_note(run, text, False) for text in NOTES]
    with serve.answered_by(args, run) as torch_itself, serve.open_service(args, run, torch_itself) as one:
        assert not torch_itself and "forward" in vars(run.task)
        found = asyncio.run(one.answer(NOTES))
    assert "forward" not in vars(run.task) and "engine: onnxruntime" in capsys.readouterr().out
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours["predicted"] == theirs["predicted"]
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-3)
    assert "name a file of such with --notes" in refuses(serve.main, words[:3])
    assert "leave it out" in refuses(serve.main, [*words, "--deterministic", "--port", "0"])


def test_nobody_can_connect_before_the_engine_is_chosen(served, monkeypatch):
    with serve.reserve("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    tried = []

    def connects(*_, **__):
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            tried.append(True)
        except ConnectionRefusedError:
            tried.append(False)

    @contextlib.contextmanager
    def choosing(args, run):
        connects()
        yield True

    monkeypatch.setattr(serve, "answered_by", choosing)
    monkeypatch.setattr(uvicorn.Server, "run", connects)
    monkeypatch.setattr(serve.signal, "signal", lambda *_: None)
    serve.main([str(served["symptoms"]), "--port", str(port)])
    assert tried == [False, True]


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_ipv6_address_takes_ipv6_alone():
    try:
        reserved = serve.reserve("::", 0)
    except serve.BadInput:
        pytest.skip("no IPv6 address here")
    with reserved:
        assert reserved.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_a_token_is_read_from_its_file(tmp_path, capsys):
    (tmp_path / "token").write_text("0123456789abcdef\n")
    (tmp_path / "token").chmod(0o600)
    assert serve.read_token(tmp_path / "token") == b"0123456789abcdef" and serve.read_token(None) is None
    (tmp_path / "token").chmod(0o644)
    serve.read_token(tmp_path / "token")
    assert "can be read by others" in capsys.readouterr().out


# --- load


def test_a_short_soak_loses_nothing(served):
    run = checkpoint.load(served["symptoms"])
    with reading(run.model, run.task, frozen=True, onednn=False):
        wanted = {text: predict_note(run, text, False) for text in dict.fromkeys(NOTES)}
    with up(run, web.Limits(**soak.LIMITS)) as (port, _):
        found, memory = asyncio.run(soak.soak(port, "self", wanted, 3, 8, 2e-6))
    assert not found.wrong and found.counts["valid"] > 20 and len(found.counts) > 8
    assert all(size > 10**7 for _, size in memory) and soak.growth(memory, 3) < 0.2


def test_the_plain_server_and_ours_are_measured_by_turns(served, monkeypatch):
    really = load_test.server

    @contextlib.contextmanager
    def either(*words):  # ours in this process, which is quicker to start
        ours = words[0] == "serve.py"
        assert "--engine" not in words or words[words.index("--notes") + 1].exists()
        if not ours:
            with really(*words) as found:
                yield found
            return
        told = "engine: converting the model for openvino bf16 engine: openvino bf16, with the same answers\n"
        printed = told if "--engine" in words else "serving\n"
        with up(checkpoint.load(words[1])) as (port, _):
            yield port, os.getpid(), lambda: printed

    monkeypatch.setattr(load_test, "server", either)
    table = load_test.serving_rows(served["symptoms"], None, 0.4, 1, (1, 3), 0.2, engine="auto")
    ours = ["serve.py, base", "serve.py --engine auto, base (openvino bf16)"]
    assert [(row["row"], row["clients"]) for row in table] == [
        (name, clients) for clients in (1, 3) for name in (load_test.PLAIN, *ours)
    ]
    for row in table:
        assert 0 < row["p50_ms"] <= row["p99_ms"] and row["notes"] == pytest.approx(row["notes_per_s"] * 0.4)
    header, cells = load_test.serving_table(table)
    assert len(header) == len(cells[0]) and cells[0][3] == "1.00"


# --- the page, in a browser


SEND = 'document.getElementById("note").value = arguments[0]; document.getElementById("read").click()'
STATE = """const found = (id) => document.getElementById(id);
return {shown: !found("result").hidden, fault: found("fault").textContent, busy: found("read").disabled,
  answer: found("result").querySelector(".answer")?.textContent, what: found("what").textContent,
  bars: [...document.querySelectorAll(".row")].map((row) => row.textContent),
  marks: [...document.querySelectorAll("mark")].map((mark) => mark.firstChild.textContent),
  asks: !found("asks").hidden,
  text: found("result").querySelector(".text")?.textContent}"""


def state_after(window, until):
    """What the page shows, once until(that) is so."""
    for _ in range(200):
        if until(found := window.run(STATE)):
            return found
        time.sleep(0.05)
    raise AssertionError(found)


@pytest.mark.parametrize("width", (1280, 390))
@pytest.mark.parametrize("task", ("ner", "symptoms"))
def test_the_page_shows_the_label_or_the_spans(chromium, served, task, width):
    run = checkpoint.load(served[task])
    text = NOTES[7] + "word" * 100  # an emoji, of which JavaScript counts two, and a word wider than a phone
    with reading(run.model, run.task, frozen=True, onednn=False):
        wanted = predict_note(run, text, True)
    with up(run) as (port, _):
        chromium.log("browser"), chromium.log("performance")
        chromium.open(f"http://127.0.0.1:{port}/", width)
        chromium.run(SEND, text)
        found = state_after(chromium, lambda state: state["shown"] and not state["busy"])
        inside = chromium.run("return [document.documentElement.scrollWidth, innerWidth]")
        addresses = chromium.addresses()
    assert found["fault"] == "" and run.facts["name"] in found["what"] and inside[0] <= inside[1]
    assert all(url.startswith((f"http://127.0.0.1:{port}/", "data:")) for url in addresses)
    assert chromium.log("browser") == []
    if task == "ner":
        assert found["marks"] == [span["text"] for span in wanted["spans"]] and found["marks"]
    else:
        shares = sorted(wanted["probabilities"].items(), key=lambda pair: -pair[1])
        assert found["answer"] == wanted["predicted"] and len(found["bars"]) == len(run.task.labels)
        assert found["bars"][0] == f"{shares[0][0]}{100 * shares[0][1]:.1f}%"


def test_the_page_asks_for_a_token_and_shows_faults_in_words(chromium, served):
    token, run = "0123456789abcdef", checkpoint.load(served["symptoms"])
    with up(run, web.Limits(characters=50), token.encode()) as (port, _):
        chromium.open(f"http://127.0.0.1:{port}/")
        state_after(chromium, lambda state: state["asks"] and "no bearer token" in state["fault"])
        chromium.run('document.getElementById("token").value = arguments[0]', token)
        chromium.run(SEND, "<script>document.title='ran'</script> fever")
        found = state_after(chromium, lambda state: state["shown"] and not state["busy"])
        assert found["fault"] == "" and chromium.run("return document.title") == "Paste a note"
        chromium.run(SEND, "fever " * 20)
        found = state_after(chromium, lambda state: not state["busy"] and state["fault"])
        assert found["fault"] == "the note has 120 characters; at most 50" and not found["shown"]
