"""torch's defaults (device, dtype) change nothing: every tensor that is created says where it
stands and of which kind it is."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "crs_fast"
ROOMS = ("ops", "trie", "decode", "quantize")
# Functions of torch that take the default device, and those that take the default dtype too.
DEVICE = {
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn",
    "randperm", "tensor", "zeros",
}  # fmt: skip
DTYPE = {"empty", "eye", "linspace", "ones", "rand", "randn", "zeros"}
FILES = sorted(p for room in ROOMS for p in (PACKAGE / room).rglob("*.py"))


def calls(path):
    """(line, function, what is missing) of each creation that leaves something to a default."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = node.func.value, node.func.attr
        if not (isinstance(owner, ast.Name) and owner.id == "torch" and name in DEVICE):
            continue
        given = {keyword.arg for keyword in node.keywords}
        if None in given:  # **kwargs
            continue
        for needed, names in (("device", DEVICE), ("dtype", DTYPE)):
            if name in names and needed not in given:
                yield node.lineno, f"torch.{name}", needed


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_tensor_says_device_and_dtype(path):
    assert list(calls(path)) == []
