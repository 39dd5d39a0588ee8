"""The HTTP application on an engine that answers what the test tells it."""

import json

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from crs_fast.serve.app import create_app
from crs_fast.serve.http.guard import Access
from crs_fast.serve.http.limits import Limits
from crs_fast.serve.http.openai import ChatRequest
from crs_fast.serve.http.schemas import RespondRequest
from crs_fast.serve.requests import Busy, Cancelled, Failed

from .doubles import ANSWER, EVENTS, ITEMS, TIMINGS, USAGE, ScriptedEngine

ASK = [{"role": "user", "content": "I liked Film 3, any more?"}]
CHAT = {"model": "films", "messages": ASK}


def client(engine=None, **options):
    """A client of an application. Its errors reach the test as responses, as they do outside."""
    engine = engine or ScriptedEngine()
    app = create_app(engine, name="films", **options)
    test_client = TestClient(app, raise_server_exceptions=False)
    test_client.engine = engine
    return test_client


def events_of(response):
    """[(name, content)] of server-sent events."""
    blocks = [block.split("\n") for block in response.text.split("\n\n") if block]
    return [(n.removeprefix("event: "), json.loads(d.removeprefix("data: "))) for n, d in blocks]


def test_an_answer_in_json():
    given = {
        "messages": ASK, "mode": "rec", "num_items": 2, "exclude": ["i0", "gone"], "allow": None,
        "groups": ["comedy"], "max_per_group": {"comedy": 2}, "num_beams": 7,
        "max_new_tokens": 9, "do_sample": True, "temperature": 0.5,
        "top_p": 0.9, "seed": 3, "conversation": "c", "timeout": 2.5,
    }  # fmt: skip
    with client() as http:
        response = http.post("/v1/respond", json=given)
        request = http.engine.request
    assert response.status_code == 200, response.text
    items = [
        {"id": item_id, "title": title, "score": score, "named_before": False}
        for item_id, title, score in ITEMS
    ]
    assert response.json() == {
        "mode": "rec",
        "items": items,
        "text": ANSWER.text,
        "rec_probability": 0.75,
        "named": ["i1"],
        "already_named": ["i3"],
        "unknown_items": ["gone"],
        "invalid_items": 0,
        "titles": {"i0": "Film 0 (1990)", "i1": "Film 1 (1991)", "i3": "Film 3 (1993)"},
        "catalogue_version": "v7",
        "timings": TIMINGS,
        "usage": USAGE,
        "warnings": [],
    }
    renamed = {"deadline": given.pop("timeout")}
    for name, value in {**given, **renamed}.items():
        assert getattr(request, name) == value, name
    assert http.engine.is_closed


