"""Catalogues whose SIDs end in a terminator, so that its log-prob counts like a code's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .sid_trie import SidTrie
from .sid_vocab import SidVocab
from .vocabulary import Vocabulary

# The tokens that are forced after each SID, as callers give them.
Terminator = int | Sequence[int]


def checked_terminator(
    op: str, trie: SidTrie, vocab: Vocabulary, terminator: Terminator
) -> tuple[int, ...]:
    """The tokens of a terminator, in order.

    Raises:
        ValueError: it is no token and no sequence of tokens, names one token twice, or holds a
            begin token or one that stands for a code of the catalogue.
    """
    tokens = _tokens(terminator)
    if not tokens:
        raise ValueError(
            f"{op}: terminator must be a token id, or a sequence of at least one "
            f"(got {terminator!r})"
        )
    for token in tokens:
        if tokens.count(token) > 1:
            raise ValueError(
                f"{op}: terminator must be distinct token ids (got {token} more than once)"
            )
        if token in vocab.begins:
            raise ValueError(
                f"{op}: terminator must hold no begin token (got {token}, which is one)"
            )
        for ids, codes in zip(vocab.token_ids, trie.level_codes, strict=False):
            if bool((ids[codes] == token).any()):
                raise ValueError(
                    f"{op}: terminator must stand for no code of the catalogue (got {token}, "
                    "which does)"
                )
    return tokens


def _tokens(terminator: Any) -> tuple[int, ...]:
    """The tokens of a terminator; () where it is none."""
    if hasattr(terminator, "tolist"):  # a tensor or an array
        terminator = terminator.tolist()
    if isinstance(terminator, (str, bytes)):
        return ()
    several = list(terminator) if hasattr(terminator, "__iter__") else [terminator]
    if all(_is_token(token) for token in several):
        return tuple(int(token) for token in several)
    return ()


def _is_token(token: Any) -> bool:
    return hasattr(token, "__index__") and not isinstance(token, bool) and token >= 0


class TerminatedVocab(SidVocab):
    """The vocabulary of `trie.terminated` for that of `trie`.

    Args:
        vocab: of the trie.
        terminator: the token of code 0, which stands for no other code of the catalogue.
        ends: whether SIDs may end at each level, that is, whether it has code 0.
    """

    def __init__(self, vocab: Vocabulary, terminator: int, ends: tuple[bool, ...]) -> None:
        none = torch.empty(0, dtype=torch.int64, device="cpu")
        levels = []
        for ids, level_ends in zip([*vocab.token_ids[: len(ends) - 1], none], ends, strict=True):
            first = none.new_tensor([terminator if level_ends else -1])
            levels.append(torch.cat([first, ids.masked_fill(ids == terminator, -1)]))
        super().__init__(levels, vocab.begin, vocab.end, vocab.eos)
        self._unterminated = vocab

    @property
    def begins(self) -> tuple[int, ...]:
        return self._unterminated.begins

    @property
    def opens_with_code(self) -> bool:
        return self._unterminated.opens_with_code

    def code_tokens(self) -> torch.Tensor:
        """Those of the vocabulary without a terminator, which free text may hold."""
        return self._unterminated.code_tokens()


def with_terminator(
    trie: SidTrie, vocab: Vocabulary, tokens: Sequence[int]
) -> tuple[SidTrie, Vocabulary]:
    """A catalogue whose SIDs end with these tokens, checked: each token is one code more, and moves
    all codes before it up by one."""
    for token in tokens:
        vocab = _terminated_vocab(trie, vocab, token)
        trie = trie.terminated
    return trie, vocab


def _terminated_vocab(trie: SidTrie, vocab: Vocabulary, token: int) -> Vocabulary:
    """The `TerminatedVocab` of a catalogue. Made once for each token and each set of levels at
    which SIDs end."""
    ends = tuple(bool((codes == 0).any()) for codes in trie.terminated.level_codes)
    key = "terminated", token, ends
    return vocab.remembered(key, lambda: TerminatedVocab(vocab, token, ends))
