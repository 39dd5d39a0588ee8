"""`python -m benchmarks.serving.soak --model DIR --minutes 30`: mixed calls to a server for long.

It starts `crs-fast serve` and sends it turns as JSON, as server-sent events and as OpenAI's client
does, bad bodies, and clients that go away, while the catalogue is swapped every second. It fails if
an item is not of the catalogue that an answer names, if an answer has another status than it must
have, or if the server's memory grows.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .load import every
from .seekers import Conversation, conversations

GROWTH = 0.05  # of the memory after a quarter of the time: more is a leak
GOOD = {"messages": [{"role": "user", "content": "hello"}]}
BAD = [  # a body and the status that it must get
    (b"", 422),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b"[" * 100_000, 400),
    (b"[]", 422),
    (b"{}", 422),
    (json.dumps({"messages": []}).encode(), 422),
    (json.dumps({**GOOD, "num_items": -1}).encode(), 422),
    (json.dumps({**GOOD, "num_items": 10**9}).encode(), 422),
    (json.dumps({**GOOD, "mode": "sing"}).encode(), 422),
    (json.dumps({**GOOD, "unknown": 1}).encode(), 422),
    (json.dumps({"messages": [{"role": "user", "content": "\ud800"}]}).encode(), 422),
    (json.dumps({"messages": GOOD["messages"] * 500}).encode(), 422),
    (b" " * 2_000_000, 413),
]


class Soak:
    """What clients do and see. Any thread may call any method.

    item_ids: of the first catalogue
    """

    def __init__(self, url: str, model: str, item_ids: Sequence[str]) -> None:
        self.address = urlsplit(url)
        self.model, self.item_ids = model, list(item_ids)
        self.versions = {"0": frozenset(item_ids)}
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._local = threading.local()

    def client(self, number: int, clients: int, until: float) -> None:
        """Take calls of all kinds until that time."""
        draw = random.Random(number)
        kinds: list[Callable[[Conversation, random.Random], None]] = [
            self.json_turn, self.json_turn, self.event_turn, self.openai_turn,
            self.openai_events, self.bad_body, self.cancelled,
        ]  # fmt: skip
        for conversation in conversations(number, clients):
            while conversation.say():
                if time.monotonic() > until:
                    return
                kind = draw.choice(kinds)
                try:
                    kind(conversation, draw)
                    self._count(kind.__name__)
                except Exception as error:
                    self._fail(f"{kind.__name__}: {type(error).__name__}: {error}")
                    self._local.__dict__.pop("connection", None)

    def json_turn(self, conversation: Conversation, draw: random.Random) -> None:
        """`/v1/respond`, answered as JSON."""
        body = self._request(conversation, draw)
        self._check(conversation, body, json.loads(self._post("/v1/respond", body)))

    def event_turn(self, conversation: Conversation, draw: random.Random) -> None:
        """`/v1/respond`, answered as server-sent events."""
        body = self._request(conversation, draw)
        text = self._post("/v1/respond", {**body, "stream": True}).decode()
        events = [event.split("\ndata: ", 1) for event in text.strip().split("\n\n")]
        names = [name.removeprefix("event: ") for name, _ in events]
        if names[0] != "ranked" or names[-1] != "done":
            raise RuntimeError(f"events {names[:3]} … {names[-1]}")
        self._check(conversation, body, json.loads(events[-1][1]))

    def openai_turn(self, conversation: Conversation, draw: random.Random) -> None:
        """`/v1/chat/completions`, answered as JSON."""
        body = self._request(conversation, draw)
        answer = json.loads(self._post("/v1/chat/completions", self._as_openai(body)))
        self._check(conversation, body, answer["crs_fast"])

    def openai_events(self, conversation: Conversation, draw: random.Random) -> None:
        """`/v1/chat/completions`, answered as chunks."""
        body = self._request(conversation, draw)
        sent = {**self._as_openai(body), "stream": True}
        lines = self._post("/v1/chat/completions", sent).decode().strip().split("\n\n")
        if lines[-1] != "data: [DONE]":
            raise RuntimeError(f"the last chunk is {lines[-1][:200]}")
        self._check(conversation, body, json.loads(lines[-2].removeprefix("data: "))["crs_fast"])

    def bad_body(self, conversation: Conversation, draw: random.Random) -> None:
        """A body that must be refused."""
        content, status = draw.choice(BAD)
        self._post("/v1/respond", content, expected=status)

    def cancelled(self, conversation: Conversation, draw: random.Random) -> None:
        """A client that goes away: within its body, before the answer, or within it."""
        body = json.dumps({**self._request(conversation, draw), "stream": draw.random() < 0.5})
        head = (
            f"POST /v1/respond HTTP/1.1\r\nHost: {self.address.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        sent = (head + body).encode()
        place = (self.address.hostname or "", self.address.port or 80)
        with socket.create_connection(place, timeout=60) as connection:
            when = draw.choice(("within the body", "before the answer", "within the answer"))
            connection.sendall(sent[:-5] if when == "within the body" else sent)
            if when == "before the answer":
                time.sleep(draw.random() / 20)
            elif when == "within the answer":
                connection.recv(200)

    def swap(self) -> None:
        """Change the catalogue: a seventh of the items goes, or version 0 comes back."""
        number = self.counts["swaps"] + 1
        try:
            if number % 2:
                gone = self.item_ids[number % 7 :: 7]
                # Known before the server has it, since an answer may name it at once.
                version = str(len(self.versions))
                self.versions[version] = frozenset(self.item_ids) - {*gone}
                state = json.loads(self._post("/catalogue", {"remove": gone}))
            else:
                version = "0"
                state = json.loads(self._post("/catalogue/rollback", {"version": version}))
            if state["version"] != version:
                raise RuntimeError(f"version {state['version']} instead of {version}")
        except Exception as error:
            self._fail(f"swap: {type(error).__name__}: {error}")
        self._count("swaps")

    def metric(self, name: str) -> float:
        """A figure of `/metrics`."""
        self._connection().request("GET", "/metrics")
        text = self._connection().getresponse().read().decode()
        [line] = [line for line in text.splitlines() if line.startswith(name + " ")]
        return float(line.split()[1])

    def _request(self, conversation: Conversation, draw: random.Random) -> dict[str, Any]:
        body: dict[str, Any] = {
            "messages": conversation.messages,
            "num_items": draw.choice((1, 5, 10)),
            "max_new_tokens": draw.choice((8, 64)),
            "exclude": draw.sample(self.item_ids, min(5, len(self.item_ids) // 2)),
        }
        optional = {
            "mode": draw.choice(("rec", "chat")),
            "conversation": conversation.name,
            "repeat_named": True,
            "num_beams": draw.choice((10, 20, 100)),
        }
        return body | {name: value for name, value in optional.items() if draw.random() < 0.5}

    def _as_openai(self, body: dict[str, Any]) -> dict[str, Any]:
        messages = [
            {name: message[name] for name in ("role", "content")} for message in body["messages"]
        ]
        left = {name: body[name] for name in body.keys() - {"messages", "max_new_tokens"}}
        return {
            "model": self.model,
            "messages": messages,
            "max_tokens": body["max_new_tokens"],
            "crs_fast": left,
        }

    def _check(
        self, conversation: Conversation, body: dict[str, Any], answer: dict[str, Any]
    ) -> None:
        item_ids = [item["id"] for item in answer["items"]]
        given = {*item_ids, *answer["named"]}
        illegal = given - self.versions[answer["catalogue_version"]] | given & {*body["exclude"]}
        if illegal or answer["invalid_items"]:
            self._count("illegal_items", max(len(illegal), answer["invalid_items"]))
        self._count("items", len(item_ids))
        conversation.hear(answer["text"], item_ids)

    def _post(self, path: str, body: Any, expected: int = 200) -> bytes:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = self._connection()
        connection.request("POST", path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != expected:
            raise RuntimeError(f"status {response.status} instead of {expected}: {answer[:300]!r}")
        return answer

    def _connection(self) -> http.client.HTTPConnection:
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection(
                self.address.hostname or "", self.address.port, timeout=120
            )
        return self._local.connection

    def _count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self.counts[name] += by

    def _fail(self, text: str) -> None:
        with self._lock:
            self.counts["failures"] += 1
            if len(self.failures) < 20:
                self.failures.append(text)


class Process:
    """Memory, threads and open files of a process, noted whenever `note` is called."""

    def __init__(self, pid: int) -> None:
        self.folder = Path("/proc") / str(pid)
        self.noted: list[dict[str, float]] = []

    def note(self) -> None:
        """Note what they are now."""
        pages = int((self.folder / "statm").read_text().split()[1])
        self.noted.append(
            {
                "mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
                "threads": len(list((self.folder / "task").iterdir())),
                "files": len(list((self.folder / "fd").iterdir())),
            }
        )

    def row(self) -> dict[str, float]:
        """Medians of a thirtieth of the time: after a quarter of it, when all is warm, and at its
        end."""
        count = len(self.noted)
        width = max(1, count // 30)
        parts = {"warm": self.noted[count // 4 :][:width], "end": self.noted[-width:]}
        return {
            f"{when}_{name}": round(sorted(one[name] for one in part)[len(part) // 2], 1)
            for when, part in parts.items()
            for name in ("mib", "threads", "files")
        }


def run(soak: Soak, process: Process, seconds: float, clients: int, swap: float) -> dict[str, Any]:
    """All clients beside swaps of the catalogue. Returns the figures."""
    began = time.monotonic()
    threads = [
        threading.Thread(target=soak.client, args=(number, clients, began + seconds))
        for number in range(clients)
    ]
    with every(swap, soak.swap), every(min(1.0, seconds / 30), process.note):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {
        "minutes": round((time.monotonic() - began) / 60, 2),
        "clients": clients,
        "illegal_items": 0,
        "failures": 0,
        **soak.counts,
        "server_illegal_items": soak.metric("crs_fast_illegal_items_total"),
        **process.row(),
        "first_failures": soak.failures,
    }


def faults(row: dict[str, Any]) -> list[str]:
    """What of a run is not as it must be."""
    names = ("illegal_items", "server_illegal_items", "failures")
    problems = [f"{name}: {row[name]}" for name in names if row[name]]
    if row["end_mib"] > (1 + GROWTH) * row["warm_mib"]:
        problems.append(f"memory grew from {row['warm_mib']} to {row['end_mib']} MiB")
    return problems


@contextmanager
def served(model: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """`crs-fast serve` on a free port: its address and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "crs_fast.cli", "serve", "--model", str(model), "--name", "soak",
        "--port", str(port), "--catalogue", str(folder / "catalogue"), "--cache-gib", "0.02",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        else:
            raise RuntimeError(f"the server ended: {(folder / 'log').read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        server.terminate()
        server.wait(90)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it, print the figures, and fail if something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a model directory")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--swap", type=float, default=1.0, help="seconds between swaps; 0: none")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(arguments)
    lines = (args.model / "items.jsonl").read_text().splitlines()
    item_ids = [str(json.loads(line)["item_id"]) for line in lines]
    with tempfile.TemporaryDirectory() as folder, served(args.model, Path(folder)) as (url, pid):
        soak, process = Soak(url, "soak", item_ids), Process(pid)
        row = run(soak, process, 60 * args.minutes, args.clients, args.swap)
    print(json.dumps(row, indent=1))
    if args.out:
        args.out.write_text(json.dumps(row | {"memory": process.noted}, indent=1) + "\n")
    for fault in faults(row):
        print(fault, file=sys.stderr)
    return int(bool(faults(row)))


if __name__ == "__main__":
    raise SystemExit(main())
