"""Replies that are written together, one token of each per step."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.sampling import GREEDY, Sampling, choose
from crs_fast.decode import Prompt, SidLogitsProcessor, TreeModel
from crs_fast.decode.lm.recordings import can_record
from crs_fast.trie import ItemFilter, SidTrie
from crs_fast.trie.item_filter import stacked


@dataclass(eq=False)
class Reply:
    """A reply that is being written.

    bundle: whose items it may name
    read: the last tokens before it, at least its prefix
    max_new_tokens: where it ends; an item that is open then is finished
    sampling: how its words are chosen
    generator: of the random numbers of its sampling; None means torch's
    filter: of the items that it may name
    tokens: what is written, without end-of-sequence
    """

    bundle: Bundle
    read: Sequence[int]
    max_new_tokens: int = 64
    sampling: Sampling = GREEDY
    generator: torch.Generator | None = None
    filter: ItemFilter | None = None
    tokens: list[int] = field(default_factory=list)


class ReplyBatch:
    """Replies that share their forward passes. Others may join between any two steps.

        batch.join(prompt, replies)
        while len(batch): ended = batch.step()

    Semantic IDs in the text are constrained to each reply's catalogue and filter. What a reply says
    does not depend on the others.

    Args:
        lm: the model of all of them.
        cuda_graphs: on a GPU, record the forward passes in CUDA graphs, which pays for a batch that
            lives long.
    """

    def __init__(self, lm: TreeModel, cuda_graphs: bool = False) -> None:
        from crs_fast.decode.lm.recorded_rows import RecordedRows
        from crs_fast.decode.lm.token_rows import TokenRows

        self.replies: list[Reply] = []
        is_recorded = cuda_graphs and can_record(lm.model.device)
        self._rows = RecordedRows(lm) if is_recorded else TokenRows(lm)
        self._hidden = torch.empty(0)
        self._window = torch.empty(0)  # int64 [R, W], the last tokens of each row
        self._constraints: list[tuple[list[int], SidLogitsProcessor]] | None = None

    def __len__(self) -> int:
        return len(self.replies)

    def join(self, prompt: Prompt, replies: Sequence[Reply]) -> None:
        """Add the replies to the rows of a prompt, which must not grow any more."""
        first, pad = len(self), replies[0].bundle.builder.eos
        self._rows.join(prompt)
        self.replies += replies
        # An item that has more than its tokens behind its beginning is not open.
        width = max(reply.bundle.vocab.num_levels for reply in self.replies) + 2
        window = [[*[pad] * width, *reply.read][-width:] for reply in replies]
        new = torch.tensor(window, device=prompt.ids.device)
        if first:
            # Rows of another catalogue may have needed less.
            missing = (max(0, width - self._window.shape[1]), 0)
            old = torch.nn.functional.pad(self._window, missing, value=pad)
            self._window = torch.cat([old[:, -width:], new])
            self._hidden = torch.cat([self._hidden, prompt.hidden])
        else:
            self._window, self._hidden = new, prompt.hidden
        self._constraints = None

    def step(self) -> list[Reply]:
        """Write one token of each reply. Returns the replies that have ended, which leave."""
        tokens = choose(
            self._scores(),
            [reply.sampling for reply in self.replies],
            [reply.generator for reply in self.replies],
        )
        self._window = torch.cat([self._window[:, 1:], tokens[:, None]], 1)
        inside = self._inside()
        ended: list[int] = []
        for row, (reply, token) in enumerate(zip(self.replies, tokens.tolist(), strict=True)):
            if token == reply.bundle.builder.eos:
                ended.append(row)
                continue
            reply.tokens.append(token)
            if len(reply.tokens) >= reply.max_new_tokens and row not in inside:
                ended.append(row)
        gone = [self.replies[row] for row in ended]
        if ended:
            self._leave(ended)
        if self.replies:
            self._hidden = self._rows.feed(self._window[:, -1])
        return gone

    def remove(self, replies: Sequence[Reply]) -> None:
        """Take replies out before they have ended; others are ignored."""
        gone = {id(reply) for reply in replies}
        rows = [row for row, reply in enumerate(self.replies) if id(reply) in gone]
        if rows:
            self._leave(rows)

    def _leave(self, rows: list[int]) -> None:
        order = self._rows.leave(rows)
        self.replies = [self.replies[row] for row in order]
        index = torch.tensor(order, dtype=torch.int64, device=self._window.device)
        self._window, self._hidden = self._window[index], self._hidden[index]
        self._constraints = None

    def _scores(self) -> torch.Tensor:
        """float32 [R, V]: -inf for what a reply may not go on with."""
        scores = self._rows.lm.head(self._hidden).float()
        for rows, constraint in self._constrained():
            control = self.replies[rows[0]].bundle.control.tokens
            if len(rows) == len(self):
                scores[:, control] = -torch.inf
                return constraint.mask(self._window, scores)
            some = scores[rows]
            some[:, control] = -torch.inf
            scores[rows] = constraint.mask(self._window[rows], some)
        return scores

    def _constrained(self) -> list[tuple[list[int], SidLogitsProcessor]]:
        """The rows of each catalogue, and what constrains them."""
        if self._constraints is None:
            rows_of: dict[int, list[int]] = {}
            for row, reply in enumerate(self.replies):
                rows_of.setdefault(id(reply.bundle.trie), []).append(row)
            self._constraints = [
                (rows, _constraint([self.replies[row] for row in rows], self._window.device))
                for rows in rows_of.values()
            ]
        return self._constraints

    def _inside(self) -> set[int]:
        """Rows at their limit in which an item is open."""
        over = {row for row, r in enumerate(self.replies) if len(r.tokens) + 1 >= r.max_new_tokens}
        open_rows: set[int] = set()
        for rows, constraint in self._constrained() if over else ():
            inside = constraint.grammar.read(self._window[rows]).inside
            open_rows |= {
                row for row, is_open in zip(rows, inside.tolist(), strict=True) if is_open
            }
        return open_rows & over


def _constraint(replies: Sequence[Reply], device: torch.device) -> SidLogitsProcessor:
    """The constraint of replies from one catalogue."""
    bundle, filters = replies[0].bundle, stacked([reply.filter for reply in replies])
    return SidLogitsProcessor(placed(bundle.trie, device), bundle.vocab, filters, inplace=True)


# Each catalogue's copy on the model's device, kept because every turn needs it.
_copies: weakref.WeakKeyDictionary[SidTrie, SidTrie] = weakref.WeakKeyDictionary()


def placed(trie: SidTrie, device: torch.device) -> SidTrie:
    """The trie on a device, copied there once."""
    if trie.device == device:
        return trie
    copy = _copies.get(trie)
    if copy is None or copy.device != device:
        copy = _copies[trie] = trie.to(device)
    return copy
