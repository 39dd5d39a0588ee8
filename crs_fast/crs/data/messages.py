"""Chat rows as OpenAI's interfaces and most fine-tuning tools write them, in the package's format.

    {"messages": [{"role": "system", "content": "…"},
                  {"role": "user", "content": "I liked Heat."},
                  {"role": "assistant", "content": "Try Ronin!", "items": [{"item_id": "m40"}]}]}

The user is the seeker, the assistant the recommender. `content` is a text, or a list of parts of
which those of type "text" are joined. `items` is as in `jsonl.py`; a message without it is linked:
the catalogue's titles are looked for in its text. Messages of other roles, and those without text
such as calls of tools, are left out and counted. `dialogue_id` may be absent; then it is the file's
name and the number of the row.
"""

from __future__ import annotations

from typing import Any

from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER
from crs_fast.crs.data.lines import ReadReport

_ROLES = {"user": SEEKER, "assistant": RECOMMENDER}
_LEFT_OUT = ("system", "developer", "tool", "function")


def turn_records(messages: Any, report: ReadReport | None = None) -> list[dict[str, Any]]:
    """The messages of one row as `turns` of the package's own format.

    Raises:
        ValueError: no list, an unknown role, or a content that is no text.
    """
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError(f"messages must be a list of objects (got {type(messages).__name__})")
    records = []
    for message in messages:
        role, text = message.get("role"), _text(message.get("content"))
        if role not in _ROLES and role not in _LEFT_OUT:
            raise ValueError(f"role must be one of {(*_ROLES, *_LEFT_OUT)} (got {role!r})")
        if role in _LEFT_OUT or not text:
            if report is not None:
                kind = f"role {role!r}" if role in _LEFT_OUT else "no text"
                report.noise[f"messages with {kind}, left out"] += 1
            continue
        items = {"items": message["items"]} if message.get("items") is not None else {}
        records.append({"role": _ROLES[role], "text": text, **items})
    return records


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = [part.get("text") for part in content if part.get("type") == "text"]
        if all(isinstance(text, str) for text in texts):
            return " ".join(map(str, texts))
    raise ValueError(f"content must be a string, a list of parts or null (got {content!r})")
