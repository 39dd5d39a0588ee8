"""What is fuzzed: functions of bytes that strangers may send, each of which must do what its
interface says or refuse with one clear error.

    trie        a trie's file, as it is and with its checksum made to fit
    index       the first byte says which format of index file the others are
    dialogues   the first byte says which file of a data set the others replace
    http        the first byte says to which route of the server the others are sent
"""

from __future__ import annotations

import asyncio
import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from crs_fast import SidTrie, load_index
from crs_fast.crs.data import load_dataset
from crs_fast.trie.storage import checksum

from .files import DIALOGUE_KINDS, INDEX_KINDS

ROUTES = ("/v1/respond", "/v1/chat/completions", "/catalogue", "/catalogue/rollback")


def trie(data: bytes) -> None:
    """`SidTrie.load`; what it takes can be used."""
    path = _folder("trie") / "trie.safetensors"
    for content in (data, _signed(data)):
        if content is None:
            return
        path.write_bytes(content)
        loaded = _refused_or(lambda: SidTrie.load(path), "SidTrie.load: ")
        if loaded is not None:
            _use(loaded)


def index(data: bytes) -> None:
    """`load_index`; what it takes can be used."""
    name, format = INDEX_KINDS[data[0] % len(INDEX_KINDS)] if data else INDEX_KINDS[0]
    path = _folder("index") / name
    path.write_bytes(data[1:])
    loaded = _refused_or(lambda: load_index(path, format=format), "load_index: ")
    if loaded is not None:
        _use(loaded.trie)


def dialogues(data: bytes) -> None:
    """`load_dataset`, with and without `on_error="skip"`."""
    kind = data[0] % len(DIALOGUE_KINDS) if data else 0
    name, changed, _ = DIALOGUE_KINDS[kind]
    root = _data_set(kind)
    (root / changed).write_bytes(data[1:])
    where = root / name if name in ("own", "unicrs") else name
    for on_error in ("raise", "skip"):
        _refused_or(lambda: load_dataset(where, root, on_error), "load_dataset: ")  # noqa: B023


def http(data: bytes) -> None:
    """A body of a POST: an answer, or problem details that are the client's fault."""
    route = ROUTES[data[0] % len(ROUTES)] if data else ROUTES[0]
    status, answer = _server()(route, data[1:])
    assert status in (200, 400, 404, 413, 422), (route, status, answer[:500])
    if status != 200:
        assert json.loads(answer)["status"] == status


TARGETS: dict[str, Callable[[bytes], None]] = {
    "trie": trie,
    "index": index,
    "dialogues": dialogues,
    "http": http,
}


def _refused_or(call: Callable[[], Any], begins: str) -> Any:
    """The call's result; None where it refuses with the error that it should."""
    try:
        return call()
    except (ValueError, FileNotFoundError) as error:
        if not str(error).startswith(begins):
            raise
        return None


def _use(trie: SidTrie) -> None:
    sids = trie.sids()
    assert sids.shape == (trie.num_items, trie.num_levels)
    assert sum(map(len, trie.items(sids.unique(dim=0)))) == trie.num_items
    assert torch.equal(trie.sids(trie.item_ids.tolist()), sids)


def _signed(data: bytes) -> bytes | None:
    """The file with the checksum of its tensors; None where it is no safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError):
        return None
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__") or {}
    return save(tensors, {**metadata, "sha256": checksum(tensors)})


@lru_cache
def _folder(name: str) -> Path:
    folder = tempfile.mkdtemp(prefix=f"fuzz-{name}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@lru_cache
def _data_set(kind: int) -> Path:
    """A folder of data sets of which one file is to be replaced."""
    root = _folder(f"dialogues-{kind}")
    for path, content in DIALOGUE_KINDS[kind][2].items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(content)
    return root


@lru_cache
def _server() -> Callable[[str, bytes], tuple[int, bytes]]:
    """A server of a tiny model, called without a network."""
    from crs_fast.crs.checkpoint import Bundle
    from crs_fast.crs.recommender import Recommender
    from crs_fast.serve import Engine
    from crs_fast.serve.app import create_app
    from crs_fast.serve.catalogue import CatalogueStore
    from crs_fast.serve.http.limits import Limits
    from python_tests.crs.tiny_system import ITEMS, system

    model, tokenizer, trie, vocab, control, builder = system()
    bundle = Bundle(model, tokenizer, trie, vocab, control, ITEMS, builder, None)
    store = CatalogueStore(
        Recommender(bundle), on_swap=lambda new: engine.swap(new.recommender, new.version), keep=1
    )
    engine = Engine(store.current.recommender, version=store.current.version)
    limits = Limits(max_new_tokens=4, max_beams=8, max_items=8)
    app = create_app(engine, store=store, name="model", limits=limits)
    runner = asyncio.Runner()
    atexit.register(engine.close)

    async def call(route: str, body: bytes) -> tuple[int, bytes]:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": route, "raw_path": route.encode(), "query_string": b"",
            "root_path": "", "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        }  # fmt: skip
        to_send = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if to_send:
                return to_send.pop()
            await asyncio.sleep(3600)
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        return sent[0]["status"], b"".join(part.get("body", b"") for part in sent[1:])

    return lambda route, body: runner.run(call(route, body))
