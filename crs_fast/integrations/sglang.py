"""SGLang: the constraint as a custom logit processor.

    python -m sglang.launch_server --model-path FOLDER --enable-custom-logit-processor \
        --disable-overlap-schedule
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from os import PathLike
from typing import Any

import torch

from crs_fast.decode.row_mask import RowMask

from .served import ItemId, RequestFilters, RequestOptions, served_catalogue

_CATALOGUE = "sid_catalogue"
_INDEX = "sid_catalogue_index"


def _interface() -> type:
    """SGLang's base class, where SGLang is installed."""
    try:
        from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor
    except ImportError:
        return object
    base: type = CustomLogitProcessor
    return base


class SidLogitProcessor(_interface()):  # type: ignore[misc]
    """The trie inside SGLang. `request_fields` makes what a request must carry.

    A request's `custom_params` name the catalogue and hold the options of
    `crs_fast.integrations.served.RequestOptions`: `sid`, `sid_allow`, `sid_deny`, `sid_prefix`.
    Options of a wrong kind end the SID at once, since an error would stop the server for everybody.
    SGLang's own beam search (`beam_width`) does not call processors.

    Raises:
        RuntimeError: the overlap scheduler is on: it samples before the last token is known here.
    """

    def __call__(
        self, logits: torch.Tensor, custom_param_list: list[dict[str, Any] | None] | None = None
    ) -> torch.Tensor:
        """Mask `logits` [R, V] in place; one dictionary of parameters per row."""
        _check_schedule()
        requests: dict[tuple[str, str | None], list[tuple[int, dict[str, Any]]]] = {}
        for row, params in enumerate(custom_param_list or []):
            if params is not None and _CATALOGUE in params and params.get("sid") != "off":
                catalogue = params[_CATALOGUE], params.get(_INDEX)
                requests.setdefault(catalogue, []).append((row, params))
        for (model, index), rows in requests.items():
            mask, filters = _mask(model, index, str(logits.device))
            at = torch.tensor([row for row, _ in rows], device=logits.device)
            logits[at] = _masked(mask, filters, logits[at], [params for _, params in rows])
        return logits


def request_fields(
    catalogue: str | PathLike[str],
    index: str | PathLike[str] | None = None,
    *,
    allow: Sequence[ItemId] | None = None,
    deny: Sequence[ItemId] | None = None,
    prefix: int | None = None,
) -> dict[str, Any]:
    """The fields of a request that constrain it: `custom_logit_processor`, which `/generate` takes
    beside the text (OpenAI clients: in `extra_body`), and `custom_params`, which belongs into
    `sampling_params` (OpenAI clients: in `extra_body`).

    Args:
        catalogue, index: `model` and `index` of `served_catalogue`, as the server sees them.
        allow, deny: ids of the items that the answer may name alone, or may not.
        prefix: how many of the prompt's last tokens belong to a SID that has begun, 0 where it
            begins right after the prompt; None where the begin token says so.

    Raises:
        ValueError: options of a wrong kind.
    """
    given = {"sid_allow": allow, "sid_deny": deny, "sid_prefix": prefix}
    options = {name: value for name, value in given.items() if value is not None}
    RequestOptions.read(options)
    params = {_CATALOGUE: str(catalogue), **options}
    if index is not None:
        params[_INDEX] = str(index)
    return {"custom_logit_processor": SidLogitProcessor.to_str(), "custom_params": params}


def _masked(
    mask: RowMask,
    request_filters: RequestFilters,
    logits: torch.Tensor,
    params: list[dict[str, Any]],
) -> torch.Tensor:
    """The rows of one catalogue's requests."""
    windows, written, filters, refused = [], [], [], []
    for row, one in enumerate(params):
        request = one["__req__"]
        try:
            options = _options(one)
        except ValueError as error:
            warnings.warn(f"{error}; the request's answer is ended", stacklevel=2)
            options = RequestOptions()
            refused.append(row)
        options = options.opened(mask.begins_by_token)
        prompt, output = list(request.origin_input_ids), list(request.output_ids)
        windows.append(mask.window(prompt, output))
        written.append(options.written(len(output)))
        filters.append(request_filters.of(options))
    device = logits.device
    masked = mask.apply_(
        logits,
        torch.tensor(windows, device=device),
        torch.tensor(written, device=device),
        filters,
    )
    if refused:
        masked[refused] = -torch.inf
        masked[refused, mask.tokens.terminator] = 0.0
    return masked


def _options(params: Mapping[str, Any]) -> RequestOptions:
    ours = (_CATALOGUE, _INDEX)
    return RequestOptions.read({k: v for k, v in params.items() if k not in ours})


@lru_cache(maxsize=4)
def _mask(model: str, index: str | None, device: str) -> tuple[RowMask, RequestFilters]:
    mask = RowMask(*served_catalogue(model, index), device)
    return mask, RequestFilters(mask.trie)


@cache
def _check_schedule() -> None:
    """
    Raises:
        RuntimeError: the server overlaps sampling with the processing of the step before.
    """
    is_off = _overlap_is_off()
    if is_off is None:
        warnings.warn(
            "crs_fast.integrations.sglang can't read this SGLang's arguments: start the server "
            "with --disable-overlap-schedule, or items are wrong",
            stacklevel=2,
        )
    elif not is_off:
        raise RuntimeError(
            "crs_fast.integrations.sglang: the server must be started with "
            "--disable-overlap-schedule (got the overlap schedule, which samples before the last "
            "token is known)"
        )


def _overlap_is_off() -> bool | None:
    """What the server was started with; None where this version does not tell."""
    try:
        from sglang.srt.runtime_context import get_schedule

        return bool(get_schedule().disable_overlap_schedule)
    except Exception:
        pass  # an older version, or no server in this process
    try:
        from sglang.srt.server_args import get_global_server_args

        return bool(get_global_server_args().disable_overlap_schedule)
    except Exception:
        return None
