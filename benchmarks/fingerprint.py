"""A hash of the code that a benchmark case times, so that a figure can't outlive its kernel.

Comments, docstrings and blank lines are left out: rewording them changes no figure.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import tokenize
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Where the code of each timed part stands: beginnings of paths. The headers that a C++ or CUDA file
# includes count too. A part named like an op holds its csrc files and its folder in crs_fast/ops.
_TRIE = "crs_fast/ops/trie/"
SOURCES: dict[str, tuple[str, ...]] = {
    "trie_build": ("csrc/trie_build", _TRIE),
    "trie_insert": ("csrc/trie_change", "csrc/trie_build", _TRIE),
    "trie_remove": ("csrc/trie_change", _TRIE),
    "trie_rows": ("csrc/trie_rows", _TRIE),
    "trie_walk": ("csrc/trie_walk", _TRIE),
    "trie_mask": ("csrc/trie_mask", _TRIE),
    "trie_step": ("csrc/trie_step", _TRIE),
    "trie_logprob": (_TRIE,),
    "text_table": ("csrc/text_table", "crs_fast/ops/text_table/"),
    "number_find": ("csrc/number_find", "crs_fast/ops/number_find/"),
    "splice": ("csrc/splice", "crs_fast/ops/splice/"),
    "text_find": ("csrc/text_table", "crs_fast/ops/text_table/"),
    "residual_lookup": ("csrc/codebook", "crs_fast/ops/codebook/"),
    "beam_lookup": ("crs_fast/ops/codebook/",),
    "tree_attention": ("crs_fast/ops/tree_attention/",),
    "vocab_logsumexp": ("crs_fast/ops/vocab_logsumexp/",),
    "place_colliding": ("csrc/collisions", "crs_fast/ops/collisions/"),
    "trie": ("crs_fast/trie/sid_trie", "crs_fast/trie/item_ids"),
    "filter": ("crs_fast/trie/item_filter", "crs_fast/trie/item_ids"),
    "resolve_collisions": ("crs_fast/quantize/collisions",),
    "search": ("crs_fast/decode/",),
    "respond": ("crs_fast/crs/answer", "crs_fast/crs/reply", "crs_fast/crs/turn"),
    "quantize": ("crs_fast/quantize/",),
    "training": (
        "crs_fast/crs/training/packing",
        "crs_fast/crs/training/compiled",
        "crs_fast/crs/training/label_loss",
    ),
}
# What runs on one kind of device only is no part of the other kind's kernel.
_ONLY_CUDA = re.compile(r"\.cuh?$|/triton[^/]*\.py$")
_ONLY_CPU = re.compile(r"\.cpp$")
_NEVER = re.compile(r"/reference[^/]*\.py$|\.pyi$")
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
# A string is matched first, so that a // within one is no comment.
_CPP_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)


def fingerprint(parts: Iterable[str], device: str, root: Path = ROOT) -> str:
    """Twelve hexadecimal digits that change with the code of `parts` on "cpu" or "cuda".

    Raises:
        ValueError: a part of another name, or a beginning of a path in SOURCES that no file has.
    """
    digest = hashlib.sha256()
    for file in source_files(parts, device, root):
        digest.update(f"{file.relative_to(root).as_posix()}\n{_code(file)}\n".encode())
    return digest.hexdigest()[:12]


def source_files(parts: Iterable[str], device: str, root: Path = ROOT) -> list[Path]:
    """The files that a fingerprint is taken of, in order."""
    other = _ONLY_CPU if device == "cuda" else _ONLY_CUDA
    files: set[Path] = set()
    for part in parts:
        if part not in SOURCES:
            raise ValueError(f"fingerprint: parts must be among {sorted(SOURCES)} (got {part!r})")
        for start in SOURCES[part]:
            matching = _starting_with(root, start)
            if not matching:
                raise ValueError(f"fingerprint: SOURCES must name files (got {start!r})")
            files.update(f for f in matching if not other.search(f.as_posix()))
    waiting = [f for f in files if f.suffix in (".cpp", ".cu", ".cuh", ".h")]
    while waiting:
        file = waiting.pop()
        for name in _INCLUDE.findall(file.read_text()):
            # What a header declares may stand in a source file of its name (threads.cpp).
            for part in (file.parent / name, (file.parent / name).with_suffix(".cpp")):
                if part.is_file() and part not in files and not other.search(part.as_posix()):
                    files.add(part)
                    waiting.append(part)
    return sorted(files)


def _starting_with(root: Path, start: str) -> list[Path]:
    folder, _, name = start.rpartition("/")
    return [
        file
        for file in (root / folder).rglob(f"{name}*")
        if file.suffix in (".py", ".cpp", ".cu", ".cuh", ".h") and not _NEVER.search(str(file))
    ]


def _code(file: Path) -> str:
    text = file.read_text()
    text = _python_code(text) if file.suffix == ".py" else _CPP_COMMENT.sub(r"\1", text)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def _python_code(text: str) -> str:
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            for row in range(docstring.lineno - 1, docstring.end_lineno or docstring.lineno):
                lines[row] = ""
    return "\n".join(lines)
