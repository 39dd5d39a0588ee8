"""`/v1/chat/completions` as OpenAI's own client uses it, over a socket."""

import openai
import pytest

from crs_fast.serve.app import create_app
from crs_fast.serve.requests import Busy, Failed

from .doubles import ANSWER, EVENTS, ScriptedEngine, running

ASK = [{"role": "user", "content": "I liked Film 3, any more?"}]
CALL = {"model": "films", "messages": ASK}


@pytest.fixture(scope="module")
def server():
    """An engine and a client of its server; a test may change the engine's script."""
    engine = ScriptedEngine()
    with running(create_app(engine, name="films")) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        yield engine, client
        client.close()


@pytest.fixture
def engine(server):
    engine, _ = server
    engine.events, engine.error = EVENTS, None
    return engine


@pytest.fixture
def client(engine, server):
    return server[1]


def test_models(client):
    assert [model.id for model in client.models.list()] == ["films"]


def test_a_completion_with_the_items_under_one_member(client, engine):
    options = {"mode": "rec", "num_items": 2, "exclude": ["i0"], "num_beams": 8}
    completion = client.chat.completions.create(
        **CALL, max_tokens=9, temperature=0, extra_body={"crs_fast": options}
    )
    request = engine.request
    assert completion.choices[0].message.content == ANSWER.text
    assert completion.choices[0].finish_reason == "stop"
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (12, 3, 15)
    assert usage.prompt_tokens_details.cached_tokens == 5
    turn = completion.crs_fast
    assert [item["id"] for item in turn["items"]] == ["i1", "i2"]
    assert (turn["mode"], turn["unknown_items"]) == ("rec", ["gone"])
    assert (request.mode, request.num_items, request.num_beams) == ("rec", 2, 8)
    assert (list(request.exclude), request.max_new_tokens) == (["i0"], 9)
    assert not request.do_sample


def test_sampling_and_members_without_effect(client, engine):
    completion = client.chat.completions.create(
        **CALL, temperature=0.5, top_p=0.8, seed=4, presence_penalty=0.3, user="me"
    )
    request = engine.request
    assert (request.do_sample, request.temperature, request.top_p) == (True, 0.5, 0.8)
    assert request.seed == 4
    assert completion.crs_fast["warnings"] == ["presence_penalty has no effect"]


def test_a_reply_at_its_limit_says_so(client):
    completion = client.chat.completions.create(**CALL, max_completion_tokens=3)
    assert completion.choices[0].finish_reason == "length"


def test_a_streamed_completion(client):
    chunks = list(
        client.chat.completions.create(**CALL, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ANSWER.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [item["id"] for item in chunks[0].crs_fast["items"]] == ["i1", "i2"]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == 15
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "model"),
        ({"messages": []}, openai.UnprocessableEntityError, "messages"),
        ({"n": 2}, openai.UnprocessableEntityError, "n"),
        ({"stop": ["."]}, openai.UnprocessableEntityError, "stop"),
        ({"logprobs": True}, openai.UnprocessableEntityError, "logprobs"),
        ({"max_tokens": 10_000}, openai.UnprocessableEntityError, "max_new_tokens"),
        (
            {"extra_body": {"crs_fast": {"num_itmes": 3}}},
            openai.UnprocessableEntityError,
            "crs_fast.num_itmes",
        ),
    ],
    ids=["model", "no-messages", "n", "stop", "logprobs", "max_tokens", "misspelt"],
)
def test_errors_reach_the_client_in_its_own_words(client, options, error, field):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{**CALL, **options})
    assert caught.value.param == field
    assert field.rpartition(".")[2] in caught.value.message


def test_a_busy_server_and_a_failure_on_the_way(client, engine):
    engine.error = Busy("the queue is full")
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(**CALL)
    assert (caught.value.status_code, caught.value.code) == (503, "busy")
    engine.error, engine.events = None, [*EVENTS[:2], Failed(TimeoutError("late"))]
    with pytest.raises(openai.APIError, match="did not end within 60 seconds"):
        list(client.chat.completions.create(**CALL, stream=True))