def test_an_answer_as_events():
    with client() as http:
        whole = http.post("/v1/respond", json={"messages": ASK}).json()
        response = http.post("/v1/respond", json={"messages": ASK, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    names, contents = zip(*events_of(response), strict=True)
    assert names == ("ranked", "text", "text", "done")
    assert contents[0]["items"] == whole["items"]
    assert contents[0]["titles"] == {"i3": "Film 3 (1993)"}
    assert "".join(content["delta"] for content in contents[1:3]) == whole["text"]
    assert contents[3] == whole


def test_a_repeated_item_is_said_to_be_one():
    shown = [*ASK, {"role": "assistant", "content": "See this.", "shown": ["i1"]}]
    with client() as http:
        named = http.post("/v1/respond", json={"messages": ASK, "repeat_named": True}).json()
        both = http.post("/v1/respond", json={"messages": shown, "repeat_named": True}).json()
        assert http.engine.request.messages == shown
    assert [item["named_before"] for item in named["items"]] == [False, True]
    assert [item["named_before"] for item in both["items"]] == [True, True]


def test_defaults_follow_the_request():
    with client() as http:
        http.post("/v1/respond", json={"messages": ASK, "num_items": 60})
        request = http.engine.request
    assert (request.num_items, request.num_beams, request.deadline) == (60, 60, 60.0)


def say(content, role="user"):
    return {"messages": [{"role": role, "content": content}]}


BAD = {
    "no-messages": ({"messages": []}, 422, "messages"),
    "messages-missing": ({}, 422, "messages"),
    "messages-text": ({"messages": "hello"}, 422, "messages"),
    "message-text": ({"messages": ["hello"]}, 422, "messages.0"),
    "no-object": ([], 422, "body"),
    "role-tool": (say("x", "tool"), 422, "messages.0.role"),
    "only-system": (say("be nice", "system"), 422, "at least one message of role user"),
    "content-null": (say(None), 422, "messages.0.content"),
    "content-number": (say(3), 422, "messages.0.content"),
    "no-parts": (say([]), 422, "messages.0.content"),
    "image-part": (say([{"type": "image_url", "image_url": {}}]), 422, "'image_url'"),
    "part-text": (say(["hello"]), 422, "messages.0.content"),
    "lone-surrogate": (say("half \ud800"), 422, "lone surrogate"),
    "lone-surrogate-in-part": (say([{"type": "text", "text": "\udfff"}]), 422, "lone surrogate"),
    "lone-surrogate-in-id": ({**say("x"), "exclude": ["\ud800"]}, 422, "lone surrogate"),
    "lone-surrogate-as-member": ({**say("x"), "\ud800": 1}, 422, "lone surrogate"),
    "lone-surrogate-as-role": (say("x", "\ud800"), 422, "messages.0.role"),
    "10,000-turns": ({"messages": ASK * 10_000}, 422, "at most 200 messages (got 10000)"),
    "long-text": (say("x" * 100_001), 422, "at most 100000 characters"),
    "unknown-member": ({**say("x"), "num_item": 3}, 422, "num_item"),
    "mode": ({**say("x"), "mode": "sing"}, 422, "mode"),
    "no-items": ({**say("x"), "num_items": 0}, 422, "num_items"),
    "items": ({**say("x"), "num_items": 101}, 422, "at most 100 items (got 101)"),
    "beams": ({**say("x"), "num_beams": 10**9}, 422, "at most 200 beams"),
    "tokens": ({**say("x"), "max_new_tokens": 513}, 422, "at most 512 tokens"),
    "ids": ({**say("x"), "exclude": ["i"] * 6000, "allow": ["i"] * 6000}, 422, "10000 ids"),
    "shown": ({"messages": [{**ASK[0], "shown": ["i"] * 10_001}]}, 422, "10000 ids"),
    "per-group": ({**say("x"), "max_per_group": 0}, 422, "max_per_group"),
    "per-named-group": ({**say("x"), "max_per_group": {"comedy": 0}}, 422, "max_per_group"),
    "id-number": ({**say("x"), "exclude": [3]}, 422, "exclude.0"),
    "timeout": ({**say("x"), "timeout": 61}, 422, "at most 60 seconds"),
    "no-time": ({**say("x"), "timeout": 0}, 422, "timeout"),
    "temperature": ({**say("x"), "temperature": 0}, 422, "temperature"),
    "conversation": ({**say("x"), "conversation": "c" * 201}, 422, "conversation"),
}


@pytest.mark.parametrize(("body", "status", "detail"), BAD.values(), ids=BAD)
def test_bad_input_has_its_own_error(body, status, detail):
    with client() as http:
        response = http.post(
            "/v1/respond", content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
    problem = the_problem(response, status)
    assert detail in problem["detail"]
    assert len(response.content) < 2000  # the input is not sent back
    assert not http.engine.tickets


def the_problem(response, status):
    """The problem details of a response, once what all of them have in common is checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in response.text
    problem = response.json()
    assert problem["status"] == status
    assert problem["error"]["message"] == problem["detail"]
    assert {"type", "title", "code"} <= problem.keys()
    return problem


NO_JSON = {
    "half": b"{",
    "no-utf8": b'{"messages": "\xff"}',
    "deep": b"[" * 100_000,
    "long-number": b'{"num_items": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_a_body_that_is_no_json(body):
    with client() as http:
        response = http.post(
            "/v1/respond", content=body, headers={"Content-Type": "application/json"}
        )
    assert the_problem(response, 400)["code"] == "not_json"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none(value):
    body = f'{{"messages": [{{"role": "user", "content": "x"}}], "timeout": {value}}}'
    with client() as http:
        response = http.post(
            "/v1/respond", content=body, headers={"Content-Type": "application/json"}
        )
    assert "timeout" in the_problem(response, 422)["detail"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "json"])
def test_a_page_elsewhere_cannot_post_without_asking(kind):
    """Browsers send these types to other servers without a preflight request."""
    body, headers = json.dumps({"messages": ASK}), {} if kind is None else {"Content-Type": kind}
    with client() as http:
        assert the_problem(http.post("/v1/respond", content=body, headers=headers), 415)
        kind = {"Content-Type": "Application/JSON; charset=utf-8"}
        assert http.post("/v1/respond", content=body, headers=kind).status_code == 200


def test_a_body_past_its_limit():
    with client(limits=Limits(max_body_bytes=1000)) as http:
        declared = http.post("/v1/respond", json=say("x" * 1000))
        chunks = (b"x" * 100 for _ in range(50))
        kind = {"Content-Type": "application/json"}
        chunked = http.post("/v1/respond", content=chunks, headers=kind)
        within = http.post("/v1/respond", json=say("x" * 900))
    for response in (declared, chunked):
        assert the_problem(response, 413)["code"] == "body_too_long"
    assert within.status_code == 200


def test_parts_are_joined_and_system_messages_are_said_to_be_unread():
    parts = [{"type": "text", "text": "I liked"}, {"type": "text", "text": "Film 3"}]
    messages = [
        {"role": "system", "content": "You are a pirate."},
        {"role": "user", "content": parts},
    ]
    with client() as http:
        answer = http.post("/v1/respond", json={"messages": messages}).json()
        read = http.engine.request.messages
    assert read == [{"role": "user", "content": "I liked\nFilm 3"}]
    assert len(answer["warnings"]) == 1
    assert "messages.0: a message of role system" in answer["warnings"][0]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Busy("the queue is full"), 503, "busy"),
        (ValueError("TurnRequest: groups must be known"), 422, "invalid"),
        (RuntimeError("Engine.submit: the engine is closed"), 503, "ending"),
        (KeyError("secret"), 500, "internal"),
    ],
    ids=["busy", "refused", "closed", "bug"],
)
@pytest.mark.parametrize("path", ["/v1/respond", "/v1/chat/completions"])
def test_errors_of_submit(path, error, status, code):
    with client(ScriptedEngine(error=error)) as http:
        response = http.post(path, json={**(CHAT if "chat" in path else say("x")), "stream": True})
    assert the_problem(response, status)["code"] == code
    assert ("retry-after" in response.headers) == (status == 503)
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TimeoutError("no answer"), 504, "timeout"),
        (Cancelled("cancelled"), 503, "cancelled"),
        (ZeroDivisionError("secret"), 500, "internal"),
    ],
    ids=["timeout", "cancelled", "bug"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "events"])
def test_a_turn_that_fails(error, status, code, stream):
    with client(ScriptedEngine([Failed(error)])) as http:
        response = http.post("/v1/respond", json={**say("x"), "stream": stream})
        figures = http.get("/metrics").text
    assert the_problem(response, status)["code"] == code
    assert "secret" not in response.text
    assert f'crs_fast_turns_failed_total{{reason="{code}"}} 1.0' in figures


def test_a_turn_that_fails_on_the_way():
    engine = ScriptedEngine([*EVENTS[:2], Failed(TimeoutError("late"))])
    with client(engine) as http:
        respond = http.post("/v1/respond", json={**say("x"), "stream": True})
        chat = http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    names, contents = zip(*events_of(respond), strict=True)
    assert names == ("ranked", "text", "error")
    assert (contents[-1]["status"], contents[-1]["code"]) == (504, "timeout")
    assert '"code": "timeout"' in chat.text
    assert "[DONE]" not in chat.text


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def test_a_token_guards_all_but_the_page_and_the_probes():
    with client(access=Access("s3cret")) as http:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
            response = http.get(path)
            assert the_problem(response, 401)["code"] == "unauthorized"
            assert response.headers["www-authenticate"] == "Bearer"
        for wrong in (bearer("s3cre"), bearer("s3cret2"), {"Authorization": "s3cret"},
                      {"Authorization": b"Bearer s\xc3\xa9cret"}):  # fmt: skip
            assert http.get("/v1/models", headers=wrong).status_code == 401
        assert http.get("/v1/models", headers=bearer("s3cret")).status_code == 200
        for path in ("/", "/page/page.js", "/page/page.css", "/health", "/ready"):
            assert http.get(path).status_code == 200
        # The body is not read before the token is right.
        assert http.post("/v1/respond", content=b"x" * 2_000_000).status_code == 401


def test_the_name_that_the_server_is_called_by():
    with client(access=Access(hosts=("localhost", "::1"))) as http:
        for host in ("localhost", "LOCALHOST:8000", "[::1]:8000"):
            assert http.get("/health", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "localhost.evil.example", ""):
            response = http.get("/health", headers={"Host": host})
            assert the_problem(response, 421)["code"] == "wrong_host"


def test_every_answer_has_the_security_headers():
    with client() as http:
        answers = [http.get("/"), http.get("/nowhere"), http.post("/v1/respond", json={})]
    for answer in answers:
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_full_queue_is_not_ready():
    with client() as http:
        assert http.get("/ready").json() == {"status": "ok"}
        http.engine.metrics = {"queue_length": 4}
        assert the_problem(http.get("/ready"), 503)["code"] == "busy"
        assert http.get("/health").status_code == 200


def test_an_engine_that_has_failed_is_neither_ready_nor_healthy():
    with client() as http:
        http.engine.is_closed = True
        for path in ("/health", "/ready"):
            assert the_problem(http.get(path), 503)["code"] == "ending"


def test_paths_and_methods_that_there_are_not():
    with client() as http:
        assert the_problem(http.get("/nowhere"), 404)["code"] == "not_found"
        assert the_problem(http.get("/v1/respond"), 405)["code"] == "method_not_allowed"
        assert the_problem(http.get("/page/page.html"), 404)["code"] == "not_found"
        assert the_problem(http.get("/page/..%2fapp.py"), 404)["code"] == "not_found"


def test_figures_for_prometheus():
    with client() as http:
        http.engine.metrics = {"queue_length": 3}
        http.post("/v1/respond", json=say("x"))
        figures = http.get("/metrics")
    assert figures.headers["content-type"].startswith("text/plain")
    for line in (
        'crs_fast_turns_total{mode="rec"} 1.0',
        'crs_fast_tokens_total{kind="prompt"} 12.0',
        'crs_fast_tokens_total{kind="cached"} 5.0',
        'crs_fast_tokens_total{kind="completion"} 3.0',
        "crs_fast_illegal_items_total 0.0",
        "crs_fast_unknown_items_total 1.0",
        'crs_fast_stage_seconds_sum{stage="rank"} 0.03',
        "crs_fast_engine_queue_length 3.0",
    ):
        assert line in figures.text.split("\n"), line


def test_a_limit_must_be_above_zero():
    with pytest.raises(ValueError, match="max_beams must be above 0"):
        Limits(max_beams=0)


@pytest.mark.parametrize("token", ["", " ", "naïve"])
def test_a_token_must_fit_a_header(token):
    with pytest.raises(ValueError, match="token must be ASCII"):
        Access(token)


TEXTS = st.text(st.characters(codec=None), max_size=4)  # with lone surrogates
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS | st.sampled_from(["user", "assistant", "system", "rec", "chat", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system"]) | SCALARS, "content": VALUES}
    )
    | VALUES,
    max_size=3,
)
NAMES = sorted({*RespondRequest.model_fields, *ChatRequest.model_fields, "n", "stop", "tools"})


@settings(max_examples=120, deadline=None)
@given(
    path=st.sampled_from(["/v1/respond", "/v1/chat/completions"]),
    messages=MESSAGES | VALUES | st.just(ASK),
    members=st.dictionaries(st.sampled_from(NAMES) | TEXTS, VALUES, max_size=3),
)
def test_no_body_is_our_fault(fuzzed, path, messages, members):
    body = json.dumps({"messages": messages, "model": "films", **members})
    response = fuzzed.post(path, content=body, headers={"Content-Type": "application/json"})
    if response.status_code != 200:
        the_problem(response, response.status_code)
    assert response.status_code in (200, 400, 404, 422)


@pytest.fixture(scope="module")
def fuzzed():
    with client() as http:
        yield http
