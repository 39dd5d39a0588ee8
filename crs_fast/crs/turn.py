"""One recommender turn for a batch of contexts, on one prefill: mode, item, words."""

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
    """What the next turn of a dialogue (or of a batch of dialogues) can reuse: keys and values of
    the tokens both contexts begin with. Give the same one to every `respond`; it holds one cache of
    the model, is changed by each use, and serves one thread at a time."""

    prompt: Prompt | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, bundle: Bundle, contexts: Sequence[Sequence[int]]) -> TurnCache:
        """A cache that holds contexts already; empty for a model that can't hold a prompt."""
        ids, mask = _left_padded(bundle, contexts)
        held = _holds(bundle.model, ids.shape[1])
        return cls(Prompt(bundle.model, ids, mask) if held else None)

    def branch(self, rows: list[int]) -> TurnCache:
        """A cache of its own for some rows of the batch, in any order and any number of times."""
        if self.prompt is None:
            return TurnCache()
        self.prompt.crop()  # what a reply left behind
        return TurnCache(self.prompt.copy(rows))


class TurnBatch:
    """Contexts ending in `Assistant:`, prefilled once; every question about the turn that follows
    is answered from that cache.

    A model that can't hold a token tree, or whose attention window is too short for one, is asked
    by `generate` instead, a prefill a question.

    Args:
        bundle: model, tokenizer, trie.
        contexts: token ids of each context, see `SequenceBuilder.context`.
        cache: of the turn before; updated.
        room: columns and tree slots that `rank` and `write` are expected to need behind the
            contexts; more is possible, for a copy of what is cached.
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
        self.rec_probability = control.rec_probability(logits)  # [B]: of REC against CHAT
        self.intents = control.likeliest_intents(logits)

    def _prefilled(
        self, contexts: Sequence[Sequence[int]], cache: TurnCache | None, room: int
    ) -> Prompt:
        """A prompt of the contexts, from the cache as far as that holds their beginnings."""
        if cache is None:
            return Prompt(self.bundle.model, self.ids, self.mask, room=room)
        prompt, cache.prompt = cache.prompt, None  # lost if what follows fails half-way
        known = None
        # Windows count columns, also those that hold no token of a row.
        if prompt is not None and _fits(self.bundle.model, prompt.length + self.ids.shape[1]):
            known = _common(prompt, self.bundle.model, contexts)
        if prompt is None or known is None:
            prompt = Prompt(self.bundle.model, self.ids, self.mask, room=room)
        else:
            prompt.rewind(self.ids.new_tensor(known))
            rest = [context[n:] for context, n in zip(contexts, known, strict=True)]
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
        """Items for some rows (default all), as if their mode were REC."""
        everyone = list(range(self.ids.shape[0]))
        rows = everyone if rows is None else list(rows)
        bundle = self.bundle
        trie = _placed(bundle.trie, self.ids.device)
        opening = self.ids.new_tensor(bundle.builder.prefix("rec"))
        how: dict[str, Any] = dict(num_beams=num_beams, normalize=normalize, filters=filters)
        self._forget()
        columns = opening.numel() + trie.num_levels
        if self.prompt is None or not _fits(self.bundle.model, self.prompt.length + columns):
            ids = torch.cat([self.ids[rows], opening.expand(len(rows), -1)], 1)
            mask = torch.nn.functional.pad(self.mask[rows], (0, opening.numel()), value=True)
            return recommend(bundle.model, ids, mask, trie=trie, vocab=bundle.vocab, **how)
        prompt = self.prompt.select(rows)
        prompt.append(opening.expand(len(rows), -1))
        tree = BeamTree(prompt, trie, bundle.vocab, **how)
        if prompt is self.prompt:
            self._tree = tree  # stays in the cache: `write` may go on from one of its paths
        return tree.output

    def _forget(self) -> None:
        """Back to the contexts alone."""
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
        """The words after each row's prefix (`SequenceBuilder.prefix`), without end-of-sequence.

        SIDs in the text are constrained to the catalogue, and to each row's filter. One that is
        open when `max_new_tokens` is reached is finished first, so a reply never ends inside an
        item. Where the prefixes name items that `rank` has just found, their keys and values are
        kept from the tree. Spends the prefill: call it last.
        """
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        bundle = self.bundle
        longest = max_new_tokens + bundle.vocab.num_levels + 1
        columns = max(map(len, prefixes)) + longest
        cached: dict[str, Any] = {}
        context, seen = self.ids, self.mask
        if self.prompt is not None and _fits(self.bundle.model, self._length + columns):
            prefixes = self._kept(self.prompt, prefixes)
            seen = self.prompt.mask
            # What a masked column held once, an open SID say, is not part of the text.
            context = self.prompt.ids.masked_fill(~seen, self.pad)
            cached = dict(past_key_values=self.prompt.cache)
        ids, mask = _left_padded(bundle, prefixes)
        ids, mask = torch.cat([context, ids], 1), torch.cat([seen, mask], 1)
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
        """Keep the tree's path to each row's item, if it has one for every row: what is left of
        the prefixes to feed."""
        opening = self.bundle.builder.prefix("rec")
        ways = [
            None if self._tree is None else _path(self._tree, row, opening, list(prefix))
            for row, prefix in enumerate(prefixes)
        ]
        found = [way for way in ways if way is not None]
        if self._tree is None or len(found) < len(ways):
            self._forget()
            return prefixes
        self._tree.keep(self.ids.new_tensor([beam for beam, _ in found]))
        self._tree = None
        return [prefix[fed:] for prefix, (_, fed) in zip(prefixes, found, strict=True)]

    def _until_eos(self, tokens: list[int]) -> list[int]:
        eos = self.bundle.builder.eos
        return tokens[: tokens.index(eos)] if eos in tokens else tokens


def _left_padded(
    bundle: Bundle, rows: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = left_pad(rows, bundle.builder.eos)
    return ids.to(bundle.model.device), mask.to(bundle.model.device)


# A catalogue's copy on the model's device: turn after turn asks it.
_copies: weakref.WeakKeyDictionary[SidTrie, SidTrie] = weakref.WeakKeyDictionary()


def _placed(trie: SidTrie, device: torch.device) -> SidTrie:
    if trie.device == device:
        return trie
    copy = _copies.get(trie)
    if copy is None or copy.device != device:
        copy = _copies[trie] = trie.to(device)
    return copy


def _holds(model: PreTrainedModel, columns: int) -> bool:
    """Whether the model can hold a token tree behind so many columns."""
    return capability(model).attention is not None and _fits(model, columns)


def _fits(model: PreTrainedModel, columns: int) -> bool:
    window = sliding_window(model)
    return window is None or columns <= window


class _LongEnough:
    """Stops a row at `length` tokens, or as soon after as its open SID is closed."""

    def __init__(self, length: int, grammar: Grammar) -> None:
        self.length, self.grammar = length, grammar

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if input_ids.shape[1] < self.length:
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        return ~self.grammar.read(input_ids).inside


def _path(
    tree: BeamTree, row: int, opening: list[int], prefix: list[int]
) -> tuple[int, int] | None:
    """The beam whose fed tokens continue `opening` as `prefix` does, and how many tokens of the
    prefix that covers; None without one."""
    lengths = (tree.output.sids[row, :, :-1] >= 0).sum(1).tolist()
    for beam, (tokens, n) in enumerate(zip(tree.beams.tokens[row].tolist(), lengths, strict=True)):
        path = [*opening, *tokens[:n]]
        if n and prefix[: len(path)] == path:
            return beam, len(path)
    return None


def _common(prompt: Prompt, model: Any, contexts: Sequence[Sequence[int]]) -> list[int] | None:
    """How many tokens of each context the prompt holds, at least one less than all; None where the
    prompt is of another model or batch, or holds nothing of them."""
    if prompt.lm.model is not unwrapped(model) or prompt.ids.shape[0] != len(contexts):
        return None
    counts = [
        _shared(ids[mask].tolist(), context[:-1])
        for ids, mask, context in zip(prompt.ids, prompt.mask, contexts, strict=True)
    ]
    return counts if any(counts) else None


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
