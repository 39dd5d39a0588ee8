"""`Client` against a double of the server and against predictions of a folder of iEvaLM's rows."""

import ast
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from crs_fast.crs.data import load_dataset
from crs_fast.crs.evaluation.predictions import blank_predictions, write_predictions
from crs_fast.integrations import client
from crs_fast.integrations.client import Client
from python_tests.crs.data.test_unicrs import DIALOGUES, replies_that_recommend, write

ENTITY2ID = {f"i{n}": 100 + n for n in range(8)}
CONTEXT = ["", "Hello!", "I liked Heat", "Which one?", "The first"]
CONV = {"context": CONTEXT, "rec": ["i3", "unknown"], "entity": [], "resp": "Ronin!"}


def test_it_is_one_file_for_python_3_7():
    source = Path(client.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 7))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported == {"json", "urllib"} <= set(sys.stdlib_module_names)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


@pytest.fixture
def server():
    """A server that records requests and answers with `server.answer`, (status, object)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            double.requests.append((self.path, self.headers["Content-Type"], json.loads(body)))
            status, answer = double.answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    double = HTTPServer(("127.0.0.1", 0), Handler)
    double.requests = []
    double.answer = (
        200,
        {
            "mode": "rec",
            "items": [
                {"id": i, "title": i.upper(), "score": -1.0} for i in ("i5", "elsewhere", "i3")
            ],
            "text": "Try Ronin!",
            "rec_probability": 0.7,
        },
    )
    double.url = f"http://127.0.0.1:{double.server_port}"
    threading.Thread(target=double.serve_forever, daemon=True).start()
    yield double
    double.shutdown()
    double.server_close()


def test_get_rec_asks_the_server(server):
    ranks, labels = Client(server.url + "/", ENTITY2ID).get_rec(CONV)
    assert (ranks, labels) == ([[105, 103]], [103])
    messages = [
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "I liked Heat"},
        {"role": "assistant", "content": "Which one?"},
        {"role": "user", "content": "The first"},
    ]
    body = {"messages": messages, "mode": "rec", "num_items": 50, "exclude": []}
    assert server.requests == [("/v1/respond", "application/json", body)]


def test_the_model_chooses_between_asking_and_recommending(server):
    asker, options = Client(server.url, ENTITY2ID), ["A", "B", "C"]
    answer, text = asker.get_conv(CONV)
    assert text == "Try Ronin!"
    assert server.requests[0][2]["mode"] is None
    assert asker.get_choice(answer, options, [0, 0, 0]) == "C"
    server.answer[1]["mode"] = "chat"
    answer, _ = asker.get_conv(CONV)
    assert asker.get_choice(answer, options, [0, 0, 0], CONV) == "A"
    assert asker.get_choice(answer, options, [-1e5, 0, 0]) == "B"
    assert asker.get_choice(answer, options, [-1e5, -1e5, 0]) == "C"


def test_what_goes_wrong_is_said(server):
    server.answer = 422, {"error": {"message": "respond: mode must be one of"}}
    with pytest.raises(RuntimeError, match=r"status 200 \(got 422: .*mode must be one of"):
        Client(server.url, ENTITY2ID).get_conv(CONV)
    server.answer = 200, {"items": [{"id": "x"}]}
    with pytest.raises(ValueError, match=r"entity2id must name .* none of 1, such as 'x'"):
        Client(server.url, ENTITY2ID).get_rec(CONV)
    with pytest.raises(ConnectionError, match="must be a running server"):
        Client("http://127.0.0.1:9", ENTITY2ID, timeout=1).get_conv(CONV)


@pytest.fixture
def rows(tmp_path):
    """iEvaLM's rows of a small data set, and predictions for it: each ranks its gold items after
    i7 and says which turn it belongs to."""
    rows = [row for d in DIALOGUES[:-1] for row in replies_that_recommend(d)]
    write(tmp_path, "test", rows)
    predictions = blank_predictions(load_dataset(tmp_path).splits["test"])
    for p in predictions:
        p.ranking = ["i7", *(i for i in p.gold_items if i != "i7")]
        p.reply, p.rec_probability = f"{p.dialogue_id} {p.turn}", 0.9
    write_predictions(tmp_path / "predictions.jsonl", predictions)
    (tmp_path / "entity2id.json").write_text(json.dumps(ENTITY2ID))
    return rows, predictions, Client(tmp_path / "predictions.jsonl", tmp_path / "entity2id.json")


def test_predictions_answer_the_rows_of_the_data_set(rows):
    rows, predictions, reader = rows
    assert rows
    asked = [p for p in predictions if p.gold_items]
    for row, p in zip(rows, asked, strict=True):
        (ranking,), labels = reader.get_rec(row)
        assert ranking == [ENTITY2ID[i] for i in p.ranking]
        assert labels == [ENTITY2ID[i] for i in p.gold_items]
        answer, text = reader.get_conv(row)
        assert (answer["mode"], text) == ("rec", f"{p.dialogue_id} {p.turn}")


def test_predictions_do_not_answer_a_simulated_user(rows):
    rows, _, reader = rows
    row = rows[0]
    longer = {**row, "context": [*row["context"], "no", "why?", "no", "why?", "no", "why?", "no"]}
    with pytest.raises(ValueError, match=r"got none for dialogue 'a', turn \d+\); a simulated"):
        reader.get_rec(longer)
    with pytest.raises(ValueError, match="got one about other items"):
        reader.get_rec({**row, "rec": ["i6"]})
