"""The base of every residual quantizer: fitting, encoding, decoding, saving and fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from crs_fast._arguments import Rule, at_least, check_kind, check_settings
from crs_fast._files import replacing_folder
from crs_fast.ops.codebook import beam_lookup, residual_codes
from crs_fast.ops.host import as_integers, as_tensor
from crs_fast.quantize.sources import Source, batch_of, open_source

_ENCODE_ROWS = 1 << 14
_RULES = (
    Rule("levels codes", int, "at least 1 and below 2 ** 31", lambda v: 1 <= v < 1 << 31),
    Rule("seed", int, "in [-2 ** 63, 2 ** 64)", lambda v: -(1 << 63) <= v < 1 << 64),
    Rule("input_dim", int, *at_least(1), optional=True),
)


def rows_of(x: Any, at: int, rows: int) -> torch.Tensor:
    """The next `rows` rows from `at` on, in memory. Those of a memory map are copied, because torch
    wants memory that it may write to."""
    part = x[at : at + rows]
    return part if isinstance(part, torch.Tensor) else torch.from_numpy(np.array(part))


def _is_batches(x: Any) -> bool:
    """Whether x is batches of rows, and not the rows themselves."""
    if not isinstance(x, list | tuple):
        return callable(x) or not any(hasattr(x, name) for name in ("shape", "to_numpy"))
    first = x[0] if x else None
    if isinstance(first, list | tuple | Mapping) and len(first) == 1:
        first = batch_of(first) if _holds_array(first) else None
    return getattr(first, "ndim", 0) == 2


def _holds_array(batch: Any) -> bool:
    (one,) = batch.values() if isinstance(batch, Mapping) else batch
    return hasattr(one, "dtype")


def _as_rows(x: Any) -> torch.Tensor:
    """Rows in any form as one tensor.

    Raises:
        ValueError: they can't be one.
    """
    x = x.to_numpy() if hasattr(x, "to_numpy") else x
    if isinstance(x, np.ndarray):  # torch reads neither foreign bytes nor backwards
        x = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("="))
    try:
        if isinstance(x, Mapping):
            raise TypeError("a mapping")
        if isinstance(x, list | tuple) and any(isinstance(row, torch.Tensor) for row in x):
            return torch.stack([as_tensor(row) for row in x])
        return as_tensor(x)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"x must be rows of floats [N, D] (got {error})") from None


class ResidualQuantizerConfig(PretrainedConfig):
    """The sizes of a residual quantizer.

    Args:
        levels: number of codebooks, which is the number of codes in a SID (L).
        codes: number of codewords per level (K).
        seed: seed of all random choices in `fit`.
        input_dim: width of the embeddings (D); `fit` sets it.
    """

    def __init__(
        self,
        levels: int = 4,
        codes: int = 64,
        seed: int = 0,
        input_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.levels, self.codes, self.seed, self.input_dim = levels, codes, seed, input_dim
        check_settings(self, _RULES)
        super().__init__(**kwargs)


class ResidualQuantizer(PreTrainedModel):
    """Base of RQVAE and RQKMeans: a Hugging Face model whose weights are codebooks.

    Give a config or its fields: `RQVAE(config)` or `RQVAE(levels=4, codes=64)`. A subclass defines
    how to `fit`, into which space items are embedded, and how codes turn back into embeddings.

    `codebooks` is float32 [L, K, D'], in the space that `embed` maps to. All weights and buffers
    are saved, and embedding runs in float64, so an item has the same codes after a reload and in
    any batch.
    """

    config_class: Any = ResidualQuantizerConfig
    base_model_prefix = ""
    main_input_name = "x"
    codebooks: torch.nn.Parameter
    streams = False  # whether `fit` takes an iterable of batches

    def __init__(self, config: ResidualQuantizerConfig | None = None, **fields: Any) -> None:
        if config is not None and fields:
            raise ValueError(
                f"{type(self).__name__}: give a config or its fields, not both (got both)"
            )
        defaults = self.config_class()
        if config is not None:
            kind = type(defaults).__name__
            check_kind(f"{type(self).__name__}: config", config, type(defaults), f"a {kind}")
        unknown = [name for name in fields if not hasattr(defaults, name)]
        if unknown:
            raise ValueError(
                f"{type(self).__name__}: fields must be settings of {type(defaults).__name__} "
                f"(got {unknown[0]!r})"
            )
        super().__init__(config if config is not None else self.config_class(**fields))
        if self.config.input_dim is not None:
            self._build(self.config.input_dim)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Does nothing: `fit` sets every weight, and transformers' own initialisation would
        overwrite loaded weights."""

    def _build(self, input_dim: int) -> None:
        """Create the weights for embeddings of this width; the codebooks are NaN until `fit`."""
        raise NotImplementedError

    def _fit(self, source: Source, progress: bool) -> None:
        """Set the weights from a source of embeddings."""
        raise NotImplementedError

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        """Maps embeddings float64 [n, D] to the codebooks' space, float64 [n, D']."""
        raise NotImplementedError

    def _unembed(self, z: torch.Tensor) -> torch.Tensor:
        """Maps vectors float64 [n, D'] of the codebooks' space to embeddings float64 [n, D]."""
        raise NotImplementedError

    def _new_codebooks(self, dim: int) -> torch.nn.Parameter:
        shape = (self.config.levels, self.config.codes, dim)
        return torch.nn.Parameter(torch.full(shape, torch.nan, dtype=torch.float32, device="cpu"))

    def fit(self, x: Any, progress: bool = False, distributed: bool = False) -> Self:
        """Learn the codebooks from a catalogue; each call starts from nothing.

        Args:
            x: float [N, D], N >= 1, torch or numpy; the fit runs on its device. N may be below
                K (some codes then stay unused), and rows may repeat; a list of rows will do. A
                numpy memory map is read batch by batch. RQKMeans also takes an iterable of batches
                [n, D] that can be read several times (a DataLoader, also of a TensorDataset), or a
                function that returns a new iterator of batches.
            progress: show a progress bar.
            distributed: whether x is only this process's share of the rows, in torch.distributed's
                default group and in rank order. Every process then gets the codebooks that one
                process would get from all rows, up to rounding; but mini-batches are cut, and
                Sinkhorn balances, within the rows of each process.

        Returns:
            self. On the CPU, the same seed, x and number of threads give the same codes.

        Raises:
            ValueError: x is not a finite float [N, D] with N, D >= 1.
        """
        source = self._source(x, distributed)
        self.config.input_dim = source.dim
        # fork_rng restores the caller's random state afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self._build(source.dim)
            torch.nn.Module.to(self, source.device)
            with torch.enable_grad():
                self._fit(source, progress)
        return self.eval()

    def _source(self, x: Any, sharded: bool) -> Source:
        if _is_batches(x):
            if not self.streams:
                raise ValueError(
                    f"{type(self).__name__}.fit: x must be an array or a memory map (got batches)"
                )
        elif not isinstance(x, np.memmap):
            x = self._checked(x, "fit").float()
        return open_source(x, sharded)

    @torch.no_grad()
    def embed(self, x: Any) -> torch.Tensor:
        """Map embeddings float [N, D] to the codebooks' space, float32 [N, D'], on the quantizer's
        device."""
        x = self._fitted("embed")._checked(x, "embed").to(self.codebooks.device)
        if x.shape[1] != self.config.input_dim:
            raise ValueError(
                f"{type(self).__name__}.embed: x must have {self.config.input_dim} columns "
                f"(got {x.shape[1]})"
            )
        return torch.cat([self._embed(rows.double()).float() for rows in x.split(_ENCODE_ROWS)])

    def encode(self, x: Any, beams: int = 1) -> torch.Tensor:
        """Encode embeddings float [N, D] as codes int64 [N, L]. A numpy memory map is read piece by
        piece, and batches as `fit` takes them are encoded in their order.

        With one beam, each level takes the nearest codeword (`ops.residual_codes`, which is
        exact). More beams (`ops.beam_lookup`) are slower and leave a smaller error.
        """
        books = self._fitted("encode").codebooks.detach().float()
        if x is None or isinstance(x, str | Mapping):
            raise ValueError(
                f"{type(self).__name__}.encode: x must be rows of floats [N, D] "
                f"(got {type(x).__name__})"
            )
        if _is_batches(x):
            batches = x() if callable(x) else x
            return torch.cat([self.encode(batch_of(batch), beams) for batch in batches])
        if isinstance(x, np.memmap):
            starts = range(0, len(x), _ENCODE_ROWS)
            return torch.cat([self.encode(rows_of(x, at, _ENCODE_ROWS), beams) for at in starts])
        if beams == 1:
            return residual_codes(self.embed(x), books)
        return beam_lookup(self.embed(x), books, beams)[0]

    @torch.no_grad()
    def decode(self, codes: Any) -> torch.Tensor:
        """Decode codes int [N, L] to the embeddings they stand for, float32 [N, D].

        Raises:
            ValueError: the shape is wrong, or a code is outside [0, K).
        """
        name, book = type(self).__name__, self._fitted("decode").codebooks
        codes = as_integers(f"{name}.decode: codes", codes).to(book.device).long()
        if codes.ndim != 2 or codes.shape[1] != book.shape[0]:
            raise ValueError(
                f"{name}.decode: codes must have shape [N, {book.shape[0]}] "
                f"(got {tuple(codes.shape)})"
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < book.shape[1]:
            raise ValueError(
                f"{name}.decode: codes must lie in [0, {book.shape[1]}) "
                f"(got [{int(codes.min())}, {int(codes.max())}])"
            )
        levels = torch.arange(book.shape[0], device=book.device)
        z = book.double()[levels, codes].sum(1)  # [N, L, D'] -> [N, D']
        return self._unembed(z).float()

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the model's type and all weights. Quantizers with equal fingerprints
        give equal codes."""
        digest = hashlib.sha256(self.config.model_type.encode())
        for name, value in sorted(self._fitted("fingerprint").state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().tobytes())
        return digest.hexdigest()

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, **kwargs: Any
    ) -> None:
        """Write config.json and model.safetensors, both or none of them; other files in the
        directory stay."""
        target = Path(save_directory)
        self._fitted("save_pretrained")
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(target, kept=lambda name: True) as partial:
            super().save_pretrained(partial, **kwargs)

    @classmethod
    def from_pretrained(cls, directory: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """Load what `save_pretrained` wrote; the codes of every item are exactly the same.

        Raises:
            ValueError: weights are missing or unknown, so the codes would be wrong, or they are a
                pickle.
            OSError: the directory or a file in it does not exist.
        """
        kwargs.setdefault("use_safetensors", True)  # a pickle can run any code
        loaded: Any = super().from_pretrained(directory, output_loading_info=True, **kwargs)
        model, info = loaded
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info.get(problem):
                raise ValueError(
                    f"{cls.__name__}.from_pretrained: weights must match the configuration "
                    f"(got {problem.replace('_', ' ')} {sorted(map(str, info[problem]))})"
                )
        return model

    def _fitted(self, op: str) -> Self:
        if not hasattr(self, "codebooks"):
            raise ValueError(
                f"{type(self).__name__}.{op}: the quantizer must be fitted or loaded first"
            )
        return self

    def _checked(self, x: Any, op: str) -> torch.Tensor:
        try:
            x = rows_of(x, 0, len(x)) if isinstance(x, np.memmap) else _as_rows(x).detach()
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}.{op}: {error}") from None
        if x.ndim != 2 or not x.is_floating_point() or x.layout != torch.strided:
            layout = "" if x.layout == torch.strided else f", {x.layout}"
            raise ValueError(
                f"{type(self).__name__}.{op}: x must be a float tensor [N, D] "
                f"(got {x.dtype}, shape {tuple(x.shape)}{layout})"
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{type(self).__name__}.{op}: x must be finite (got NaN or infinity)")
        return x
