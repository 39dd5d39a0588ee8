"""The whole server: uvicorn on a free port, the engine, a tiny model."""

import concurrent.futures
import http.client
import json
import re
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from crs_fast.serve import Engine
from crs_fast.serve.app import create_app
from crs_fast.serve.http.limits import Limits

from .doubles import EVENTS, ScriptedEngine, running, wait_until

ASK = {"messages": [{"role": "user", "content": "I like Film 3, any more?"}], "max_new_tokens": 6}


@pytest.fixture(scope="module")
def url(recommender):
    with running(create_app(Engine(recommender), name="model")) as address:
        yield address


def ids(answer):
    return [item["id"] for item in answer["items"]]


def test_an_answer_is_that_of_respond(recommender, url):
    given = {**ASK, "mode": "rec", "num_items": 3, "repeat_named": True}
    answer = httpx.post(f"{url}/v1/respond", json=given).json()
    expected = recommender.respond(ASK["messages"], "rec", 3, max_new_tokens=6)
    assert ids(answer) == [item_id for item_id, _, _ in expected.items]
    scores = [score for _, _, score in expected.items]
    assert [item["score"] for item in answer["items"]] == pytest.approx(scores, abs=1e-4)
    assert answer["text"] == expected.text
    assert answer["rec_probability"] == pytest.approx(expected.rec_probability, abs=1e-4)
    assert [item["id"] for item in answer["items"] if item["named_before"]] in (["i3"], [])


def test_events_are_the_answer_in_parts(url):
    given = {**ASK, "mode": "rec", "num_items": 3}
    whole = httpx.post(f"{url}/v1/respond", json=given).json()
    text = httpx.post(f"{url}/v1/respond", json={**given, "stream": True}).text
    contents = [json.loads(line) for line in re.findall(r"^data: (.*)$", text, re.MULTILINE)]
    assert contents[0]["items"] == whole["items"] == contents[-1]["items"]
    assert "i3" in whole["already_named"]
    assert "".join(content.get("delta", "") for content in contents) == whole["text"]


def test_unknown_ids_are_reported_and_harm_no_neighbour(url):
    given = {**ASK, "mode": "rec", "num_items": 3}
    alone = httpx.post(f"{url}/v1/respond", json=given).json()
    odd = {**given, "exclude": ["gone", "i1"], "allow": ["i1", "i2", "nowhere"]}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda body: httpx.post(f"{url}/v1/respond", json=body, timeout=60).json(),
                [given, odd] * 4,
            )
        )
    for answer in answers[::2]:
        assert ids(answer) == ids(alone)
        scores = [item["score"] for item in alone["items"]]
        assert [item["score"] for item in answer["items"]] == pytest.approx(scores, abs=1e-4)
        assert answer["unknown_items"] == []
    for answer in answers[1::2]:
        assert ids(answer) == ["i2"]
        assert sorted(answer["unknown_items"]) == ["gone", "nowhere"]


def test_lists_that_hold_unknown_ids_alone_allow_nothing(url):
    for member in ({"allow": ["nowhere"]}, {"groups": ["nowhere"]}):
        answer = httpx.post(f"{url}/v1/respond", json={**ASK, "mode": "rec", **member}).json()
        assert (answer["mode"], answer["items"]) == ("chat", [])
        assert answer["unknown_items"] == ["nowhere"]


def test_a_conversation_reads_its_new_words_only(url):
    given = {**ASK, "conversation": "mine"}
    first = httpx.post(f"{url}/v1/respond", json=given).json()
    reply = {"role": "assistant", "content": first["text"]}
    more = {"messages": [*ASK["messages"], reply, {"role": "user", "content": "And another?"}]}
    second = httpx.post(f"{url}/v1/respond", json={**given, **more}).json()
    alone = httpx.post(f"{url}/v1/respond", json={**given, **more, "conversation": None}).json()
    assert first["usage"]["cached_tokens"] == 0
    assert 0 < second["usage"]["cached_tokens"] < second["usage"]["prompt_tokens"]
    assert second["text"] == alone["text"]
    assert ids(second) == ids(alone)


def test_a_stream_is_finished_before_the_server_ends(recommender):
    context = running(create_app(Engine(recommender)))
    url = context.__enter__()
    body = {**ASK, "max_new_tokens": 60, "stream": True}
    with httpx.stream("POST", f"{url}/v1/respond", json=body, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: ranked"
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            end = pool.submit(context.__exit__, None, None, None)
            rest = list(lines)
            end.result()
    assert "event: done" in rest


def test_the_examples_of_the_interface_run(url):
    paths = httpx.get(f"{url}/openapi.json").json()
    schemas = paths["components"]["schemas"]
    count = 0
    for path, methods in paths["paths"].items():
        body = methods.get("post", {}).get("requestBody", {})
        for content in body.get("content", {}).values():
            for example in schemas[content["schema"]["$ref"].rpartition("/")[2]]["examples"]:
                answer = httpx.post(url + path, json=example, timeout=60)
                assert answer.status_code == 200, (path, answer.text)
                count += 1
    assert count >= 2


@pytest.mark.parametrize("stream", [False, True], ids=["json", "events"])
def test_a_client_that_goes_away_cancels_its_turn(stream):
    engine = ScriptedEngine(EVENTS[:1])
    with running(create_app(engine)) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        body, kind = json.dumps({**ASK, "stream": stream}), {"Content-Type": "application/json"}
        connection.request("POST", "/v1/respond", body, headers=kind)
        wait_until(lambda: engine.tickets)
        if stream:
            assert b"ranked" in connection.getresponse().read(20)
        assert not engine.tickets[0].is_cancelled
        connection.close()
        wait_until(lambda: engine.tickets[0].is_cancelled)
        count = 'crs_fast_turns_failed_total{reason="cancelled"} 1.0'
        wait_until(lambda: count in httpx.get(f"{url}/metrics").text)


def test_a_body_that_never_ends(recommender):
    limits = Limits(body_seconds=0.2)
    with running(create_app(ScriptedEngine(), limits=limits)) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(
                b"POST /v1/respond HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
                b"Content-Type: application/json\r\n\r\n{"
            )
            connection.settimeout(30)
            assert b"408 Request Timeout" in connection.recv(1000)
