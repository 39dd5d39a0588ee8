"""`crs-fast chat` on bytes that are no UTF-8, and on a terminal that lacks characters."""

import io
import re
import sys
from types import SimpleNamespace

import pytest

from crs_fast.cli import chat, main
from crs_fast.crs import Recommender
from crs_fast.crs.checkpoint import Bundle
from python_tests.crs.tiny_system import ITEMS, system


class Echo:
    """Answers with what it heard."""

    titles: dict[str, str] = {}

    def turns(self, messages):
        return [SimpleNamespace(item_ids=lambda: [])]

    def respond(self, messages, **how):
        messages[-1]["content"].encode()  # what no tokenizer can take must not come this far
        return SimpleNamespace(text=f"heard {messages[-1]['content']} 😀", items=[])


@pytest.mark.parametrize(
    ("line", "heard"),
    [
        ("café".encode("latin-1"), "café"),
        ("café".encode(), "café"),
        ("Amélie, déjà vu".encode("latin-1"), "Amélie, déjà vu"),
        (b"\xff\xfe", "ÿþ"),
        ("中文".encode(), "中文"),
    ],
)
def test_messages_in_any_bytes(line, heard, monkeypatch, capsys):
    monkeypatch.setattr(chat, "read_model", lambda args: Echo())
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(line + b"\nagain\n/quit\n"), encoding="utf-8")
    )
    assert main(["chat", "--model", "x"]) == 0
    out = capsys.readouterr().out
    assert f"bot> heard {heard} 😀" in out
    assert "bot> heard again 😀" in out


def test_a_terminal_that_lacks_a_character_shows_another(monkeypatch):
    monkeypatch.setattr(chat, "read_model", lambda args: Echo())
    shown = io.BytesIO()
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n/quit\n"), encoding="utf-8")
    )
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="latin-1"))
    assert main(["chat", "--model", "x"]) == 0
    sys.stdout.flush()
    assert b"bot> heard hi ?" in shown.getvalue()


def test_what_was_named_or_shown_is_not_listed_again():
    model, tokenizer, trie, vocab, control, builder = system()
    recommender = Recommender(Bundle(model, tokenizer, trie, vocab, control, ITEMS, builder, None))
    messages, listed = [], []
    for text in ("I loved Film 3 and Film 5", "more", "more"):
        messages.append({"role": "user", "content": text})
        told = chat.answer(recommender, messages, "rec", 2, sample=False)
        listed += re.findall(r"^  \d+\. (Film \d)", told, re.MULTILINE)
    assert len(listed) == 6
    assert sorted(listed) == sorted({f"Film {n}" for n in range(8)} - {"Film 3", "Film 5"})
