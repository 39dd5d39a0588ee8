"""transformers: the beams of a catalogue as a directory's own way to generate.

model.generate(**inputs, custom_generate=folder, trust_remote_code=True, num_beams=50,
               num_return_sequences=50)
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crs_fast._files import write_text
from crs_fast.decode import beam_search
from crs_fast.trie import SidTrie, Vocabulary

from .served import served_catalogue

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CODE = '''\
"""Beams over this model's catalogue of semantic IDs (`pip install crs_fast`)."""

from crs_fast.integrations.custom_generate import generate

__all__ = ["generate"]
'''


def write_custom_generate(folder: str | Path) -> Path:
    """Put `custom_generate/generate.py` into a directory, which may be a model's (training's, or
    any with an index file `sid_index.*`) or one for this alone, on a disk or on the hub. `generate`
    says what it does.

    Returns:
        The file.
    """
    file = Path(folder) / "custom_generate" / "generate.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, _CODE)
    return file


def generate(
    model: PreTrainedModel,
    inputs: torch.Tensor | None = None,
    *,
    trie: SidTrie | None = None,
    vocab: Vocabulary | None = None,
    **arguments: Any,
) -> Any:
    """`model.generate` with `crs_fast.beam_search`: the SID begins right after the prompt.

    Args:
        model: a model.
        inputs: token ids, as in `model.generate`.
        trie, vocab: the catalogue; None means that of the directory that the model was loaded from.
        arguments: those of `model.generate` and of `beam_search`.

    Raises:
        ValueError: no catalogue was given, and the model's directory has none; what `beam_search`
            refuses.
    """
    if trie is None:
        if not model.name_or_path:
            raise ValueError(
                "custom_generate: trie must be given where the model was not loaded from a "
                "directory (got None)"
            )
        trie, vocab = _catalogue(model.name_or_path, model.device)
    # A model that was loaded with trust_remote_code=True has this function in place of its method.
    kind: Any = type(model)
    return kind.generate(
        model, inputs, custom_generate=beam_search, trie=trie, vocab=vocab, **arguments
    )  # fmt: skip


@lru_cache(maxsize=4)
def _catalogue(name: str, device: torch.device) -> tuple[SidTrie, Vocabulary]:
    trie, vocab = served_catalogue(name)
    return trie.to(device), vocab
