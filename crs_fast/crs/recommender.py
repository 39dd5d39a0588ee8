"""`Recommender` answers messages with the model in a trained directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from crs_fast.crs.checkpoint import Bundle, load_bundle
from crs_fast.crs.control_tokens import CHAT, MODES, REC, likelier_mode
from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Mention, Turn, merge_turns
from crs_fast.crs.data.entity_linking import MAX_CHARACTERS, TitleIndex
from crs_fast.crs.turn import TurnBatch, TurnCache
from crs_fast.trie import ItemFilter

ROLES = {"user": SEEKER, "assistant": RECOMMENDER, SEEKER: SEEKER, RECOMMENDER: RECOMMENDER}
Message = Mapping[str, Any]
Messages = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Response:
    """One recommender turn.

    mode: "chat" or "rec"
    items: (item id, title, score), best first. A score is a sum of log-probabilities, or 0.0 for
        an item that the caller gave. Empty in mode "chat"
    text: the reply, with titles in place of semantic IDs
    rec_probability: the model's probability of "rec" against "chat"
    named: ids of the items that the reply names, in order
    invalid_items: number of fragments of semantic IDs in the reply that are no item
    """

    mode: str
    items: list[tuple[str, str, float]]
    text: str
    rec_probability: float
    named: list[str]
    invalid_items: int


class Recommender:
    """A trained recommender: model, tokenizer, trie and item table of one directory.

    Make one with `Recommender.from_pretrained(dir)`. It holds no state of a conversation; a
    `TurnCache` does.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.titles = {item.item_id: item.display() for item in bundle.items}

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Recommender:
        """Load a directory that training wrote; `load_bundle` lists the errors."""
        return cls(load_bundle(directory, dtype=dtype, device=device))

    @cached_property
    def index(self) -> TitleIndex:
        """The index that finds the catalogue's titles in free text."""
        return TitleIndex(self.bundle.items)

    def respond(
        self,
        messages: Any,
        mode: str | None = None,
        num_items: int = 10,
        exclude: Any = None,
        *,
        item: str | Sequence[str] | None = None,
        num_named: int = 1,
        num_beams: int = 50,
        normalize: str = "vocab",
        cache: TurnCache | None = None,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> Any:
        """Write the next recommender turn: its mode, then items, then words, from one prefill.

        Args:
            messages: [{"role": "user" | "assistant", "content": text}, ...], or a batch of such
                lists. Titles in the text are linked to items unless the message brings its own
                "items": [{"item_id", "start", "end"}, ...] (offsets may be absent). A message
                has at most 1,000,000 characters.
            mode: "chat" or "rec" forces the intent; None lets the model choose.
            num_items: the most items to return in mode "rec".
            exclude: item ids that may be neither recommended nor named in the reply; for a batch,
                one collection per request.
            item: forces mode "rec" with this item, or with these; the model writes the text.
            num_named: how many of the recommended items stand before the reply, best first. In
                training it is one, so a larger number is outside what the model has learned.
            num_beams: width of the beam search over items, at least `num_items`.
            normalize: see `crs_fast.recommend`.
            cache: a `TurnCache` that is kept over the turns of one dialogue (or batch). Then the
                model reads only what was said since the last turn.
            max_new_tokens: the most tokens of the reply; an item that is open then is finished.
            do_sample, temperature, top_p: how the reply's words are chosen (greedy by default).

        Returns:
            A `Response`, or a list of them for a batch. If `exclude` leaves no item, the mode is
            "chat".

        Raises:
            ValueError: a role or mode is unknown, an item is given with mode "chat", there is no
                message or one that is too long, an item id is not in the catalogue, or `num_items`
                exceeds `num_beams`.
        """
        if not isinstance(messages, Iterable) or isinstance(messages, str | Mapping):
            raise ValueError(
                f"respond: messages must be a list of messages (got {type(messages).__name__})"
            )
        messages = messages if isinstance(messages, Sequence) else list(messages)
        single = not messages or isinstance(messages[0], Mapping)
        batch: list[Messages] = [messages] if single else list(messages)
        if not hasattr(max_new_tokens, "__index__") or max_new_tokens < 1:
            raise ValueError(
                f"respond: max_new_tokens must be an integer, at least 1 (got {max_new_tokens!r})"
            )
        excluded = [exclude] if single else (exclude or [None] * len(batch))
        given = [item] if isinstance(item, str) else list(item or [])
        self._check(batch, excluded, mode, given, num_items, num_beams, num_named)
        builder = self.bundle.builder
        named = len(given) or num_named
        levels = self.bundle.vocab.num_levels
        reply = 2 + named * (levels + 2) + max_new_tokens
        reserve = min(reply, builder.max_length // 2)
        # The search needs tree positions for all levels but the last. They are dropped before the
        # reply is written, which may exceed max_new_tokens to finish its last item.
        room = max(2 + num_beams * (levels - 1), reply + levels + 1)
        contexts = [builder.context(self.turns(one), reserve=reserve) for one in batch]
        turns = TurnBatch(self.bundle, contexts, cache, room=room)
        modes = self._modes(turns, mode, given)
        trie = self.bundle.trie
        filters = [trie.filter(deny=list(ids)) if ids else None for ids in excluded]
        items = self._items(turns, modes, given, filters, num_items, num_beams, normalize)
        modes = [REC if ranking else CHAT for ranking in items]
        prefixes = [self._prefix([i for i, _, _ in ranking[:named]]) for ranking in items]
        replies = turns.write(
            prefixes,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_p=top_p,
            filters=_stacked(filters),
        )
        responses = [
            self._response(*parts)
            for parts in zip(modes, items, replies, turns.rec_probability.tolist(), strict=True)
        ]
        return responses[0] if single else responses

    def _prefix(self, item_ids: list[str]) -> list[int]:
        """The tokens with which a reply about these items begins; without items, a chat reply."""
        builder, control = self.bundle.builder, self.bundle.control
        if not item_ids:
            return builder.prefix(CHAT)
        blocks = [token for item_id in item_ids for token in builder.item(item_id)]
        return [control.rec, *blocks, control.resp]

    def turns(self, messages: Messages) -> tuple[Turn, ...]:
        """The messages as turns, with titles linked to items."""
        return merge_turns([self._turn(message) for message in messages])

    def _turn(self, message: Message) -> Turn:
        role, text = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in ROLES or not isinstance(text, str):
            raise ValueError(
                f"respond: a message must have a role of {sorted(ROLES)} and a content string "
                f"(got {dict(message)!r})"
            )
        if len(text) > MAX_CHARACTERS:
            raise ValueError(
                f"respond: a message must have at most {MAX_CHARACTERS} characters "
                f"(got {len(text)})"
            )
        given = message.get("items")
        if given is None:
            return Turn(ROLES[role], text, tuple(self.index.link(text)))
        mentions = [Mention(m["item_id"], m.get("start"), m.get("end")) for m in given]
        return Turn(ROLES[role], text, tuple(mentions))

    def _check(
        self,
        batch: list[Messages],
        excluded: Sequence[Any],
        mode: str | None,
        items: list[str],
        num_items: int,
        num_beams: int,
        num_named: int,
    ) -> None:
        if not batch or not all(batch):
            raise ValueError("respond: messages must hold at least one message (got none)")
        for one in batch:
            listed = one if isinstance(one, list | tuple) else [one]
            odd = [m for m in listed if not isinstance(m, Mapping)]
            if odd:
                raise ValueError(
                    "respond: messages must be a list of {'role': …, 'content': …}, or a batch of "
                    f"such lists (got {type(odd[0]).__name__})"
                )
        if len(excluded) != len(batch):
            raise ValueError(
                f"respond: exclude must hold one collection per request, {len(batch)} "
                f"(got {len(excluded)})"
            )
        if mode is not None and (mode not in MODES or (mode == CHAT and items)):
            raise ValueError(
                f"respond: mode must be one of {MODES}, and 'rec' with an item "
                f"(got mode={mode!r}, item={items!r})"
            )
        for name, value in (
            ("num_items", num_items), ("num_beams", num_beams), ("num_named", num_named)
        ):  # fmt: skip
            if not hasattr(value, "__index__"):
                raise ValueError(f"respond: {name} must be an integer (got {value!r})")
        if not 1 <= num_items <= num_beams:
            raise ValueError(
                "respond: num_items must be at least 1 and at most num_beams "
                f"(got {num_items} and {num_beams})"
            )
        if not 1 <= num_named <= num_items:
            raise ValueError(
                "respond: num_named must be at least 1 and at most num_items "
                f"(got {num_named} and {num_items})"
            )
        odd_ids = [ids for ids in excluded if ids is not None and not isinstance(ids, Iterable)]
        if odd_ids:
            raise ValueError(
                f"respond: exclude must be a collection of item ids (got {odd_ids[0]!r})"
            )
        given = [i for ids in excluded for i in ids or ()] + items
        unknown = [i for i in given if i not in self.titles]
        if unknown:
            raise ValueError(
                f"respond: exclude and item must be ids of the catalogue (got {unknown[0]!r})"
            )

    def _modes(self, turns: TurnBatch, mode: str | None, items: list[str]) -> list[str]:
        if mode is not None or items:
            return [mode or REC] * len(turns.rec_probability)
        return [likelier_mode(p) for p in turns.rec_probability.tolist()]

    def _items(
        self,
        turns: TurnBatch,
        modes: list[str],
        given: list[str],
        filters: Sequence[ItemFilter | None],
        num_items: int,
        num_beams: int,
        normalize: str,
    ) -> list[list[tuple[str, str, float]]]:
        """For each request, (id, title, score) of its items, best first; [] in mode "chat"."""
        if given:
            return [[(item, self.titles[item], 0.0) for item in given] for _ in modes]
        rows = [row for row, mode in enumerate(modes) if mode == REC]
        rankings: list[list[tuple[str, str, float]]] = [[] for _ in modes]
        if not rows:
            return rankings
        stacked = _stacked([filters[row] for row in rows])
        out = turns.rank(rows, num_beams=num_beams, normalize=normalize, filters=stacked)
        for row, ids, scores in zip(rows, out.items, out.item_scores, strict=True):
            pairs = list(zip(map(str, ids), scores, strict=True))[:num_items]
            rankings[row] = [(i, self.titles[i], score) for i, score in pairs]
        return rankings

    def _response(
        self,
        mode: str,
        items: list[tuple[str, str, float]],
        reply: list[int],
        rec_probability: float,
    ) -> Response:
        builder = self.bundle.builder
        named, invalid = builder.sid_fragments(reply)
        text = builder.decode(reply, self.titles)
        return Response(mode, items, text, rec_probability, named, invalid)


def _stacked(filters: Sequence[ItemFilter | None]) -> ItemFilter | None:
    """The filters of all requests as one; None if no request has a filter."""
    return None if all(f is None for f in filters) else ItemFilter.stack(filters)
