"""A picture of a quantized catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def plot_report(codes: torch.Tensor, report: dict[str, Any], path: str | Path) -> None:
    """Draw how codes are used, how items collide and what neighbours share, as a PNG.

    Args:
        codes: int64 [N, L], as encoded.
        report: of `quantization_report`.
        path: where the picture goes.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    use, collide, near = figure.subplots(1, 3)
    for level, column in enumerate(codes.T):
        counts = torch.bincount(column, minlength=report["codes"]).sort(descending=True).values
        label = f"level {level + 1}: perplexity {report['perplexity'][level]:.0f}"
        use.plot(range(1, len(counts) + 1), counts.tolist(), label=label)
    use.axhline(len(codes) / report["codes"], color="grey", linewidth=0.8, linestyle=":")
    use.set(title="Items a code", xlabel="code, most used first", ylabel="items")
    use.legend(fontsize="small")

    _, buckets = torch.unique(codes, dim=0, return_counts=True)
    sizes, items = torch.unique(buckets, return_counts=True)
    collide.bar(sizes.tolist(), (sizes * items).tolist())
    before, after = report["collision_rate"], report["collision_rate_after"]
    title = f"Collisions: {100 * before:.1f} % before, {100 * after:.1f} % after"
    collide.set(title=title, xlabel="items on one SID", ylabel="items", yscale="log")

    shared = report["shared_prefix"]
    levels = range(1, len(shared["nearest"]) + 1)
    near.plot(levels, shared["nearest"], marker="o", label="nearest neighbour")
    near.plot(levels, shared["chance"], marker="o", label="random item")
    near.set(title="Pairs that share a prefix", xlabel="codes shared", ylabel="share of items")
    near.set_xticks(list(levels))
    near.set_ylim(0, 1)
    near.legend(fontsize="small")
    figure.savefig(path, dpi=120, format="png")
