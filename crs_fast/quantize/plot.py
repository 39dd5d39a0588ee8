"""A picture of a quantized catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def plot_report(codes: torch.Tensor, report: dict[str, Any], path: str | Path) -> None:
    """Draw how often codes are used, how many items collide and which prefixes neighbours share.

    Args:
        codes: int64 [N, L], as encoded.
        report: what `quantization_report` returned.
        path: where the PNG is written.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    usage_plot, collision_plot, prefix_plot = figure.subplots(1, 3)
    for level, level_codes in enumerate(codes.T):
        counts = torch.bincount(level_codes, minlength=report["codes"])
        counts = counts.sort(descending=True).values
        label = f"level {level + 1}: perplexity {report['perplexity'][level]:.0f}"
        usage_plot.plot(range(1, len(counts) + 1), counts.tolist(), label=label)
    usage_plot.axhline(len(codes) / report["codes"], color="grey", linewidth=0.8, linestyle=":")
    usage_plot.set(title="Items per code", xlabel="code, most used first", ylabel="items")
    usage_plot.legend(fontsize="small")

    _, buckets = torch.unique(codes, dim=0, return_counts=True)
    sizes, items = torch.unique(buckets, return_counts=True)
    collision_plot.bar(sizes.tolist(), (sizes * items).tolist())
    before, after = report["collision_rate"], report["collision_rate_after"]
    title = f"Collisions: {100 * before:.1f} % before, {100 * after:.1f} % after"
    collision_plot.set(title=title, xlabel="items on one SID", ylabel="items", yscale="log")

    shared = report["shared_prefix"]
    levels = range(1, len(shared["nearest"]) + 1)
    prefix_plot.plot(levels, shared["nearest"], marker="o", label="nearest neighbour")
    prefix_plot.plot(levels, shared["chance"], marker="o", label="random item")
    title = "Pairs that share a prefix"
    prefix_plot.set(title=title, xlabel="length of the prefix", ylabel="share of items")
    prefix_plot.set_xticks(list(levels))
    prefix_plot.set_ylim(0, 1)
    prefix_plot.legend(fontsize="small")
    figure.savefig(path, dpi=120, format="png")
