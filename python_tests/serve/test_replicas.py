"""Two replicas on a local Ray answer, follow the catalogue of each other, and keep the rules of
who may come in."""

import re
import socket

import httpx
import pytest

from crs_fast.serve.http.guard import Access

from .doubles import wait_until
from .test_catalogue import made

pytestmark = pytest.mark.ray

ASK = {
    "messages": [{"role": "user", "content": "I like Film 3, any more?"}],
    "max_new_tokens": 6,
    "mode": "rec",
    "num_items": 8,
}
ADMIN = {"Authorization": "Bearer admin"}


@pytest.fixture(scope="module")
def recommender():
    return made()


@pytest.fixture(scope="module")
def url(recommender, tmp_path_factory, local_ray):
    serve = pytest.importorskip("ray.serve")
    from crs_fast.serve.replicas import application

    folder = tmp_path_factory.mktemp("replicas")
    recommender.save_pretrained(folder / "films")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    app = application(
        folder / "films",
        catalogue=folder / "catalogue",
        access=Access(admin_token="admin"),
        engine={"max_running": 8},
        poll_seconds=0.05,
        num_replicas=2,
    )
    serve.run(app)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def answers(url, count=12):
    """Of `count` requests, which Ray spreads over the replicas."""
    return [httpx.post(f"{url}/v1/respond", json=ASK, timeout=60).json() for _ in range(count)]


def test_answers_are_those_of_respond(recommender, url):
    expected = recommender.respond(ASK["messages"], "rec", 8, max_new_tokens=6, exclude=["i3"])
    for answer in answers(url):
        assert [i["id"] for i in answer["items"]] == [item_id for item_id, _, _ in expected.items]
        assert answer["text"] == expected.text


def test_events_come_through_the_proxy(url):
    with httpx.stream("POST", f"{url}/v1/respond", json={**ASK, "stream": True}) as answer:
        text = answer.read().decode()
    assert re.findall(r"^event: (ranked|done)$", text, re.MULTILINE) == ["ranked", "done"]


def test_every_replica_serves_a_change(url):
    assert httpx.post(f"{url}/catalogue", json={"remove": ["i5"]}).status_code == 401
    change = {"add": [{"item_id": "n1", "title": "Film 90"}], "sids": [[3, 3, 3]], "remove": ["i5"]}
    state = httpx.post(f"{url}/catalogue", json=change, headers=ADMIN, timeout=60).json()
    assert state["version"] == "1"

    def served():
        return [(a["catalogue_version"], {i["id"] for i in a["items"]}) for a in answers(url)]

    films = {"n1", *(f"i{n}" for n in range(8) if n not in (3, 5))}
    wait_until(lambda: served() == [("1", films)] * 12, 60)


@pytest.mark.parametrize("join", [2, True, "0.1"])
def test_a_share_out_of_range_is_refused_before_a_replica_is_made(tmp_path, join):
    pytest.importorskip("ray.serve")
    from crs_fast.serve.replicas import application

    with pytest.raises(ValueError, match="share must"):
        application(tmp_path, join=join)
