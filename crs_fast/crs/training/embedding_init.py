"""Initialises the embedding rows of the new tokens, and freezes all other rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from crs_fast.crs.backbones import embedding_weights
from crs_fast.crs.control_tokens import ControlTokens, new_tokens
from crs_fast.trie import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOISE = 0.5  # for rows without items, as a share of the old rows' standard deviation


@torch.no_grad()
def init_sid_rows(
    model: PreTrainedModel,
    vocab: Vocabulary,
    control: ControlTokens,
    item_embeddings: torch.Tensor,
    sids: Any,
    seed: int = 0,
) -> None:
    """Start the new rows from the item embeddings, so that similar items have similar SID tokens in
    the language model too.

    The row of a code is mean + z * std of the old rows. Here z is a random projection, scaled to
    zero mean and unit variance, of the mean residual embedding of the items with this code;
    residuals are those of residual quantization. Rows of `<BOI>`, `<EOI>`, control tokens and
    unused codes are mean + noise. The input embedding and an untied head are changed in place.

    Args:
        item_embeddings: float [N, D]; row i belongs to the item with SID `sids[i]`.
        sids: int [N, L]; -1 pads shorter SIDs.

    Raises:
        ValueError: `item_embeddings` and `sids` have different N, or `sids` do not fit `vocab`.
    """
    codes = torch.as_tensor(sids, dtype=torch.int64)
    residual = torch.as_tensor(item_embeddings).detach().float().cpu().clone()  # [N, D]
    if residual.ndim != 2 or codes.ndim != 2 or len(residual) != len(codes):
        raise ValueError(
            "init_sid_rows: item_embeddings [N, D] and sids [N, L] must have the same N "
            f"(got {tuple(residual.shape)} and {tuple(codes.shape)})"
        )
    vocab.encode(codes)
    weights = embedding_weights(model)
    hidden = next(iter(weights.values())).shape[1]
    projection, generator = _projection(residual.shape[1], hidden, seed)
    tokens = new_tokens(vocab, control)
    z = {token: torch.randn(hidden, generator=generator) * NOISE for token in tokens}
    for level in range(codes.shape[1]):
        means, used = _code_means(residual, codes[:, level], vocab.sizes[level])
        residual -= torch.where(codes[:, level, None] >= 0, means[codes[:, level]], 0.0)
        rows = _standardise(means[used] @ projection)
        ids = vocab.token_ids[level][used].tolist()
        z.update(zip(ids, rows, strict=True))
    _write_rows(weights, tokens, torch.stack([z[token] for token in tokens]))


@torch.no_grad()
def init_word_rows(model: PreTrainedModel, embeddings: torch.Tensor, seed: int = 0) -> None:
    """Start the first rows of an untrained model from a random projection of a text encoder's
    embeddings of their words. With the same seed and encoder, `init_sid_rows` takes the same
    projection, so that words lie near the items that they describe. It changes the rows in place
    and keeps their mean and standard deviation.

    Args:
        embeddings: float [n, D]; row i belongs to token i.
    """
    for weight in embedding_weights(model).values():
        rows = weight[: len(embeddings)]
        projection, _ = _projection(embeddings.shape[1], weight.shape[1], seed)
        z = _standardise(embeddings.float().cpu() @ projection).to(weight.device)
        rows.copy_(rows.float().mean(0) + z * rows.float().std())


def _projection(dim: int, hidden: int, seed: int) -> tuple[torch.Tensor, torch.Generator]:
    """A random projection [D, H], and the generator that drew it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dim, hidden, generator=generator), generator


def _code_means(
    residual: torch.Tensor, codes: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean residual per code [K, D], and which codes are used, bool [K]."""
    coded = codes >= 0
    sums = torch.zeros(size, residual.shape[1]).index_add_(0, codes[coded], residual[coded])
    counts = torch.bincount(codes[coded], minlength=size)
    return sums / counts.clamp(min=1)[:, None], counts > 0


def _standardise(rows: torch.Tensor) -> torch.Tensor:
    if len(rows) < 2:
        return torch.zeros_like(rows)
    rows = rows - rows.mean(0)
    return rows / rows.std().clamp(min=1e-12)


def _write_rows(weights: dict[str, torch.nn.Parameter], tokens: list[int], z: torch.Tensor) -> None:
    for weight in weights.values():
        old = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        old[tokens] = False
        mean, std = weight[old].float().mean(0), weight[old].float().std()
        weight[tokens] = (mean + z.to(weight.device) * std).to(weight.dtype)


def trained_rows(model: Any) -> list[torch.nn.Parameter]:
    """The parameters that hold trained embedding rows: whole matrices, or PEFT's new rows."""
    whole = {id(weight) for weight in embedding_weights(model).values()}
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (id(parameter) in whole or "trainable_tokens" in name)
    ]


def freeze_old_rows(model: PreTrainedModel, tokens: list[int]) -> list[Any]:
    """Of the embedding (and an untied head), let only the rows of `tokens` take gradients; the rest
    of the model trains as before. Weight decay must be 0, since it would still move the other rows.

    Returns:
        Hooks; call `remove()` on each of them to undo this.
    """

    def gradient_hook() -> Callable[[torch.Tensor], torch.Tensor]:
        rows = torch.tensor(tokens, dtype=torch.int64)

        def keep_new(gradient: torch.Tensor) -> torch.Tensor:
            nonlocal rows
            # Copied by the first gradient alone, when the model is on the device that trains it:
            # a copy in each step would wait for the device.
            rows = rows.to(gradient.device)
            return torch.zeros_like(gradient).index_copy_(0, rows, gradient[rows])

        return keep_new

    weights = embedding_weights(model).values()
    return [weight.register_hook(gradient_hook()) for weight in weights]
