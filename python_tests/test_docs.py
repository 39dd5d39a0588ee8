"""Every Python block of the README and of docs/ runs, each page from top to bottom."""

import re
from pathlib import Path

import pytest
import torch

import crs_fast
from crs_fast.crs.checkpoint import save_bundle
from python_tests.crs.tiny_system import ITEMS, TEXTS, system

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the pages take for given: a model, a catalogue, ids of items, a trained directory."""
    from crs_fast.crs.backbones import tiny_backbone

    trained, tokenizer, trie, vocab, control, _ = system()
    save_bundle(tmp_path / "model_directory", (trained, tokenizer), trie, vocab, control, ITEMS)
    monkeypatch.chdir(tmp_path)
    model, tokenizer = tiny_backbone(TEXTS, hidden_size=32, layers=2, heads=2, vocab_size=300)
    generator = torch.Generator().manual_seed(0)
    sids = torch.randint(64, (80, 4), generator=generator)
    item_ids = [f"film {number}" for number in range(80)]
    vocab = crs_fast.SidVocab.extend(tokenizer, model, levels=4, codes=64)
    return {
        "crs_fast": crs_fast,
        "model": model,
        "tokenizer": tokenizer,
        "sids": sids,
        "item_ids": item_ids,
        "trie": crs_fast.SidTrie.from_sids(sids, item_ids),
        "vocab": vocab,
        "already_named": item_ids[:3],
        "comedy_ids": item_ids[10:30],
        "new_sids": [[1, 2, 3, 4]],
        "new_ids": ["film 80"],
        **{f"ids_of_level_{level}": ids for level, ids in enumerate(vocab.token_ids)},
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run(page, names):
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        exec(compile(block, str(page), "exec"), names)
    if page == ROOT / "README.md":
        tokens = names["tokens"][:, names["prompt_length"] :]
        found = crs_fast.find_items(tokens, names["trie"], names["vocab"])
        assert all(named for named in found)
        assert not set(names["out"].items[0]) & set(names["already_named"])
        assert names["turn"].mode in ("chat", "rec")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
