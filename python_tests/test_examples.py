"""Each example of docs/examples runs by its one command and is short."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import crs_fast

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))


def run(name, *arguments):
    """What an example prints."""
    path = str(ROOT / "docs" / "examples" / name)
    done = subprocess.run(
        [sys.executable, path, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40


def run_here(name):
    """Run an example in this process, which is quicker, for what it prints; its functions."""
    return runpy.run_path(str(ROOT / "docs" / "examples" / name), run_name="__main__")


@pytest.fixture
def small():
    """Two fifths of the SIDs that 5 x 5 x 5 codes can spell, their trie and tokens."""
    generator = torch.Generator().manual_seed(0)
    sids = torch.cartesian_prod(*[torch.arange(5)] * 3)
    sids = sids[torch.rand(len(sids), generator=generator) < 0.4]
    tokens = crs_fast.ops.token_tensors(torch.arange(5).expand(3, -1))
    return sids, crs_fast.SidTrie.from_sids(sids), tokens


def static_search(model, batch_size, beam_size, start_token, sids):
    """What STATIC's `sparse_transition_torch` computes, with sets of prefixes for its tables."""
    results = []
    for _ in range(batch_size):
        beams = [((), 0.0)]
        for level in range(sids.shape[1]):
            prefixes = {tuple(row) for row in sids[:, : level + 1].tolist()}
            candidates = []
            for prefix, score in beams:
                last = torch.tensor([[prefix[-1] if prefix else start_token]])
                logprobs = model(last)[0, 0].log_softmax(-1).tolist()
                following = [(*prefix, token) for token in range(len(logprobs))]
                candidates += [(p, score + logprobs[p[-1]]) for p in following if p in prefixes]
            beams = sorted(candidates, key=lambda beam: -beam[1])[:beam_size]
        results.append([list(prefix) for prefix, _ in beams])
    return results


@torch.inference_mode()
def test_static(small, capsys):
    sids, trie, tokens = small
    sparse_transition = run_here("static.py")["sparse_transition"]
    assert "20 items in 20 beams" in capsys.readouterr().out
    model = torch.nn.Embedding(5, 5)
    found = sparse_transition(model, 2, 6, 3, trie, tokens)
    assert found.tolist() == static_search(model, 2, 6, 3, sids)


def grid_check(codebooks, prefix):
    """What GRID's `_check_valid_prefix` computes."""
    same = codebooks[:, : prefix.shape[1]].unsqueeze(1) == prefix.unsqueeze(0)
    return same.all(dim=2).any(dim=0)


@pytest.fixture
def grid(capsys):
    functions = run_here("grid.py")
    assert capsys.readouterr().out.startswith("[True, True, False, False]")
    return functions


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_grid_prefixes(small, grid, depth):
    sids, trie, _ = small
    prefix = torch.cartesian_prod(*[torch.arange(5)] * depth).view(-1, depth)
    valid = grid["check_valid_prefix"](trie, prefix)
    assert valid.tolist() == grid_check(sids, prefix).tolist()
    assert 0 < valid.sum() < len(valid) or depth < 3


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_grid_pruning(small, grid, depth):
    """As in GRID's `_beam_search_one_step`, which checks every code behind every beam, also behind
    beams that no item begins with."""
    sids, trie, tokens = small
    ids = torch.cartesian_prod(*[torch.arange(5)] * max(depth, 1)).view(1, -1, max(depth, 1))
    rows = ids.shape[1] if depth else 4
    generated = ids if depth else None
    behind = ids[0].repeat_interleave(5, 0) if depth else torch.empty(4 * 5, 0, dtype=torch.int64)
    prefix = torch.cat([behind, torch.arange(5).repeat(rows)[:, None]], 1)
    logits = torch.randn(rows, 5, generator=torch.Generator().manual_seed(2))
    expected = logits.masked_fill(~grid_check(sids, prefix).view(rows, 5), -torch.inf)
    assert grid["prune"](trie, tokens, logits, generated).equal(expected)


@pytest.mark.data
def test_minionerec(data_root):
    """A popularity ranking reaches 0.089 at ten."""
    out = run("minionerec.py", data_root / "minionerec_industrial")
    recall = {int(k): float(share) for k, share in re.findall(r"recall@(\d+) ([0-9.]+)", out)}
    assert recall.keys() == {1, 10, 50}
    assert recall[10] > 0.1


def test_tiger():
    """A history's last item says the next one."""
    recall, named = re.search(r"recall@10 ([0-9.]+), rows .* (\d+)", run("tiger.py")).groups()
    assert float(recall) > 0.8
    assert int(named) == 1000


def test_grpo():
    """Where TRL is installed."""
    pytest.importorskip("trl")
    pytest.importorskip("datasets")
    first, last = re.search(
        r"reward ([0-9.]+) at first, ([0-9.]+) at last", run("grpo.py")
    ).groups()
    assert float(last) > float(first) + 0.3
