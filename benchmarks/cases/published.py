"""The workloads on which other engines publish figures: FlashRec's and SGLang's."""

from __future__ import annotations

from functools import partial

import torch

from crs_fast.decode import recommend

from .beams import SEARCH, System, trees
from .case import Case, Methods

# FlashRec says "around 2,465" and nothing of the spread; ours are drawn evenly from this range.
SHORTEST, LONGEST = 1_965, 2_965


def flashrec(num_beams: int, batch: int, size: str, device: str) -> tuple[str, Methods]:
    """OneRec-1.7B's shape, 4 x 8,192 SIDs, 1.52 M items, prompts of unequal lengths."""
    of = System(
        size, device, batch=batch, prompt=LONGEST, beams=num_beams, levels=4, codes=8192,
        items=1_520_000, qwen3="1.7B",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    shortest = SHORTEST if of.full else 3
    lengths = torch.randint(shortest, of.prompt + 1, (of.batch,), generator=generator)
    places = torch.arange(of.prompt)
    of.mask = (places >= of.prompt - lengths[:, None]).to(of.ids)  # left padding
    _check_alone(of)
    return f"{of.workload}, lengths {lengths.tolist()}", trees(of, "level", device)


def _check_alone(of: System) -> None:
    """A request's items and scores don't depend on the requests beside it."""

    def answer(rows: slice) -> torch.Tensor:
        return recommend(
            of.model, of.ids[rows], of.mask[rows], trie=of.trie, vocab=of.vocab,
            num_beams=of.beams, normalize="level",
        ).scores  # fmt: skip

    together = answer(slice(None))
    # bfloat16 has three digits, and a score is a sum of a few.
    atol = 0.1 if of.ids.is_cuda else 1e-4
    torch.testing.assert_close(answer(slice(1)), together[:1], atol=atol, rtol=0.02)


def sglang(size: str, device: str) -> tuple[str, Methods]:
    """5,000 beams over three levels on Qwen3-0.6B's shape, here with a catalogue."""
    of = System(
        size, device, batch=1, prompt=512, beams=5000, levels=3, codes=8192, items=1_000_000
    )
    return of.workload, trees(of, "level", device)


# claimed requests per second, on an RTX 5090 in fp8: FlashRec, SGLang
_FLASHREC = {50: (28.1, 18.2), 128: (19.9, 13.2), 512: (8.2, 5.6), 1000: (4.6, 3.0)}


def _flashrec_case(num_beams: int, batch: int) -> Case:
    ours, sglangs = _FLASHREC[num_beams]
    return Case(
        f"flashrec_{num_beams}_batch_{batch}",
        partial(flashrec, num_beams, batch),
        SEARCH,
        ("cuda",),
        requests=batch,
        claims=f"FlashRec claims {ours} requests per second, and {sglangs} for SGLang."
        if batch > 1
        else "",
    )


CASES = [
    _flashrec_case(50, 8),
    Case(
        "sglang_5000",
        sglang,
        SEARCH,
        ("cuda",),
        requests=1,
        claims="SGLang claims p50 158 ms on one H200, without a constraint.",
    ),
    *(_flashrec_case(num_beams, 8) for num_beams in (128, 512, 1000)),
    *(_flashrec_case(num_beams, 1) for num_beams in _FLASHREC),
]
