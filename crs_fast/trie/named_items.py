"""From generated token ids to the items that they name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from crs_fast.ops import trie_walk
from crs_fast.ops.host import as_integers

from .sid_trie import SidTrie, check_sid_trie
from .vocabulary import Vocabulary

_NO_TOKEN = -1
_NO_CODE = -2  # unlike -1, at which a walk stops, no edge carries it


class Named(NamedTuple):
    """One semantic ID in a row of tokens.

    item_ids: the items that carry it, in catalogue order
    start, end: its code tokens are `row[start:end]`; tokens that frame it stand outside
    """

    item_ids: list[int | str]
    start: int
    end: int


def find_items(
    token_ids: torch.Tensor | Sequence[Iterable[int]], trie: SidTrie, vocab: Vocabulary | None
) -> list[list[Named]]:
    """The items that rows of tokens name, in order: what `generate` returned, completions of a
    trainer, the token ids that a server sent.

        for each place where a SID may begin:
            take the longest SID of the catalogue that stands there
            skip it where another code token follows: that makes another SID of it

    With `vocab.begin` set, SIDs begin after it, as `SidLogitsProcessor` writes them, and at the
    row's first token, for completions of a prompt that ends with it. Without, they begin anywhere.

    Args:
        token_ids: int [R, T], or R rows of any length.
        trie: the catalogue.
        vocab: which token stands for which code; None means codes are token ids.

    Returns:
        For each row what it names; a SID that no item carries is left out.

    Raises:
        ValueError: a vocabulary that lacks codes of the trie.
    """
    check_sid_trie("find_items", trie)
    vocab = trie.vocabulary(vocab, "find_items")
    if not hasattr(token_ids, "__iter__"):
        raise ValueError(
            f"find_items: token_ids must be rows of tokens (got {type(token_ids).__name__})"
        )
    rows = [as_integers("find_items: token_ids", row).long().reshape(-1).cpu() for row in token_ids]
    found: list[list[Named]] = [[] for _ in rows]
    lengths = torch.tensor([len(row) for row in rows], device="cpu")
    if not len(rows) or not int(lengths.max()):
        return found
    levels = trie.num_levels
    # Room behind the longest row, so that a window starts at every token.
    width = int(lengths.max()) + levels
    tokens = torch.full((len(rows), width), _NO_TOKEN, device="cpu")
    tokens[:, :-levels] = pad_sequence(rows, batch_first=True, padding_value=_NO_TOKEN)
    row, start = _starts(tokens[:, :-levels], vocab).nonzero(as_tuple=True)  # [S]
    windows = tokens.unfold(1, levels + 1, 1)[row, start]  # [S, L + 1]
    length, begin, end = _longest(windows, trie, vocab)
    stop = -1  # a SID holds no other
    last_row = -1
    for r, first, size, a, b in zip(
        *(t.tolist() for t in (row, start, length, begin, end)), strict=True
    ):
        if r != last_row:
            last_row, stop = r, -1
        if size and first >= stop:
            stop = first + size
            found[r].append(Named(trie.item_ids[a:b], first, stop))
    return found


def _starts(tokens: torch.Tensor, vocab: Vocabulary) -> torch.Tensor:
    """Where a SID may begin in tokens [R, T]: bool [R, T]."""
    begins = vocab.decode(tokens[..., None])[..., 0] >= 0
    if vocab.begin is None:
        return begins
    follows = torch.ones_like(begins)
    follows[:, 1:] = tokens[:, :-1] == vocab.begin
    return begins & follows


def _longest(
    windows: torch.Tensor, trie: SidTrie, vocab: Vocabulary
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the longest SID at the beginning of each window [S, L + 1]: its length, 0 where there is
    none, and the range of items that carry it, int64 [S] each."""
    levels = trie.num_levels
    codes = vocab.decode(windows[:, :levels])
    codes = codes.masked_fill(codes < 0, _NO_CODE).to(trie.device)
    length, begin, end = (
        torch.zeros(len(windows), dtype=torch.int64, device="cpu") for _ in range(3)
    )
    for n in range(1, levels + 1):
        nodes = trie_walk(trie.tensors, codes[:, :n].contiguous())
        first, last = (t.cpu() for t in trie.items_at(nodes))
        whole = first < last
        length = torch.where(whole, n, length)
        begin, end = torch.where(whole, first, begin), torch.where(whole, last, end)
    # A level that follows is part of what was written, and no item is called that.
    following = windows.gather(1, length[:, None])[:, 0]
    goes_on = (length < levels) & torch.isin(following, vocab.code_tokens())
    return length.masked_fill(goes_on, 0), begin, end
