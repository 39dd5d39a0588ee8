"""The trie as a logits processor: the drop-in for `model.generate`."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch

from crs_fast.ops import TokenTensors, trie_mask, trie_walk
from crs_fast.ops.trie.nodes import allowed, continues
from crs_fast.trie import ItemFilter, SidTrie, SidVocab

# A token that is no code of its level: unlike -1 (stop), no edge carries it.
_NO_CODE = -2

# Live as long as what they were made of, which never changes.
_tokens: weakref.WeakKeyDictionary[Any, dict[Any, TokenTensors]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class SidLogitsProcessor:
    """Lets `model.generate` write only semantic IDs that exist.

    With `vocab.begin` set, constrains after each unclosed `<BOI>` and frees after `<EOI>`; outside
    a SID, code tokens and `<EOI>` are masked, so free text holds no fake item, and `<BOI>` where
    the row's filter allows nothing. Without it, or with `prompt_length` given, the SID begins right
    after the prompt. After a whole SID comes `end`, else end-of-sequence. Stateless: everything is
    read from `input_ids`, so beam search, sampling, greedy search and rows in different phases all
    work. Costs one host synchronisation a step, to report illegal prefixes.

    Args:
        trie: the catalogue.
        vocab: which token stands for which code; None means codes are token ids.
        filters: one filter a request; row r of R takes filter r // (R / requests).
        prompt_length: length of the (padded) prompt in tokens, the same for every row.
        eos_token_id: forced after a whole SID where `vocab.end` is None; default `vocab.eos`.

    Raises:
        ValueError: neither `vocab.begin` nor `prompt_length` says where the SID begins, or the
            vocabulary lacks codes of the trie. While decoding: a trie on another device than the
            tokens, a row whose open SID is no prefix in the catalogue (or of no allowed item), or
            that needs an end token where none is set.
    """

    def __init__(
        self,
        trie: SidTrie,
        vocab: SidVocab | None = None,
        filters: ItemFilter | None = None,
        prompt_length: int | None = None,
        eos_token_id: int | None = None,
    ) -> None:
        if prompt_length is None and (vocab is None or vocab.begin is None):
            raise ValueError(
                "SidLogitsProcessor: prompt_length must be given where vocab.begin is None: "
                "it says where the SID begins (got None)"
            )
        check_codes("SidLogitsProcessor", trie, vocab)
        self.trie, self.vocab, self.prompt_length = trie, vocab, prompt_length
        self.filters = None if filters is None else filters.over(trie).tensors
        self._nothing = None if self.filters is None else ~self.filters.words.bool().any(1)
        self.tokens = token_tensors(trie, vocab, eos_token_id)
        self.codes = _code_table(vocab, trie)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` [R, V] with -inf wherever a token may not follow `input_ids` [R, T]."""
        nodes = self.nodes(input_ids, check=True)
        scores = trie_mask(scores, nodes, self.trie.tensors, self.tokens, self.filters)
        if self._nothing is not None and self.prompt_length is None:
            assert self.vocab is not None
            rows = self._nothing.repeat_interleave(len(scores) // len(self._nothing))
            scores[:, self.vocab.begin].masked_fill_(rows, -torch.inf)
        return scores

    def nodes(self, input_ids: torch.Tensor, check: bool = False) -> torch.Tensor:
        """The trie node each row stands at, int64 [R]; -1 outside a SID, and in an illegal one
        unless `check` makes that an error."""
        if input_ids.device != self.trie.device:
            raise ValueError(
                "SidLogitsProcessor: trie must be on the device of input_ids, trie.to(device) with "
                f"{str(input_ids.device)!r} (got {str(self.trie.device)!r})"
            )
        levels = self.trie.num_levels
        start = self._starts(input_ids)  # [R]
        inside = start >= 0
        at = start.clamp(min=0)[:, None] + torch.arange(levels + 1, device=start.device)
        written = at < input_ids.shape[1]
        window = input_ids.gather(1, at.clamp(max=input_ids.shape[1] - 1))  # [R, L + 1]
        closing = written & (window == self.tokens.terminator)
        closed = closing.any(1)
        codes = self._to_codes(window[:, :levels])
        codes = codes.masked_fill(~written[:, :levels], -1)
        # Tokens from the closing one on are not part of the SID.
        codes = codes.masked_fill(closing.cumsum(1)[:, :levels] > 0, -1)
        nodes = trie_walk(self.trie.tensors, codes)
        nodes = nodes.masked_fill(written[:, levels] & ~closed, -1)
        if check:
            self._check(nodes, inside & ~closed)
        # Closed by `end`: free text. Closed by end-of-sequence: nothing else may follow, as at
        # any leaf.
        after = -1 if self._frees() else self.trie.leaf
        return nodes.masked_fill(closed, after).masked_fill(~inside, -1)

    def _frees(self) -> bool:
        return self.vocab is not None and self.vocab.end is not None

    def _starts(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Position of the first code of each row's latest SID, -1 where there is none."""
        if self.prompt_length is not None:
            return input_ids.new_full((input_ids.shape[0],), self.prompt_length)
        assert self.vocab is not None
        assert self.vocab.begin is not None
        position = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        begins = torch.where(input_ids.eq(self.vocab.begin), position, -1)
        return begins.amax(1)

    def _to_codes(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.codes is None:
            return tokens
        levels, known = self.codes.shape
        level = torch.arange(levels, device=tokens.device)
        codes = self.codes[level, tokens.clamp(max=known - 1)]
        return codes.masked_fill(tokens >= known, _NO_CODE)

    def _check(self, nodes: torch.Tensor, is_open: torch.Tensor) -> None:
        requests = 1 if self.filters is None else self.filters.words.shape[0]
        if requests == 0 or nodes.shape[0] % requests:
            raise ValueError(
                f"SidLogitsProcessor: filters must divide the {nodes.shape[0]} rows evenly "
                f"(got {requests})"
            )
        which = torch.arange(nodes.shape[0], device=nodes.device) // max(
            1, nodes.shape[0] // requests
        )
        at, trie = nodes.clamp(min=0), self.trie.tensors
        bad = is_open & (nodes < 0)
        bad |= is_open & (nodes > 0) & ~allowed(trie, self.filters, which, at)
        stuck = torch.zeros_like(bad)
        if self.tokens.terminator < 0:
            stuck = is_open & ~continues(trie, self.filters, which, at)
        if not bool((bad | stuck).any()):
            return
        row = int((bad | stuck).nonzero()[0])
        if bool(bad[row]):
            raise ValueError(
                f"SidLogitsProcessor: the open SID of row {row} must be the prefix of an allowed "
                "item's (got an illegal prefix)"
            )
        raise ValueError(
            f"SidLogitsProcessor: row {row} stands after a whole SID, so vocab.end, vocab.eos or "
            "eos_token_id must be set (got none), or generation must stop there"
        )


def token_tensors(
    trie: SidTrie, vocab: SidVocab | None, eos_token_id: int | None = None
) -> TokenTensors:
    """What the trie ops need of a vocabulary that holds the trie's codes, on the trie's device;
    codes are token ids where `vocab` is None. Made once a vocabulary, or else once a trie."""
    with _lock:
        known = _tokens.setdefault(trie if vocab is None else vocab, {})
    key = trie.device, eos_token_id
    if key not in known:
        with torch.inference_mode(False):  # else only inference code could use them
            known[key] = _token_tensors(trie, vocab, eos_token_id)
    return known[key]


def _token_tensors(trie: SidTrie, vocab: SidVocab | None, eos_token_id: int | None) -> TokenTensors:
    if vocab is None:
        column = torch.arange(max([1, *trie.level_sizes()])).expand(trie.num_levels, -1)
        denied = torch.empty(0, dtype=torch.int64)
        terminator = -1 if eos_token_id is None else eos_token_id
        tokens = TokenTensors(column, denied, terminator, max(column.shape[1], terminator + 1))
    else:
        tokens = vocab.tensors(None if vocab.end is not None else eos_token_id)
    return tokens._replace(
        column=tokens.column.to(trie.device), denied=tokens.denied.to(trie.device)
    )


def check_codes(op: str, trie: SidTrie, vocab: SidVocab | None) -> None:
    """
    Raises:
        ValueError: the trie has levels or codes that the vocabulary lacks.
    """
    sizes = trie.level_sizes()
    if vocab is not None and (
        len(sizes) > vocab.num_levels
        or any(size > have for size, have in zip(sizes, vocab.sizes, strict=False))
    ):
        raise ValueError(
            f"{op}: vocab must have a token for each code of the trie, {sizes} a level "
            f"(got {vocab.sizes})"
        )


def _code_table(vocab: SidVocab | None, trie: SidTrie) -> torch.Tensor | None:
    """`table[l, token]` is the code of `token` at level l, -2 where it is none; int64 [L, T]."""
    if vocab is None:
        return None
    ids = vocab.token_ids[: trie.num_levels]
    table = torch.full((len(ids), int(vocab.code_tokens().max()) + 1), _NO_CODE)
    for level, tokens in enumerate(ids):
        table[level, tokens] = torch.arange(tokens.numel())
    return table.to(trie.device)
