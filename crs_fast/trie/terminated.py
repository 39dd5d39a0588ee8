"""Catalogues whose SIDs end in a terminator, so that its log-prob counts like a code's."""

from __future__ import annotations

import torch

from .sid_trie import SidTrie
from .sid_vocab import SidVocab
from .vocabulary import Vocabulary


def checked_terminator(op: str, trie: SidTrie, vocab: Vocabulary, terminator: int) -> int:
    """
    Raises:
        ValueError: it is no token, or stands for a code of the catalogue.
    """
    if not hasattr(terminator, "__index__") or terminator < 0:
        raise ValueError(f"{op}: terminator must be a token id (got {terminator!r})")
    token = int(terminator)
    for ids, codes in zip(vocab.token_ids, trie.level_codes, strict=False):
        if bool((ids[codes] == token).any()):
            raise ValueError(
                f"{op}: terminator must stand for no code of the catalogue (got {token}, "
                "which does)"
            )
    return token


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
        self._code_tokens = torch.cat([vocab.code_tokens(), none.new_tensor([terminator])]).unique()

    def code_tokens(self) -> torch.Tensor:
        return self._code_tokens


def terminated_vocab(trie: SidTrie, vocab: Vocabulary, terminator: int) -> Vocabulary:
    """The `TerminatedVocab` of a catalogue. Made once for each terminator and each set of levels at
    which SIDs end.

    Args:
        terminator: checked.
    """
    ends = tuple(bool((codes == 0).any()) for codes in trie.terminated.level_codes)
    key = "terminated", terminator, ends
    return vocab.remembered(key, lambda: TerminatedVocab(vocab, terminator, ends))
