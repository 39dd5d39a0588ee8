"""The catalogue over HTTP: changes, versions, tokens, and turns before and after."""

import pytest
from fastapi.testclient import TestClient

from crs_fast.serve import CatalogueStore, Engine
from crs_fast.serve.app import create_app
from crs_fast.serve.http.guard import Access
from crs_fast.serve.http.limits import Limits

from .test_app import bearer, the_problem

TURN = {
    "messages": [{"role": "user", "content": "I like Film 3, any more?"}],
    "mode": "rec", "num_items": 20, "max_new_tokens": 2,
}  # fmt: skip
NEW = {"item_id": "n1", "title": "Film 90", "year": 2020, "genres": "comedy, drama"}
ADD = {"add": [NEW], "sids": [[3, 3, 2]]}


@pytest.fixture
def serve(recommender, tmp_path):
    """A function that starts a server on the test's directory and gives a client."""
    clients = []

    def start(access=None, **limits):
        store = CatalogueStore(
            recommender,
            tmp_path / "catalogue",
            on_swap=lambda new: engine.swap(new.recommender, new.version),
        )
        engine = Engine(store.current.recommender, version=store.current.version)
        app = create_app(engine, store=store, access=access, limits=Limits(**limits))
        client = TestClient(app, raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


def turn(http, **more):
    return http.post("/v1/respond", json={**TURN, **more}).json()


def ids(answer):
    return {item["id"] for item in answer["items"]}


def test_a_change_and_the_way_back(serve):
    http = serve()
    before = turn(http)
    assert http.get("/catalogue").json() == {
        "version": "0", "num_items": 8, "groups": [], "versions": ["0"],
        "examples": ["Film 0", "Film 2", "Film 4"],
    }  # fmt: skip
    answer = http.post("/catalogue", json={**ADD, "remove": ["i1"]})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "version": "1", "num_items": 8, "groups": ["comedy", "drama"], "versions": ["0", "1"],
        "examples": ["Film 0", "Film 3", "Film 5"],
    }  # fmt: skip
    after = turn(http, exclude=["i1"])
    assert (before["catalogue_version"], after["catalogue_version"]) == ("0", "1")
    assert ids(before) - ids(after) == {"i1"}
    assert ids(after) - ids(before) == {"n1"}
    assert after["unknown_items"] == ["i1"]
    assert ids(turn(http, groups=["comedy"])) == {"n1"}
    assert http.post("/catalogue/rollback", json={"version": "0"}).json()["version"] == "0"
    assert ids(turn(http)) == ids(before)


def test_a_version_survives_a_restart(serve):
    assert serve().post("/catalogue", json=ADD).json()["version"] == "1"
    again = serve()
    assert again.get("/catalogue").json()["version"] == "1"
    assert "n1" in ids(turn(again))


BAD = {
    "unknown-id": ({"remove": ["gone"]}, 422, "'gone'"),
    "id-that-is-there": ({**ADD, "add": [{**NEW, "item_id": "i1"}]}, 422, "'i1'"),
    "id-twice": ({"add": [NEW, NEW], "sids": [[3, 3, 2], [3, 3, 1]]}, 422, "n1"),
    "taken-sid": ({"add": [NEW], "sids": [[0, 0, 0]]}, 422, "free"),
    "code-without-token": ({"add": [NEW], "sids": [[9, 9, 9]]}, 422, ""),
    "no-title": ({"add": [{"item_id": "n1"}], "sids": [[3, 3, 2]]}, 422, "title"),
    "no-quantizer": ({"add": [NEW]}, 422, "sids"),
    "no-list": ({"add": NEW}, 422, "add"),
    "misspelt": ({"delete": ["i1"]}, 422, "delete"),
}


@pytest.mark.parametrize(("body", "status", "detail"), BAD.values(), ids=BAD)
def test_a_bad_change_changes_nothing(serve, body, status, detail):
    http = serve()
    assert detail in the_problem(http.post("/catalogue", json=body), status)["detail"]
    assert http.get("/catalogue").json()["versions"] == ["0"]


def test_there_is_no_such_version(serve):
    http = serve()
    problem = the_problem(http.post("/catalogue/rollback", json={"version": "9"}), 404)
    assert problem["code"] == "no_version"
    assert problem["field"] == "version"


def test_who_may_change_it(serve):
    http = serve(Access("user", "admin"))
    assert http.get("/catalogue", headers=bearer("user")).status_code == 200
    for path in ("/catalogue", "/catalogue/rollback", "/catalogue/"):
        response = http.post(path, json={"version": "0"}, headers=bearer("user"))
        assert response.status_code == 401
    answer = http.post("/catalogue/rollback", json={"version": "0"}, headers=bearer("admin"))
    assert answer.status_code == 200
    closed = serve(Access(changes=False))
    assert closed.get("/catalogue").status_code == 200
    assert the_problem(closed.post("/catalogue", json=ADD), 403)["code"] == "changes_off"


def test_a_change_may_be_longer_than_a_turn(serve):
    http = serve(max_body_bytes=1000)
    long = {**ADD, "add": [{**NEW, "plot": "x" * 20_000}]}
    assert http.post("/catalogue", json=long).status_code == 200
    longer = {**ADD, "add": [{**NEW, "plot": "x" * 40_000}]}
    assert the_problem(http.post("/catalogue", json=longer), 413)
