"""One recommender turn for a batch of contexts, from one prefill: mode, then item, then words."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from crs_fast.crs.checkpoint import Bundle
from crs_fast.decode import (
    BeamTree,
    Prompt,
    RecommendOutput,
    SidLogitsProcessor,
    capability,
    left_pad,
    recommend,
    refuse_not_numbers,
    sequential,
    sliding_window,
    stand_in,
    unwrapped,
)
from crs_fast.trie import Grammar, ItemFilter, SidTrie

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        self._tree: BeamTree | None = None
        model, control = bundle.model, bundle.control
        modes = self.ids.new_tensor(list(control.modes.values()))
        if _holds(model, self.ids.shape[1]):
            self.prompt = self._prefilled(contexts, cache, room)
            self._length = self.prompt.length
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
            prompt.append(*_left_padded(self.bundle, rest))
        cache.prompt = prompt
        return prompt

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
        trie = _placed(bundle.trie, self.ids.device)
        opening = self.ids.new_tensor(bundle.builder.prefix("rec"))
        search: dict[str, Any] = dict(num_beams=num_beams, normalize=normalize, filters=filters)
        self._forget()
        positions = opening.numel() + trie.num_levels
        if self.prompt is None or not _fits(self.bundle.model, self.prompt.length + positions):
            ids = torch.cat([self.ids[rows], opening.expand(len(rows), -1)], 1)
            mask = torch.nn.functional.pad(self.mask[rows], (0, opening.numel()), value=True)
            return recommend(bundle.model, ids, mask, trie=trie, vocab=bundle.vocab, **search)
        prompt = self.prompt.select(rows)
        prompt.append(opening.expand(len(rows), -1))
        tree = BeamTree(prompt, trie, bundle.vocab, **search)
        if prompt is self.prompt:
            self._tree = (
                tree  # it stays in the cache, so that `write` may continue one of its paths
            )
        return tree.output

    def _forget(self) -> None:
        """Drop everything behind the contexts from the cache."""
        if self.prompt is not None:
            self.prompt.crop(self._length)
        self._tree = None

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
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        bundle = self.bundle
        longest = max_new_tokens + bundle.vocab.num_levels + 1
        positions = max(map(len, prefixes)) + longest
        cached: dict[str, Any] = {}
        context, context_mask = self.ids, self.mask
        if self.prompt is not None and _fits(self.bundle.model, self._length + positions):
            prefixes = self._kept(self.prompt, prefixes)
            context_mask = self.prompt.mask
            # Token ids at masked positions (of an open SID, for example) are not part of the text.
            context = self.prompt.ids.masked_fill(~context_mask, self.pad)
            cached = dict(past_key_values=self.prompt.cache)
        ids, mask = _left_padded(bundle, prefixes)
        ids, mask = torch.cat([context, ids], 1), torch.cat([context_mask, mask], 1)
        start, control = ids.shape[1], bundle.control
        trie = _placed(bundle.trie, ids.device)
        sampling: dict[str, Any] = (
            dict(do_sample=True, temperature=temperature, top_p=top_p, top_k=0)
            if do_sample
            else dict(do_sample=False)
        )
        config = GenerationConfig(
            max_new_tokens=longest,
            eos_token_id=bundle.builder.eos,
            pad_token_id=self.pad,
            suppress_tokens=control.tokens,
            **sampling,
        )
        written: list[list[int]] = [[] for _ in prefixes]
        # A stand-in, because the model's own generation_config must change nothing here.
        lm = stand_in(bundle.model)
        for rows, use_cache in self._batches(mask, bool(cached)):
            processor = SidLogitsProcessor(
                trie, bundle.vocab, None if filters is None else filters.select(rows)
            )
            config.use_cache = use_cache
            out = lm.generate(
                input_ids=ids[rows],
                attention_mask=mask[rows].long(),
                generation_config=config,
                logits_processor=LogitsProcessorList([processor]),
                stopping_criteria=StoppingCriteriaList(
                    [_LongEnough(start + max_new_tokens, processor.grammar)]
                ),
                **cached,
            )
            for row, tokens in zip(rows, out[:, start:].tolist(), strict=True):
                written[row] = self._until_eos(tokens)
        return written

    def _batches(self, mask: torch.Tensor, cached: bool) -> list[tuple[list[int], bool]]:
        """Rows of mask bool [B, P] that `generate` may take together, and whether with a cache."""
        everyone = list(range(mask.shape[0]))
        if cached:
            return [(everyone, True)]
        way = sequential(self.bundle.model)
        if way.pads or bool(mask.all()):
            return [(everyone, way.use_cache)]
        return [([row], way.use_cache) for row in everyone]

    def _kept(self, prompt: Prompt, prefixes: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """Keep the tree's path to each request's item in the cache, if the tree has one for every
        request. Returns the tokens of the prefixes that are still to be fed."""
        opening = self.bundle.builder.prefix("rec")
        paths = [
            None if self._tree is None else _path(self._tree, row, opening, list(prefix))
            for row, prefix in enumerate(prefixes)
        ]
        kept = [path for path in paths if path is not None]
        if self._tree is None or len(kept) < len(paths):
            self._forget()
            return prefixes
        self._tree.keep(self.ids.new_tensor([beam for beam, _ in kept]))
        self._tree = None
        return [prefix[fed:] for prefix, (_, fed) in zip(prefixes, kept, strict=True)]

    def _until_eos(self, tokens: list[int]) -> list[int]:
        eos = self.bundle.builder.eos
        return tokens[: tokens.index(eos)] if eos in tokens else tokens


def _left_padded(
    bundle: Bundle, rows: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = left_pad(rows, bundle.builder.eos)
    return ids.to(bundle.model.device), mask.to(bundle.model.device)


# Each catalogue's copy on the model's device, kept because every turn needs it.
_copies: weakref.WeakKeyDictionary[SidTrie, SidTrie] = weakref.WeakKeyDictionary()


def _placed(trie: SidTrie, device: torch.device) -> SidTrie:
    if trie.device == device:
        return trie
    copy = _copies.get(trie)
    if copy is None or copy.device != device:
        copy = _copies[trie] = trie.to(device)
    return copy


def _holds(model: PreTrainedModel, positions: int) -> bool:
    """Whether the model can read a token tree behind so many positions."""
    return capability(model).attention is not None and _fits(model, positions)


def _fits(model: PreTrainedModel, positions: int) -> bool:
    window = sliding_window(model)
    return window is None or positions <= window


class _LongEnough:
    """Stops a reply at `length` tokens or, if a SID is open there, as soon as it is closed."""

    def __init__(self, length: int, grammar: Grammar) -> None:
        self.length, self.grammar = length, grammar

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if input_ids.shape[1] < self.length:
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        return ~self.grammar.read(input_ids).inside


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
