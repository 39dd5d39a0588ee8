"""What constrained generation must give."""

from __future__ import annotations

import torch

from crs_fast.decode import SidLogitsProcessor

NEW_TOKENS = 8


def next_logits(model, row):
    """Logits [V] after a row of tokens."""
    with torch.no_grad():
        return model(torch.tensor([row])).logits[0, -1].float()


def expected(served, prompt, deny=None, constrained=True, steps=NEW_TOKENS):
    """What greedy generation with our own processor writes."""
    filters = None if deny is None else served.trie.filter(deny=deny)
    processor = SidLogitsProcessor(served.trie, served.vocab, filters=filters)
    row = list(prompt)
    for _ in range(steps):
        logits = next_logits(served.model, row)[None]
        if constrained:
            logits = processor(torch.tensor([row]), logits)
        row.append(int(logits.argmax()))
    return row[len(prompt) :]
