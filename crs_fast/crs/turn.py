"""One recommender turn for a batch of contexts, from one prefill: mode, then item, then words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.reply import Reply, ReplyBatch, placed
from crs_fast.crs.sampling import Sampling
from crs_fast.crs.sequential_reply import written_sequentially
from crs_fast.decode import (
    BeamTree,
    Prompt,
    RecommendOutput,
    capability,
    left_pad,
    recommend,
    refuse_not_numbers,
    right_pad,
    sliding_window,
    stand_in,
    unwrapped,
)
from crs_fast.trie import ItemFilter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits of a beam step that are computed at once.
_MOST_LOGITS = 1 << 26


@dataclass
class TurnCache:
    """What the next turn of a dialogue, or of a batch of dialogues, can reuse: the keys and values
    of the tokens with which both contexts begin. Give the same cache to every `respond` of a
    dialogue. Each use changes it, and only one thread may use it at a time."""

    prompt: Prompt | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, bundle: Bundle, contexts: Sequence[Sequence[int]]) -> TurnCache:
        """A cache that is filled with these contexts; empty if the model cannot read token
        trees."""
        ids, mask = _left_padded(bundle, contexts)
        reads_trees = _holds(bundle.model, ids.shape[1])
        return cls(Prompt(bundle.model, ids, mask) if reads_trees else None)

    def branch(self, rows: list[int]) -> TurnCache:
        """A new cache for some requests of the batch, in any order and with repetitions."""
        if self.prompt is None:
            return TurnCache()
        self.prompt.crop()  # drops what an earlier reply appended
        return TurnCache(self.prompt.copy(rows))


class TurnBatch:
    """Contexts that end in `Assistant:` and are prefilled once. Mode, items and words of the turn
    that follows are all computed from this cache.

    A model that cannot read a token tree, or whose attention window is too short for one, uses
    `generate` instead, with a prefill for each of them.

    Args:
        bundle: model, tokenizer, trie.
        contexts: token ids of each context, see `SequenceBuilder.context`.
        cache: the cache of the turn before; it is updated.
        room: how many positions and tree positions `rank` and `write` are expected to need after
            the contexts. If they need more, the cache is copied into a larger one.
    """

    @torch.no_grad()
    def __init__(
        self,
        bundle: Bundle,
        contexts: Sequence[Sequence[int]],
        cache: TurnCache | None = None,
        *,
        room: int = 0,
    ) -> None:
        self.bundle = bundle
        self.pad = bundle.builder.eos
        self.ids, self.mask = _left_padded(bundle, contexts)
        self.prompt: Prompt | None = None
        # The beams of `rank`, and the requests that they are of.
        self._trees: list[tuple[list[int], BeamTree]] = []
        model, control = bundle.model, bundle.control
        self.contexts, self._rows = contexts, range(len(contexts))
        modes = self.ids.new_tensor(list(control.modes.values()))
        if _holds(model, self.ids.shape[1]):
            self.prompt = self._prefilled(contexts, cache, room)
            self._length, self._hidden = self.prompt.length, self.prompt.hidden
            logits = self.prompt.logits(modes)
        else:
            lm = stand_in(model)
            rows = [
                lm(input_ids=self.ids.new_tensor([row]), use_cache=False).logits[0, -1]
                for row in contexts
            ]
            logits = torch.stack(rows)[:, modes]
        self.rec_probability = control.rec_probability(logits)  # [B]
        # Compared with 0.5, NaN would be an empty chat turn.
        refuse_not_numbers(self.rec_probability.isnan().nonzero()[:, 0].tolist(), "respond")
        self.intents = control.likeliest_intents(logits)

    def _prefilled(
        self, contexts: Sequence[Sequence[int]], cache: TurnCache | None, room: int
    ) -> Prompt:
        """The prompt of the contexts; what the cache holds of their beginnings is reused."""
        if cache is None:
            return Prompt(self.bundle.model, self.ids, self.mask, room=room)
        prompt, cache.prompt = cache.prompt, None  # dropped if what follows raises an error
        cached_lengths = None
        # An attention window counts all positions of the cache, also those without a token.
        if prompt is not None and _fits(self.bundle.model, prompt.length + self.ids.shape[1]):
            cached_lengths = _common(prompt, self.bundle.model, contexts)
        if prompt is None or cached_lengths is None:
            prompt = Prompt(self.bundle.model, self.ids, self.mask, room=room)
        else:
            prompt.rewind(self.ids.new_tensor(cached_lengths))
            rest = [context[n:] for context, n in zip(contexts, cached_lengths, strict=True)]
            prompt.append(*_right_padded(self.bundle, rest))
        cache.prompt = prompt
        return prompt

    def rows_at_once(self, num_beams: int) -> int:
        """How many requests `rank` may be given together, so that the logits of a beam step fit
        into memory; at least 1."""
        vocab_size = self.bundle.model.config.get_text_config().vocab_size
        return max(1, _MOST_LOGITS // (num_beams * vocab_size))

    @torch.no_grad()
    def rank(
        self,
        rows: Sequence[int] | None = None,
        *,
        num_beams: int = 50,
        normalize: str = "vocab",
        filters: ItemFilter | None = None,
    ) -> RecommendOutput:
        """Recommend items for some requests (default all), as if their mode were REC."""
        rows = list(range(self.ids.shape[0])) if rows is None else list(rows)
        bundle = self.bundle
        trie = placed(bundle.trie, self.ids.device)
        opening = self.ids.new_tensor(bundle.builder.prefix("rec"))
        search: dict[str, Any] = dict(num_beams=num_beams, normalize=normalize, filters=filters)
        positions = opening.numel() + trie.num_levels
        if self.prompt is None or not _fits(self.bundle.model, self.prompt.length + positions):
            ids = torch.cat([self.ids[rows], opening.expand(len(rows), -1)], 1)
            mask = torch.nn.functional.pad(self.mask[rows], (0, opening.numel()), value=True)
            return recommend(bundle.model, ids, mask, trie=trie, vocab=bundle.vocab, **search)
        self._forget(rows)
        prompt = self.prompt.select(rows)
        prompt.append(opening.expand(len(rows), -1))
        tree = BeamTree(prompt, trie, bundle.vocab, **search)
        # It stays in the cache, so that a reply may continue one of its paths.
        self._trees.append((rows, tree))
        return tree.output

    def _forget(self, rows: Sequence[int]) -> None:
        """Drop what stands behind the contexts in their cache, and the beams of some requests."""
        assert self.prompt is not None
        self._trees = [
            (members, tree)
            for members, tree in self._trees
            if tree.prompt is not self.prompt and not set(members) & set(rows)
        ]
        self.prompt.crop(self._length)
        self.prompt.hidden = self._hidden

    @torch.no_grad()
    def write(
        self,
        prefixes: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        filters: ItemFilter | None = None,
    ) -> list[list[int]]:
        """Write the words after each request's prefix (`SequenceBuilder.prefix`), without
        end-of-sequence.

        SIDs in the text are constrained to the catalogue and to each request's filter. A SID that
        is open when `max_new_tokens` is reached is finished first, so a reply never ends inside an
        item. If the prefixes name items that `rank` has just found, their keys and values are taken
        from its token tree. This changes the prefill, so call it last.
        """
        sampling = Sampling(do_sample, temperature, top_p)
        return list(self.write_steps(prefixes, max_new_tokens, sampling, filters))[-1]

    @torch.no_grad()
    def write_steps(
        self,
        prefixes: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling,
        filters: ItemFilter | None,
    ) -> Iterator[list[list[int]]]:
        """`write` step by step: yields the tokens of all replies so far, after each step. A reply
        that can't be written from the cache comes in one step."""
        if not self.can_open(prefixes, max_new_tokens):
            yield written_sequentially(
                self.bundle, self.contexts, prefixes, max_new_tokens, sampling, filters
            )
            return
        one_each = [None if filters is None else filters.select([row]) for row in self._rows]
        replies = [
            Reply(self.bundle, [*context, *prefix], max_new_tokens, sampling, None, one)
            for context, prefix, one in zip(self.contexts, prefixes, one_each, strict=True)
        ]
        assert self.prompt is not None
        batch = ReplyBatch(self.prompt.lm)
        for rows, prompt in self.open(prefixes):
            batch.join(prompt, [replies[row] for row in rows])
        while len(batch):
            batch.step()
            yield [reply.tokens for reply in replies]

    def can_open(self, prefixes: Sequence[Sequence[int]], max_new_tokens: int) -> bool:
        """Whether replies can be written behind these prefixes from the cache."""
        positions = max(map(len, prefixes)) + max_new_tokens + self.bundle.vocab.num_levels + 1
        return self.prompt is not None and _fits(self.bundle.model, self._length + positions)

    @torch.no_grad()
    def open(self, prefixes: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Prompt]]:
        """Read each request's prefix. Yields requests and the prompt from whose rows their replies
        go on, until all requests had their turn. This changes the prefill, so call it last."""
        assert self.prompt is not None
        opening, waiting = self.bundle.builder.prefix("rec"), set(self._rows)
        for rows, tree in self._trees:
            paths = [_path(tree, at, opening, list(prefixes[row])) for at, row in enumerate(rows)]
            kept = [path for path in paths if path is not None]
            if len(kept) < len(paths):
                continue
            tree.keep(self.ids.new_tensor([beam for beam, _ in kept]))
            rest = [prefixes[row][fed:] for row, (_, fed) in zip(rows, kept, strict=True)]
            tree.prompt.append(*_right_padded(self.bundle, rest))
            waiting -= set(rows)
            yield rows, tree.prompt
        self._trees = []
        if not waiting:
            return
        self._forget([])
        rows = sorted(waiting)
        prompt = self.prompt.select(rows)
        rest = [prefixes[row] for row in rows]
        if any(rest):
            prompt.append(*_right_padded(self.bundle, rest))
        yield rows, prompt


