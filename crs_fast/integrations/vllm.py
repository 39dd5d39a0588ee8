"""vLLM: the constraint inside its engine, and beams over a catalogue.

llm = LLM(folder, logits_processors=["crs_fast.integrations.vllm:SidLogitsProcessor"])
vllm serve FOLDER --logits-processors crs_fast.integrations.vllm:SidLogitsProcessor
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from crs_fast.decode.begins import Begins
from crs_fast.decode.output import RecommendOutput
from crs_fast.decode.row_mask import RowMask
from crs_fast.trie import ItemFilter, SidTrie, Vocabulary

from .served import ItemId, RequestFilters, RequestOptions, served_catalogue

_LOGPROBS = "processed_logprobs"


def _interfaces() -> tuple[type, ...]:
    """The base classes that this vLLM asks for: those of its two model runners."""
    found: list[type] = []
    try:
        from vllm.v1.sample.logits_processor.interface import LogitsProcessor

        found.append(LogitsProcessor)
    except ImportError:
        return (object,)  # where vLLM is not installed, so that the rest can be tested
    try:
        from vllm.v1.worker.gpu.sample.logits_processor import interface

        found.append(interface.LogitsProcessor)
    except ImportError:
        pass  # an older vLLM has one runner
    return tuple(found)


@dataclass(frozen=True)
class _Request:
    """A request in the engine's batch.

    prompt, output: its token ids; the engine appends to `output`. Unused by the newer runner, which
        keeps them on the device
    """

    options: RequestOptions
    filter: ItemFilter | None
    prompt: Sequence[int] = ()
    output: Sequence[int] = ()


class SidLogitsProcessor(*_interfaces()):  # type: ignore[misc]
    """The trie inside vLLM, for both of its model runners (V1 and V2).

    The catalogue is the model directory's own (`crs_fast.json`, or an index file `sid_index.*` in
    it), or the index file that `additional_config={"sid_index": path}` names. Where the vocabulary
    has a begin token, or one for each type of item, a request is constrained after it; else right
    after its prompt.

    A request may carry these in `SamplingParams.extra_args`, or over HTTP in `vllm_xargs`:

        sid           "off" leaves it alone; default "on"
        sid_allow     ids of the items that it may name, and no others
        sid_deny      ids of the items that it may not name
        sid_prefix    how many of the prompt's last tokens belong to a SID that has begun; 0 where
                      the SID begins right after the prompt though no begin token says so

    Made by vLLM from its configuration and, in V1, a device, in V2, its buffers of requests.
    Install it by name in `logits_processors`, not as an entry point: only so does the V1 runner
    hand over the tokens that it has just sampled.

    Raises:
        ValueError: no catalogue, or no token that ends a SID. For a request, an argument of the
            wrong kind.
    """

    def __init__(self, vllm_config: Any, state: Any, is_pin_memory: bool = False) -> None:
        is_v2 = hasattr(state, "all_token_ids")
        self._buffers: Any = state if is_v2 else None
        device = torch.device(state.device if is_v2 else state)
        trie, vocab = _catalogue(vllm_config)
        self._mask = RowMask(trie, vocab, device, _eos(vllm_config))
        self._filters = RequestFilters(self._mask.trie)
        self._device = device
        # By the request's place in the batch (V1) or by its slot (V2).
        self._requests: dict[int, _Request] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse a request with wrong arguments when it arrives, where that harms nobody else."""
        RequestOptions.read(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        """False: the likeliest token changes."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """V1: requests leave the batch, enter it and move."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._requests.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            self._put(index, params, prompt or (), output)
        for source, target, direction in batch_update.moved:
            left, right = self._requests.pop(source, None), self._requests.pop(target, None)
            if left is not None:
                self._requests[target] = left
            if right is not None and direction.name == "SWAP":
                self._requests[source] = right

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: a request enters the slot `req_idx`. Returns whether it is constrained."""
        self._put(req_idx, sampling_params)
        return req_idx in self._requests

    def _put(
        self, index: int, params: Any, prompt: Sequence[int] = (), output: Sequence[int] = ()
    ) -> None:
        self._requests.pop(index, None)
        options = RequestOptions.read(params.extra_args).opened(self._mask.begins_by_token)
        if options.is_on:
            allowed = self._filters.of(options)
            self._requests[index] = _Request(options, allowed, prompt, output)

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Mask `logits` [R, V] in place. `ctx` is V2's batch layout."""
        if not self._requests:
            return logits
        indices = list(range(logits.shape[0])) if ctx is None else _slots(ctx, logits.shape[0])
        rows = [row for row, index in enumerate(indices) if index in self._requests]
        if not rows:
            return logits
        requests = [self._requests[indices[row]] for row in rows]
        if ctx is None:
            windows, written = self._host_rows(requests)
        else:
            windows, written = self._device_rows(ctx, rows, [indices[row] for row in rows])
        filters = [request.filter for request in requests]
        if len(rows) == logits.shape[0]:
            return self._mask.apply_(logits, windows, written, filters)
        at = torch.tensor(rows, device=logits.device)
        masked = self._mask.apply_(logits.index_select(0, at), windows, written, filters)
        return logits.index_copy_(0, at, masked)

    def _host_rows(self, requests: list[_Request]) -> tuple[torch.Tensor, torch.Tensor]:
        """The last tokens of each row, int64 [R, W], and how many of them belong to a SID that was
        announced by `sid_prefix`, int64 [R], -1 where none was."""
        if any(request.output and request.output[-1] < 0 for request in requests):
            raise RuntimeError(
                "crs_fast.integrations.vllm: the engine must hand over the tokens that it has "
                "sampled (got a placeholder); name SidLogitsProcessor in logits_processors, not in "
                "an entry point, or set async_scheduling=False"
            )
        windows = [self._mask.window(request.prompt, request.output) for request in requests]
        written = [request.options.written(len(request.output)) for request in requests]
        return (
            torch.tensor(windows, device=self._device),
            torch.tensor(written, device=self._device),
        )

    def _device_rows(
        self, ctx: Any, rows: list[int], slots: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `_host_rows`, from V2's buffers. Tokens that were only drafted stand in
        `ctx.input_ids`, a request's one after the other."""
        buffers, width = self._buffers, self._mask.width
        row, slot = (torch.tensor(one, device=self._device) for one in (rows, slots))
        length = ctx.pos[row].long() + 1  # [R]
        back = torch.arange(width - 1, -1, -1, device=self._device)  # [W], 0 is the last token
        at = length[:, None] - 1 - back
        history = buffers.all_token_ids.gpu
        tokens = history[slot[:, None], at.clamp(min=0)].long()
        drafted = ctx.input_ids[(row[:, None] - back).clamp(min=0)].long()
        tokens = torch.where(at >= buffers.total_len.gpu[slot].long()[:, None], drafted, tokens)
        tokens = tokens.masked_fill(at < 0, -1)
        starts = [self._start(slot) for slot in slots]
        start = torch.tensor(starts, device=self._device)
        return tokens, torch.where(start >= 0, length - start, -1)

    def _start(self, slot: int) -> int:
        """Where the SID begins that `sid_prefix` announced; -1 where none was."""
        prefix = self._requests[slot].options.prefix
        return -1 if prefix is None else int(self._buffers.prompt_len.np[slot]) - prefix


def _slots(ctx: Any, num_rows: int) -> list[int]:
    """The slot of each row of logits. Under speculative decoding a request has several rows."""
    if len(ctx.idx_mapping_np) == num_rows:
        return list(map(int, ctx.idx_mapping_np))
    slots: list[int] = ctx.expanded_idx_mapping.tolist()
    return slots


def _catalogue(vllm_config: Any) -> tuple[SidTrie, Vocabulary]:
    extra = vllm_config.additional_config
    index = extra.get("sid_index") if isinstance(extra, dict) else None
    config = vllm_config.model_config
    return _remembered(str(config.model), index, str(config.tokenizer or config.model))


def _eos(vllm_config: Any) -> int | None:
    """The model's end-of-sequence token; of several, the first."""
    eos = getattr(vllm_config.model_config.hf_config, "eos_token_id", None)
    first = eos[0] if isinstance(eos, list) and eos else eos
    return first if isinstance(first, int) else None


_remembered = lru_cache(maxsize=4)(served_catalogue)


def beam_search(
    llm: Any,
    prompts: Sequence[str | Sequence[int]],
    num_beams: int = 50,
    *,
    allow: Sequence[ItemId] | None = None,
    deny: Sequence[ItemId] | None = None,
) -> RecommendOutput:
    """The best items of each prompt by vLLM's engine: beam search in which every beam is a legal
    prefix, as `recommend(normalize="legal")` on the same logits.

        for each level: every beam is a request for one token, its num_beams likeliest are read
                        the best num_beams of a prompt's continuations are its beams

    Shared prompts are computed once where the engine caches prefixes. A SID that is the prefix of a
    longer one ends by its end token, whose log-probability counts.

    Args:
        llm: an `LLM` made with `SidLogitsProcessor`, `logprobs_mode="processed_logprobs"` and
            `max_logprobs=-1` (or at least `num_beams`).
        prompts: texts or token ids, which end where the SID begins; the vocabulary's begin token
            is added where it is missing. In a typed catalogue a prompt that ends with a begin token
            gets items of that type, any other one items of all types.
        num_beams: beams per prompt.
        allow, deny: ids of the items that may be found alone, or may not.

    Raises:
        ValueError: an engine that reports log-probs of another kind (before the constraint, the
            likeliest tokens are mostly illegal ones), or too few of them; no prompt or beam.
    """
    config = llm.llm_engine.vllm_config
    mode, most = config.model_config.logprobs_mode, config.model_config.max_logprobs
    if str(getattr(mode, "value", mode)) != _LOGPROBS:
        raise ValueError(
            f"vllm.beam_search: llm must be made with logprobs_mode={_LOGPROBS!r} (got {mode!r})"
        )
    if num_beams < 1 or not len(prompts):
        raise ValueError(
            "vllm.beam_search: there must be at least one prompt and one beam "
            f"(got {len(prompts)} and {num_beams})"
        )
    trie, vocab = _catalogue(config)
    count = min(num_beams, config.model_config.get_vocab_size())
    if 0 <= most < count:
        raise ValueError(
            f"vllm.beam_search: llm must be made with max_logprobs=-1 or at least {count} "
            f"(got {most})"
        )
    options = RequestOptions.read({"sid_allow": allow, "sid_deny": deny})
    search = _Search(llm, trie, vocab, count, num_beams, options)
    rows, beams = search.begun(prompts)
    for _ in range(trie.num_levels):
        beams = search.step(rows, beams)
    return search.output(beams)


@dataclass(frozen=True)
class _Beam:
    """The tokens of a SID's codes, their sum of log-probs, and whether the SID has ended."""

    tokens: tuple[int, ...]
    score: float
    ended: bool


class _Search:
    """One call of `beam_search`: `count` log-probs per step, the options as the engine takes
    them."""

    def __init__(
        self,
        llm: Any,
        trie: SidTrie,
        vocab: Vocabulary,
        count: int,
        num_beams: int,
        options: RequestOptions,
    ) -> None:
        self.llm, self.trie, self.vocab = llm, trie, vocab
        self.count, self.num_beams, self.options = count, num_beams, options
        self._end = vocab.terminator(_eos(llm.llm_engine.vllm_config))
        # In a vocabulary of titles the end token is a code too.
        self._end_is_code = (vocab.decode([[self._end] * trie.num_levels])[0] >= 0).tolist()

    def begun(
        self, prompts: Sequence[str | Sequence[int]]
    ) -> tuple[list[list[int]], list[list[_Beam]]]:
        """The tokens of each prompt up to where its SIDs begin, and its first beam. In a typed
        catalogue a begin token at a prompt's end is that beam's first code."""
        tokenizer = self.llm.get_tokenizer()
        rows = [list(tokenizer(p)["input_ids"] if isinstance(p, str) else p) for p in prompts]
        beams = [[_Beam((), 0.0, False)] for _ in rows]
        if not self.vocab.opens_with_code:
            begins = list(self.vocab.begins)
            return [row if row[-1:] == begins else [*row, *begins] for row in rows], beams
        items = RequestFilters(self.trie).of(self.options)
        filters = None if items is None else items.over(self.trie).tensors
        possible = Begins(self.trie, self.vocab).possible(filters)
        for number, row in enumerate(rows):
            if row and row[-1] in self.vocab.begins:
                begin = row.pop()
                beams[number] = [_Beam((begin,), 0.0, False)] if begin in possible else []
        return rows, beams

    def step(self, rows: list[list[int]], beams: list[list[_Beam]]) -> list[list[_Beam]]:
        """Every beam continued by one token, and the best of each prompt's kept."""
        from vllm import SamplingParams

        open_beams = [
            (row, beam)
            for row, of_row in zip(rows, beams, strict=True)
            for beam in of_row
            if not beam.ended
        ]
        if not open_beams:
            return beams
        given = {"sid_allow": self.options.allow, "sid_deny": self.options.deny}
        extra = {name: list(ids) for name, ids in given.items() if ids is not None}
        parameters = [
            SamplingParams(
                temperature=0.0, max_tokens=1, logprobs=self.count, detokenize=False,
                extra_args={**extra, "sid_prefix": len(beam.tokens)},
            )
            for _, beam in open_beams
        ]  # fmt: skip
        inputs = [{"prompt_token_ids": [*row, *beam.tokens]} for row, beam in open_beams]
        outputs = iter(self.llm.generate(inputs, parameters, use_tqdm=False))
        return [self._best(of_row, outputs) for of_row in beams]

    def _best(self, beams: list[_Beam], outputs: Iterator[Any]) -> list[_Beam]:
        candidates: list[tuple[float, int, int, _Beam]] = []
        for parent, beam in enumerate(beams):
            if beam.ended:
                candidates.append((-beam.score, parent, -1, beam))
                continue
            logprobs = next(outputs).outputs[0].logprobs[0]
            for token, about in logprobs.items():
                if about.logprob == float("-inf"):
                    continue
                score, ends = beam.score + about.logprob, token == self._end
                is_code = not ends or self._end_is_code[len(beam.tokens)]
                tokens = (*beam.tokens, *((token,) if is_code else ()))
                after = _Beam(tokens, score, ends or len(tokens) == self.trie.num_levels)
                candidates.append((-score, parent, token, after))
        candidates.sort(key=lambda one: one[:3])
        return [beam for *_, beam in candidates[: self.num_beams]]

    def output(self, beams: list[list[_Beam]]) -> RecommendOutput:
        shape = len(beams), self.num_beams
        tokens = torch.full((*shape, self.trie.num_levels), -1, dtype=torch.int64)
        scores = torch.full(shape, -torch.inf, dtype=torch.float32)
        for row, of_row in enumerate(beams):
            for rank, beam in enumerate(of_row):
                tokens[row, rank, : len(beam.tokens)] = torch.tensor(beam.tokens)
                scores[row, rank] = beam.score
        filters = RequestFilters(self.trie).of(self.options)
        return RecommendOutput.of_sids(self.trie, self.vocab.decode(tokens), scores, filters)
