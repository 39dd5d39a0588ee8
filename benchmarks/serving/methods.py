"""Ways to answer a turn, each as a function of a conversation."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import torch

from crs_fast.crs.answer import TurnOptions, context_tokens, reply_prefix
from crs_fast.crs.control_tokens import CHAT, REC
from crs_fast.crs.conversation import shown_items
from crs_fast.crs.exposure import named_items
from crs_fast.crs.recommender import Recommender
from crs_fast.crs.turn import TurnCache
from crs_fast.decode import SidLogitsProcessor
from crs_fast.serve import Engine, TurnRequest

from .seekers import Conversation

BEAMS, ITEMS = 50, 10


@dataclass(frozen=True)
class Workload:
    """What every turn asks for.

    words: the most tokens of a reply
    forces_mode: the first turn of a conversation is "chat" and the others are "rec", for a model
        whose own choice means nothing
    """

    words: int = 64
    forces_mode: bool = False

    def mode(self, conversation: Conversation) -> str | None:
        """The mode that a turn asks for; None leaves it to the model."""
        if not self.forces_mode:
            return None
        return CHAT if len(conversation.messages) == 1 else REC


@dataclass(frozen=True)
class Answered:
    """item_ids: what was recommended; named: what the reply names; version: of the catalogue."""

    text: str
    item_ids: list[str]
    named: list[str]
    invalid_items: int
    version: str | None = None


Method = Callable[[Conversation], Answered]


def by_engine(engine: Engine, workload: Workload) -> Method:
    """One request to the engine of this process."""

    def answer(conversation: Conversation) -> Answered:
        request = TurnRequest(
            list(conversation.messages),
            workload.mode(conversation),
            num_items=ITEMS,
            num_beams=BEAMS,
            max_new_tokens=workload.words,
            conversation=conversation.name,
        )
        turn = engine.submit(request).result()
        ids = [item_id for item_id, _, _ in turn.items]
        return Answered(turn.text, ids, turn.named, turn.invalid_items, turn.catalogue_version)

    return answer


def by_http(url: str, workload: Workload) -> Method:
    """One request to a server (`crs-fast serve`), on a connection for each thread."""
    address, local = urlsplit(url), threading.local()

    def answer(conversation: Conversation) -> Answered:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection(address.hostname or "", address.port)
        body = {
            "messages": conversation.messages,
            "num_items": ITEMS,
            "max_new_tokens": workload.words,
            "mode": workload.mode(conversation),
            "conversation": conversation.name,
        }
        headers = {"Content-Type": "application/json"}
        local.connection.request("POST", "/v1/respond", json.dumps(body), headers)
        response = local.connection.getresponse()
        turn: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {turn}")
        ids = [item["id"] for item in turn["items"]]
        return Answered(turn["text"], ids, [], turn.get("invalid_items", 0))

    return answer


def by_respond(recommender: Recommender, workload: Workload) -> Method:
    """One `respond` at a time, each conversation with a cache of its own."""
    caches: dict[str, TurnCache] = {}

    def answer(conversation: Conversation) -> Answered:
        turn = recommender.respond(
            conversation.messages,
            workload.mode(conversation),
            ITEMS,
            repeat_named=False,
            num_beams=BEAMS,
            max_new_tokens=workload.words,
            cache=caches.setdefault(conversation.name, TurnCache()),
        )
        ids = [item_id for item_id, _, _ in turn.items]
        return Answered(turn.text, ids, turn.named, turn.invalid_items)

    return answer


@torch.no_grad()
def by_three_calls(recommender: Recommender, workload: Workload) -> Method:
    """What one does with `model.generate` alone: a call for the mode, one for the items by beam
    search, one for the words, each of which reads the conversation anew."""
    bundle = recommender.bundle
    builder, control, trie, vocab = bundle.builder, bundle.control, bundle.trie, bundle.vocab
    options = TurnOptions(num_items=ITEMS, num_beams=BEAMS, max_new_tokens=workload.words)

    def generate(tokens: list[int], **how: Any) -> torch.Tensor:
        ids = torch.tensor([tokens], device=bundle.model.device)
        out: Any = bundle.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            use_cache=True,
            pad_token_id=builder.eos,
            **how,
        )
        return out[:, len(tokens) :]

    def answer(conversation: Conversation) -> Answered:
        turns = recommender.turns(conversation.messages)
        context = context_tokens(bundle, turns, options)
        modes = list(control.modes.values())
        likelier = generate(
            context, max_new_tokens=1, prefix_allowed_tokens_fn=lambda batch, ids: modes
        )
        mode = workload.mode(conversation)
        chosen = int(likelier[0, 0]) if mode is None else control.modes[mode]
        items: list[str] = []
        if chosen == control.modes[REC]:
            named = named_items(turns, shown_items(conversation.messages))
            filters = trie.filter(deny=recommender.groups.entries(named))
            beams = generate(
                [*context, *builder.prefix(REC)],
                num_beams=BEAMS,
                num_return_sequences=ITEMS,
                max_new_tokens=vocab.num_levels,
                logits_processor=[SidLogitsProcessor(trie, vocab, filters)],
            )
            found = trie.items(vocab.decode(beams))
            items = [str(item) for of_sid in found for item in of_sid][:ITEMS]
        prefix = reply_prefix(bundle, items[:1]) if items else builder.prefix(CHAT)
        reply = generate(
            [*context, *prefix],
            max_new_tokens=workload.words,
            eos_token_id=builder.eos,
            suppress_tokens=control.tokens,
            logits_processor=[SidLogitsProcessor(trie, vocab)],
        )[0].tolist()
        reply = reply[: reply.index(builder.eos)] if builder.eos in reply else reply
        named, invalid = builder.sid_fragments(reply)
        return Answered(builder.decode(reply, recommender.titles), items, named, invalid)

    return answer
