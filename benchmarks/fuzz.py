"""`python -m benchmarks.fuzz TARGET --seconds N`: fuzzing with atheris (`pip install atheris`).

Targets: trie, index, dialogues, http (`python_tests/fuzz/targets.py`). It begins from small files
that are right and from the kept corpus, `python_tests/fuzz/corpus/TARGET`, which CI replays. An
input that fails is written there: mend what it shows, and keep it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

CORPUS = Path(__file__).resolve().parents[1] / "python_tests" / "fuzz" / "corpus"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz one target for so many seconds, or until an input fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=["trie", "index", "dialogues", "http"])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0 takes another one each time")
    args = parser.parse_args(arguments)
    import atheris

    with atheris.instrument_imports(include=["crs_fast", "python_tests.fuzz"]):
        from python_tests.fuzz.files import seeds
        from python_tests.fuzz.targets import TARGETS

    kept = CORPUS / args.target
    kept.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{args.target}-"))  # libFuzzer ends by exit
    seed_folder = folder / "seeds"
    seed_folder.mkdir()
    for content in seeds(args.target, folder):
        (seed_folder / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
    options = [
        f"-max_total_time={args.seconds}",
        f"-seed={args.seed}",
        f"-artifact_prefix={kept}/",
        "-max_len=4096",
        "-rss_limit_mb=4096",
        "-timeout=60",
    ]
    atheris.Setup([sys.argv[0], *options, str(seed_folder), str(kept)], TARGETS[args.target])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
