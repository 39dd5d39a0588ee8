"""The baseline in pure Python: a trie of dicts as `prefix_allowed_tokens_fn`."""

from __future__ import annotations

from typing import Any

import torch


class PythonTrie:
    """A trie of dicts over token ids, as GENRE and most semantic-ID code bases keep one."""

    def __init__(self, sequences: list[list[int]], prompt_length: int) -> None:
        self.root: dict[int, Any] = {}
        self.prompt_length = prompt_length
        for sequence in sequences:
            node = self.root
            for token in sequence:
                node = node.setdefault(token, {})

    def __call__(self, batch_id: int, input_ids: torch.Tensor) -> list[int]:
        """`prefix_allowed_tokens_fn` of `model.generate`."""
        node = self.root
        for token in input_ids[self.prompt_length :].tolist():
            node = node[token]
        return list(node)
