"""`crs-fast chat`: a conversation in the terminal."""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from typing import Any

from crs_fast._text import well_formed

from .arguments import model_arguments
from .inputs import read_model

HELP = "Type a message. /rec or /chat force the next turn's mode, /new starts over, /quit ends."


def add(commands: Any) -> None:
    parser = commands.add_parser("chat", help="talk to a trained recommender")
    parser.add_argument("--model", default="crs_fast_quickstart/model", help="a model directory")
    model_arguments(parser)
    parser.add_argument("--items", type=int, default=5, help="items to list under a reply")
    parser.add_argument("--sample", action="store_true", help="sample the words")
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Read messages from the terminal until /quit or end of input."""
    from crs_fast.crs.turn import TurnCache

    recommender, cache = read_model(args), TurnCache()
    _never_fail_on_characters()
    print(HELP)
    messages: list[dict[str, Any]] = []
    mode: str | None = None
    while True:
        try:
            text = _decoded(input("you> ")).strip()
        except EOFError:
            return 0
        if text == "/quit":
            return 0
        if text == "/new":
            messages, mode = [], None
            print("(a new conversation)")
        elif text in ("/rec", "/chat"):
            mode = text[1:]
            print(f"(the next turn is {mode})")
        elif text.startswith("/"):
            print(HELP)
        elif text:
            messages.append({"role": "user", "content": text})
            print(answer(recommender, messages, mode, args.items, args.sample, cache))
            mode = None


def _never_fail_on_characters() -> None:
    """Read bytes that are no UTF-8 too, and show a character that the terminal lacks as "?"."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _decoded(line: str) -> str:
    """A line whose bytes were no UTF-8, as Latin-1."""
    try:
        line.encode()
    except UnicodeEncodeError:
        encoding = getattr(sys.stdin, "encoding", None) or "utf-8"
        try:
            return line.encode(encoding, "surrogateescape").decode("latin-1")
        except UnicodeEncodeError:
            return well_formed(line)
    return line


def answer(
    recommender: Any,
    messages: list[dict[str, Any]],
    mode: str | None,
    num_items: int,
    sample: bool,
    cache: Any = None,
) -> str:
    """The next turn as text to show; `messages` gets the reply. `cache` is the dialogue's, if the
    caller keeps one."""
    named = recommender.turns(messages)[-1].item_ids()
    turn = recommender.respond(
        messages,
        mode=mode,
        num_items=num_items,
        repeat_named=False,
        do_sample=sample,
        temperature=0.8,
        top_p=0.9,
        cache=cache,
    )
    shown = [item_id for item_id, _, _ in turn.items]
    messages.append({"role": "assistant", "content": turn.text, "shown": shown})
    lines = [f"  (heard: {', '.join(recommender.titles[i] for i in named)})"] if named else []
    lines.append(f"bot> {turn.text}")
    lines += [
        f"  {rank}. {title}  {score:.2f}" for rank, (_, title, score) in enumerate(turn.items, 1)
    ]
    return "\n".join(lines)
