"""What the server promises, asked of a running one: uvicorn, the engine, a catalogue on disk, and a
model of films and books."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import openai
import pytest

from crs_fast.crs import Recommender, make_model_directory
from crs_fast.crs.data.dialogue import Item
from crs_fast.serve import CatalogueStore, Engine
from crs_fast.serve.app import create_app
from crs_fast.trie import SidTrie
from crs_fast.trie.sid_vocab import add_special_tokens
from python_tests.crs.tiny_system import SIDS, system
from python_tests.helpers import sharpen

from .doubles import running, wait_until
from .test_engine import Gate

GENRES = ("comedy", "drama", "comedy, drama", "horror")
FILMS = [Item(f"i{n}", f"Film {n}", 1990 + n, {"genres": GENRES[n % 4]}) for n in range(8)]
BOOKS = [Item(f"b{n}", f"Book {n}", None, {"genres": "novel"}) for n in range(5)]
BOOK_SIDS = [[n % 4, 3, n % 3] for n in range(5)]
ASK = [{"role": "user", "content": "I like Film 3 and Book 2, any more?"}]
TURN = {"messages": ASK, "mode": "rec", "num_items": 20, "max_new_tokens": 4}


HTTP = httpx.Client(timeout=60)  # each call of httpx.get would load certificates


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    model, tokenizer, _, vocab, _, _ = system()
    (book,) = add_special_tokens(tokenizer, model, ["<BOB>"])
    sharpen(model)
    films = SidTrie.from_sids(SIDS, [film.item_id for film in FILMS])
    books = SidTrie.from_sids(BOOK_SIDS, [book.item_id for book in BOOKS])
    path = tmp_path_factory.mktemp("model") / "shop"
    tries = {vocab.begin: films, book: books}
    make_model_directory(path, model, tokenizer, tries, vocab, [*FILMS, *BOOKS])
    return Recommender.from_pretrained(path)


@contextmanager
def served(recommender, folder, **options):
    """The address of a server whose catalogue is kept in a folder."""
    store = CatalogueStore(
        recommender, folder, on_swap=lambda new: engine.swap(new.recommender, new.version)
    )
    current = store.current
    engine = Engine(current.recommender, version=current.version, **options)
    with running(create_app(engine, store=store, name="shop")) as url:
        yield url


@pytest.fixture(scope="module")
def url(recommender, tmp_path_factory):
    with served(recommender, tmp_path_factory.mktemp("catalogue")) as address:
        yield address


def respond(url, **more):
    return HTTP.post(f"{url}/v1/respond", json={**TURN, **more})


def ids(answer):
    return [item["id"] for item in answer["items"]]


LISTS = [
    {},
    {"groups": ["novel"]},
    {"groups": ["Drama", "horror"], "exclude": ["i5"]},
    {"exclude": ["i1", "b0"], "max_per_group": 1},
    {"allow": ["i0", "i1", "i2", "b1"], "groups": ["comedy", "novel"]},
    {"max_per_group": {"comedy": 2, "novel": 1}, "repeat_named": True},
]


def test_lists_groups_and_limits_of_many_requests_at_once(recommender, url):
    with ThreadPoolExecutor(len(LISTS)) as pool:
        answers = list(pool.map(lambda lists: respond(url, **lists).json(), LISTS))
    for lists, answer in zip(LISTS, answers, strict=True):
        lists = {"repeat_named": False, **lists}
        expected = recommender.respond(ASK, "rec", 20, max_new_tokens=4, **lists)
        assert ids(answer) == [item_id for item_id, _, _ in expected.items]
        scores = [score for _, _, score in expected.items]
        assert [item["score"] for item in answer["items"]] == pytest.approx(scores, abs=1e-4)
        assert answer["text"] == expected.text
        assert answer["invalid_items"] == 0
    assert set(ids(answers[0])) == {i.item_id for i in (*FILMS, *BOOKS)} - {"i3", "b2"}
    assert set(ids(answers[1])) == {"b0", "b1", "b3", "b4"}
    assert set(ids(answers[2])) == {"i1", "i2", "i6", "i7"}
    assert set(ids(answers[4])) == {"i0", "i2", "b1"}


def test_streams_at_once_are_the_answers_in_parts(url):
    bodies = [{"max_new_tokens": n, "num_items": n} for n in (2, 5, 9, 14)]
    whole = [respond(url, **body).json() for body in bodies]
    with ThreadPoolExecutor(4) as pool:
        streams = list(pool.map(lambda body: respond(url, **body, stream=True).text, bodies))
    for answer, text in zip(whole, streams, strict=True):
        parts = [json.loads(line) for line in re.findall(r"^data: (.*)$", text, re.MULTILINE)]
        assert "".join(part.get("delta", "") for part in parts) == answer["text"]
        assert ids(parts[0]) == ids(parts[-1]) == ids(answer)


def test_openais_client_gets_the_same_turn(url):
    whole = respond(url, num_items=3).json()
    options = {"mode": "rec", "num_items": 3}
    call = dict(model="shop", messages=ASK, max_tokens=4, extra_body={"crs_fast": options})
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        completion = client.chat.completions.create(**call)
        chunks = list(client.chat.completions.create(**call, stream=True))
    assert completion.choices[0].message.content == whole["text"]
    assert ids(completion.crs_fast) == ids(chunks[0].crs_fast) == ids(whole)
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(deltas) == whole["text"]


BAD = {
    "no-messages": {"messages": []},
    "10,000-turns": {"messages": ASK * 10_000},
    "only-system": {"messages": [{"role": "system", "content": "be nice"}]},
    "role-tool": {"messages": [{"role": "tool", "content": "x"}]},
    "image": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    "lone-surrogate": {"messages": [{"role": "user", "content": "half \ud800"}]},
    "items": {"num_items": 1000},
    "beams": {"num_beams": 10**9},
}


def test_bad_input_is_refused_and_the_next_turn_answered(url):
    good = ids(respond(url).json())
    told = set()
    for name, body in BAD.items():
        content = json.dumps({**TURN, **body})
        kind = {"Content-Type": "application/json"}
        answer = HTTP.post(f"{url}/v1/respond", content=content, headers=kind)
        assert answer.status_code == 422, name
        told.add(answer.json()["detail"])
    assert len(told) == len(BAD)  # each has its own words
    too_long = {"messages": [{"role": "user", "content": "x" * 1_000_001}]}
    assert respond(url, **too_long).status_code == 413
    assert ids(respond(url).json()) == good


def test_a_system_message_and_parts_mean_what_the_docs_say(url):
    parts = [{"type": "text", "text": ASK[0]["content"]}]
    messages = [{"role": "system", "content": "Be a pirate."}, {"role": "user", "content": parts}]
    answer, plain = respond(url, messages=messages).json(), respond(url).json()
    assert (ids(answer), answer["text"]) == (ids(plain), plain["text"])
    assert "role system" in answer["warnings"][0]


def test_busy_and_late_turns(recommender, tmp_path):
    """Also while the engine is stuck in a forward pass."""
    gate = Gate(recommender.bundle.model)
    try:
        with served(recommender, tmp_path, max_queue=1) as url, ThreadPoolExecutor(2) as pool:
            stuck = pool.submit(respond, url)
            assert gate.reached.wait(30)
            late = pool.submit(respond, url, timeout=0.2)
            wait_until(lambda: HTTP.get(f"{url}/ready").status_code == 503)
            busy = respond(url)
            assert (busy.status_code, busy.json()["code"]) == (503, "busy")
            assert int(busy.headers["retry-after"]) > 0
            assert HTTP.get(f"{url}/health").status_code == 200
            assert (late.result().status_code, late.result().json()["code"]) == (504, "timeout")
            gate.open.set()
            assert stuck.result().status_code == 200
            figures = HTTP.get(f"{url}/metrics").text
    finally:
        gate.open.set()
        gate.handle.remove()
    assert 'crs_fast_turns_failed_total{reason="busy"} 1.0' in figures
    assert 'crs_fast_turns_failed_total{reason="timeout"} 1.0' in figures


def test_a_catalogue_that_changes_and_goes_back_survives_a_restart(recommender, tmp_path):
    """Also one of films and books, whose items come with SIDs."""
    new = {"item_id": "b9", "title": "Book 9", "genres": "novel"}
    change = {"add": [new], "sids": [[1, 2, 2, 2]], "remove": ["b0"]}
    with served(recommender, tmp_path) as url:
        before = respond(url).json()
        assert HTTP.post(f"{url}/catalogue", json=change).json()["version"] == "1"
        after = respond(url, exclude=["b0"]).json()
        assert set(ids(after)) == set(ids(before)) - {"b0"} | {"b9"}
        assert after["unknown_items"] == ["b0"]
        bad = HTTP.post(f"{url}/catalogue", json={"remove": ["gone"]})
        assert bad.status_code == 422
        assert respond(url).json()["catalogue_version"] == "1"
    with served(recommender, tmp_path) as url:
        again = respond(url, exclude=["b0"]).json()
        assert (ids(again), again["text"]) == (ids(after), after["text"])
        assert set(ids(respond(url, groups=["novel"]).json())) == {"b1", "b3", "b4", "b9"}
        back = HTTP.post(f"{url}/catalogue/rollback", json={"version": "0"}).json()
        assert back["version"] == "0"
    with served(recommender, tmp_path) as url:
        state = HTTP.get(f"{url}/catalogue").json()
        assert (state["version"], state["versions"]) == ("0", ["0", "1"])
        assert ids(respond(url).json()) == ids(before)


def test_figures_after_turns(url):
    def figure(name):
        text = HTTP.get(f"{url}/metrics").text
        return float(re.search(rf"^{re.escape(name)} (.*)$", text, re.MULTILINE)[1])

    names = [
        'crs_fast_turns_total{mode="rec"}',
        "crs_fast_unknown_items_total",
        'crs_fast_stage_seconds_count{stage="rank"}',
        'crs_fast_tokens_total{kind="completion"}',
    ]
    respond(url)
    before = [figure(name) for name in names]
    answer = respond(url, exclude=["gone"], max_new_tokens=40).json()
    after = [figure(name) for name in names]
    added = [now - then for now, then in zip(after, before, strict=True)]
    assert added == [1, 1, 1, answer["usage"]["completion_tokens"]]
    assert figure("crs_fast_illegal_items_total") == 0
    assert figure("crs_fast_engine_queue_length") == 0