def _left_padded(
    bundle: Bundle, rows: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = left_pad(rows, bundle.builder.eos)
    return ids.to(bundle.model.device), mask.to(bundle.model.device)


def _right_padded(
    bundle: Bundle, rows: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = right_pad(rows, bundle.builder.eos)
    return ids.to(bundle.model.device), mask.to(bundle.model.device)


def _holds(model: PreTrainedModel, positions: int) -> bool:
    """Whether the model can read a token tree behind so many positions."""
    return capability(model).attention is not None and _fits(model, positions)


def _fits(model: PreTrainedModel, positions: int) -> bool:
    window = sliding_window(model)
    return window is None or positions <= window


def _path(
    tree: BeamTree, row: int, opening: list[int], prefix: list[int]
) -> tuple[int, int] | None:
    """The beam whose fed tokens continue `opening` as `prefix` does, and how many tokens of
    `prefix` are then in the cache; None if there is no such beam."""
    lengths = (tree.output.sids[row, :, :-1] >= 0).sum(1).tolist()
    for beam, (tokens, n) in enumerate(zip(tree.beams.tokens[row].tolist(), lengths, strict=True)):
        path = [*opening, *tokens[:n]]
        if n and prefix[: len(path)] == path:
            return beam, len(path)
    return None


def _common(prompt: Prompt, model: Any, contexts: Sequence[Sequence[int]]) -> list[int] | None:
    """How many tokens of each context the prompt holds, at most all but the last; None if the
    prompt is of another model or another batch size, or holds nothing of the contexts."""
    if prompt.lm.model is not unwrapped(model) or prompt.ids.shape[0] != len(contexts):
        return None
    counts = [
        _shared(ids[mask].tolist(), context[:-1])
        for ids, mask, context in zip(prompt.ids, prompt.mask, contexts, strict=True)
    ]
    return counts if any(counts) else None


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common beginning of two sequences."""
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
