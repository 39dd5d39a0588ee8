"""The trie as a logits processor: the drop-in for `model.generate`."""

from __future__ import annotations

import weakref

import torch

from crs_fast.ops import trie_mask
from crs_fast.ops.trie.nodes import allowed, continues
from crs_fast.trie import Grammar, ItemFilter, SidTrie, Vocabulary

from .begin_watch import BeginWatch


class SidLogitsProcessor:
    """Lets `model.generate` write only semantic IDs (SIDs) that exist.

    With `vocab.begin` set, constrains after each unclosed `<BOI>` and frees after `<EOI>`. In free
    text, code tokens and `<EOI>` are masked, so that it holds no fake item, and so is `<BOI>` where
    the row's filter allows nothing. With `prompt_length` given, a SID begins right after the
    prompt, and `<BOI>`, where there is one, opens the later ones. After a whole SID comes `end`,
    else end-of-sequence. Stateless: everything is read from `input_ids` (see `Grammar`), so beam
    search, sampling, greedy search and rows in different states all work. Costs one host
    synchronisation for each step, to report illegal prefixes. A `generate` call in which no row
    ever held `<BOI>` was not constrained, and a warning says so once.

    Args:
        trie: the catalogue.
        vocab: which token stands for which code; None means codes are token ids.
        filters: one filter per request; row r of R takes filter r // (R / requests).
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
        vocab: Vocabulary | None = None,
        filters: ItemFilter | None = None,
        prompt_length: int | None = None,
        eos_token_id: int | None = None,
    ) -> None:
        vocab = trie.vocabulary(vocab, "SidLogitsProcessor")
        if prompt_length is None and vocab.begin is None:
            raise ValueError(
                "SidLogitsProcessor: prompt_length must be given where vocab.begin is None: "
                "it says where the SID begins (got None)"
            )
        self.trie, self.vocab, self.prompt_length = trie, vocab, prompt_length
        self.filters = None if filters is None else filters.over(trie).tensors
        self._empty = None if self.filters is None else ~self.filters.words.bool().any(1)
        self.tokens = vocab.tensors(trie.device, eos_token_id)
        # Filters that allow nothing keep `begin` out of the text.
        never_begins = self._empty is not None and bool(self._empty.all())
        is_watched = prompt_length is None and not never_begins
        self._watch = BeginWatch(vocab.begin) if is_watched else None
        if self._watch is not None:
            weakref.finalize(self, self._watch.report)  # the last call, at the latest at exit
        self.grammar = Grammar(
            trie, vocab, prompt_length, vocab.begin, self.tokens.terminator, vocab.text_follows
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` [R, V] with -inf wherever a token may not follow `input_ids` [R, T]."""
        if input_ids.device != self.trie.device:
            raise ValueError(
                "SidLogitsProcessor: trie must be on the device of input_ids, trie.to(device) with "
                f"{str(input_ids.device)!r} (got {str(self.trie.device)!r})"
            )
        if self._watch is not None:
            self._watch.look(input_ids)
        nodes, inside = self.grammar.read(input_ids)
        self._check(nodes, inside)
        scores = trie_mask(scores, nodes, self.trie.tensors, self.tokens, self.filters)
        if self._empty is not None and self.vocab.begin is not None:
            # Where the filter allows nothing, a SID that begins could only end at once.
            rows = self._empty.repeat_interleave(len(scores) // len(self._empty))
            scores[:, self.vocab.begin].masked_fill_(rows & (nodes < 0), -torch.inf)
        return scores

    def _check(self, nodes: torch.Tensor, inside: torch.Tensor) -> None:
        """
        Raises:
            ValueError: as above, of the first row that can't go on.
        """
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
        illegal = inside & (nodes < 0)
        illegal |= inside & (nodes > 0) & ~allowed(trie, self.filters, which, at)
        stuck = torch.zeros_like(illegal)
        if self.tokens.terminator < 0:
            stuck = inside & ~continues(trie, self.filters, which, at)
        if not bool((illegal | stuck).any()):
            return
        row = int((illegal | stuck).nonzero()[0])
        if bool(illegal[row]):
            raise ValueError(
                f"SidLogitsProcessor: the open SID of row {row} must be the prefix of an allowed "
                "item's (got an illegal prefix)"
            )
        raise ValueError(
            f"SidLogitsProcessor: row {row} stands after a whole SID, so vocab.end, vocab.eos or "
            "eos_token_id must be set (got none), or generation must stop there"
        )
