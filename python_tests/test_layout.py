"""Rooms may import only what stands to their right, lazily or not."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import crs_fast

PACKAGE = Path(crs_fast.__file__).parent
MAY_IMPORT = {
    "_native": set(),
    "_arguments": set(),
    "_files": set(),
    "_text": set(),
    "ops": {"_native"},
    "trie": {"ops", "_arguments", "_files"},
    "quantize": {"ops", "_arguments", "_files", "_text"},
    "decode": {"trie", "ops", "_arguments"},
    "crs": {"decode", "trie", "quantize", "_arguments", "_files", "_text"},
    "serve": {"crs", "decode", "trie", "_files", "_text"},
    "integrations": {"crs", "decode", "trie", "_files"},
    "cli": {
        "serve",
        "integrations",
        "crs",
        "decode",
        "trie",
        "quantize",
        "ops",
        "_files",
        "_text",
        "_native",
    },
}
ANYONE = {"_version", "__init__"}


# Files of crs, each of which may import those of its own line and of the lines before.
CRS_ORDER = (
    ("data",),
    (
        "control_tokens",
        "text_tokens",
        "sequence",
        "title_sids",
        "shared_encoder",
        "item_encoder",
    ),
    ("manifest", "backbones", "chat_template", "model_card", "hub", "checkpoint"),
    ("shards", "catalogue_encoding"),
    ("model_directory",),
    ("sampling", "reply", "sequential_reply", "turn"),
    ("joined_beams", "text_neighbours"),
    ("conversation", "exposure", "catalogue_change", "catalogue_files", "reply_text"),
    ("answer",),
    ("recommender",),
    ("training",),
    ("evaluation",),
)


def imports(path: Path) -> set[tuple[str, ...]]:
    """What a file imports, at any depth of the code and for type checkers too: each module's or
    name's full path, in parts."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    package = parts[:-1]
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            modules |= {(*base, alias.name) for alias in node.names}
    return modules


def imported(path: Path) -> set[str]:
    """Rooms that a file imports."""
    return {m[1] for m in imports(path) if m[0] == "crs_fast" and len(m) > 1}


def module_graph() -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    """Every module of the package, and the modules of the package that it imports. A name that is
    no module of its own belongs to the package that it is imported from."""
    files = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        files[parts[:-1] if parts[-1] == "__init__" else parts] = path
    return {
        module: {
            target
            for name in imports(path)
            if (target := name if name in files else name[:-1]) in files and target != module
        }
        for module, path in files.items()
    }


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_point_one_way(room):
    files = [PACKAGE / f"{room}.py"] if room.startswith("_") else (PACKAGE / room).rglob("*.py")
    rooms = set(MAY_IMPORT) | ANYONE
    for path in files:
        found = imported(path) & rooms - {room} - ANYONE
        assert found <= MAY_IMPORT[room], f"{path} imports {found - MAY_IMPORT[room]}"


def test_lm_imports_nothing_of_the_search():
    lm = ("crs_fast", "decode", "lm")
    for module, targets in module_graph().items():
        if module[:3] == lm:
            assert not {t for t in targets if t[:2] == lm[:2] and t[:3] != lm}, module


def test_no_modules_import_each_other():
    sorter = TopologicalSorter(module_graph())
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(".".join(module) for module in error.args[1]))


def test_files_of_crs_import_those_before_them():
    place = {name: line for line, names in enumerate(CRS_ORDER) for name in names}
    graph = {m: targets for m, targets in module_graph().items() if m[1:2] == ("crs",) and m[2:]}
    assert {module[2] for module in graph} == place.keys()
    for module, targets in graph.items():
        for target in targets:
            if target[:2] == module[:2]:
                assert place[target[2]] <= place[module[2]], f"{module} imports {target}"


def test_the_library_knows_neither_benchmarks_nor_tests():
    for path in PACKAGE.rglob("*.py"):
        found = {name[0] for name in imports(path)} & {"benchmarks", "python_tests"}
        assert not found, f"{path} imports {found}"


def test_every_room_is_known():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert rooms == {room for room in MAY_IMPORT if not room.startswith("_")}


OPS = sorted(p.parent for p in (PACKAGE / "ops").glob("*/__init__.py"))
OP_FILES = {
    "__init__", "beam", "checks", "contents", "dispatch", "eager", "native", "nodes", "reference",
    "tensors", "triton", "triton_statistics",
}  # fmt: skip


@pytest.mark.parametrize("op", OPS, ids=lambda folder: folder.name)
def test_every_op_has_the_same_files(op):
    files = {path.stem for path in op.glob("*.py")}
    assert {"__init__", "reference"} <= files <= OP_FILES


@pytest.mark.parametrize("op", OPS, ids=lambda folder: folder.name)
def test_the_reference_imports_no_wrapper(op):
    """Nor any way into a kernel: an oracle that shares code with what it judges judges nothing."""
    modules = set()
    for node in ast.walk(ast.parse((op / "reference.py").read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add("." * node.level + (node.module or ""))
    ours = {name for name in modules if name.startswith((".", "crs_fast"))}
    assert ours <= {".tensors", ".nodes"}
    nodes = op / "nodes.py"
    if nodes.exists():
        tree = ast.walk(ast.parse(nodes.read_text()))
        assert {n.module for n in tree if isinstance(n, ast.ImportFrom) and n.level} == {"tensors"}


@pytest.mark.parametrize(
    "statement",
    ["import crs_fast; crs_fast.recommend; crs_fast.SidVocab", "from crs_fast import *"],
)
def test_import_needs_neither_transformers_nor_triton(statement):
    code = (
        f"import sys; {statement};"
        "assert not {'transformers', 'triton', 'sentence_transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def shown_to_type_checkers(path: Path) -> set[tuple[str | None, str]]:
    """(module, name) of each import under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {
        (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_type_checkers_see_every_public_name():
    """The imports under TYPE_CHECKING and the table of lazy names say the same."""
    shown = shown_to_type_checkers(PACKAGE / "__init__.py")
    lazy = {(module, name) for module, names in crs_fast._HOMES.items() for name in names}
    assert shown == lazy | {(None, room) for room in crs_fast._ROOMS}
    assert set(crs_fast.__all__) >= {name for _, name in lazy} - {"RQVAE", "RQKMeans"}


def test_type_checkers_see_every_public_name_of_crs():
    shown = shown_to_type_checkers(PACKAGE / "crs/__init__.py")
    lazy = {(module, name) for module, names in crs_fast.crs._HOMES.items() for name in names}
    assert shown == lazy
    assert crs_fast.crs.__all__ == sorted(name for _, name in lazy)


@pytest.mark.parametrize("module", [crs_fast, crs_fast.crs], ids=lambda m: m.__name__)
def test_public_names_exist_and_are_documented(module):
    for name in dir(crs_fast) if module is crs_fast else module.__all__:
        value = getattr(module, name)
        assert value is not None
        if callable(value):
            assert value.__doc__, name
