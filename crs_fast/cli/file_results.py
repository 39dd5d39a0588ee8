"""Prints what came of files that were done one by one (`encode`, `predict`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def print_results(results: Iterable[dict[str, Any]], what: str, done: str, out: str) -> int:
    """Print a line for each file as it is done, then the total.

    Args:
        results: see `crs_fast.crs.shards.do_shards`.
        what: the name of the count in each result.
        done: what was done to a file.
        out: the folder of all targets.

    Returns:
        The command's status.

    Raises:
        ValueError: some files failed. The others are done by then.
    """
    count, problems = 0, []
    for result in results:
        if "error" in result:
            problems.append(result)
            print(f"{result['source']}: {result['error']}")
            continue
        count += result[what]
        state = "was there already" if result["kept"] else done
        print(f"{result['target']}: {result[what]} {what}, {state}")
    if problems:
        first = problems[0]
        raise ValueError(
            f"{len(problems)} of the files could not be {done}, the first {first['source']}: "
            f"{first['error']}"
        )
    print(f"{count} {what} in {out}")
    return 0
