"""What one request may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .problems import Problem
from .schemas import RespondRequest


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one request may hold. A body that is too long is answered with status 413,
    one that arrives too slowly with 408, everything else that is past its limit with 422.

    max_body_bytes: bytes of a request's body
    body_seconds: how long the body may take to arrive
    max_messages: messages of one conversation
    max_characters: characters of all messages together
    max_beams: width of the beam search
    max_items: items of one answer
    max_new_tokens: tokens of one reply
    max_ids: ids in `exclude`, in `allow` and shown beside messages, together
    max_seconds: how long one request may take, from its arrival to the end of its reply
    """

    max_body_bytes: int = 1_000_000
    body_seconds: float = 15.0
    max_messages: int = 200
    max_characters: int = 100_000
    max_beams: int = 200
    max_items: int = 100
    max_new_tokens: int = 512
    max_ids: int = 10_000
    max_seconds: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"Limits: {field.name} must be above 0 (got {value})")

    def check(self, request: RespondRequest) -> None:
        """Raise a `Problem` that names the first field past its limit."""
        characters = sum(len(message.content) for message in request.messages)
        shown = sum(len(message.shown) for message in request.messages)
        ids = len(request.exclude) + len(request.allow or ()) + shown
        sizes: list[tuple[str, str, float, float]] = [
            ("messages", "messages", len(request.messages), self.max_messages),
            ("messages", "characters in all", characters, self.max_characters),
            ("num_items", "items", request.num_items, self.max_items),
            ("num_beams", "beams", request.beams, self.max_beams),
            ("max_new_tokens", "tokens", request.max_new_tokens, self.max_new_tokens),
            ("exclude", "ids, with those of allow and shown", ids, self.max_ids),
            ("timeout", "seconds", request.timeout or 0, self.max_seconds),
        ]
        for field, unit, size, most in sizes:
            if size > most:
                raise Problem(
                    422,
                    f"{field} must have at most {most:g} {unit} (got {size:g})",
                    code="limit",
                    field=field,
                )
