"""The README of a model directory."""

from __future__ import annotations

from crs_fast._version import __version__
from crs_fast.trie import SidTrie

FILE = "README.md"

_CARD = """\
---
library_name: crs_fast
pipeline_tag: text-generation
tags:
- conversational-recommendation
- semantic-ids
---

# A conversational recommender

It talks about {items:,} items and recommends them, each by its semantic ID of {levels} codes, which
are tokens of the language model. Written by `crs_fast` {version}.

```python
import crs_fast

rec = crs_fast.Recommender.from_pretrained("this directory, or its name on the hub")
turn = rec.respond([{{"role": "user", "content": "Something like Heat?"}}])
print(turn.text, turn.items)
```

In vLLM, every answer names items of the catalogue and no others:

```bash
vllm serve DIRECTORY --logits-processors crs_fast.integrations.vllm:SidLogitsProcessor
```

| what | |
|---|---|
| model | {architecture}, {parameters:.0f} M parameters |
| items | `items.jsonl`, {items:,} |
| catalogue | `sids/trie.safetensors`, {nodes:,} nodes |
| quantizer | {quantizer} |
| longest sequence | {max_length} tokens |
| `chat_template.jinja` | {template} |
"""
_SAME = "gives the token ids that the model was trained on"
_OTHER = "not the token ids of training: send those of `Recommender.bundle.builder.context`"


def model_card(
    architecture: str,
    parameters: int,
    trie: SidTrie,
    quantizer: str | None,
    max_length: int,
    template_agrees: bool,
) -> str:
    """The card, for people and for the hub."""
    return _CARD.format(
        items=trie.num_items,
        levels=trie.num_levels,
        nodes=trie.num_nodes,
        version=__version__,
        architecture=architecture,
        parameters=parameters / 1e6,
        quantizer="not recorded" if quantizer is None else f"`{quantizer}`",
        max_length=max_length,
        template=_SAME if template_agrees else _OTHER,
    )
