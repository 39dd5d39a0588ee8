"""Every Python block of the README and of docs/ runs, each page from top to bottom."""

import re
from pathlib import Path

import pytest
import torch

import crs_fast
from crs_fast.crs.checkpoint import save_bundle
from python_tests.crs.data.test_unicrs import DIALOGUES, replies_that_recommend, write
from python_tests.crs.tiny_system import ITEMS, TEXTS, system

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)[^)]*\)")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the pages take for given: a model, also as a folder that has its name on the hub, a
    catalogue, also as an index file, ids of items, a trained directory, and a folder of iEvaLM's
    rows."""
    from crs_fast.crs.backbones import tiny_backbone

    trained, tokenizer, trie, vocab, control, _ = system()
    save_bundle(tmp_path / "model_directory", (trained, tokenizer), trie, vocab, control, ITEMS)
    rows = [row for dialogue in DIALOGUES[:-1] for row in replies_that_recommend(dialogue)]
    write(tmp_path / "redial_eval", "test", rows)
    monkeypatch.chdir(tmp_path)
    model, tokenizer = tiny_backbone(TEXTS, hidden_size=32, layers=2, heads=2, vocab_size=300)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "HuggingFaceTB" / "SmolLM2-135M")
    generator = torch.Generator().manual_seed(0)
    sids = torch.randint(64, (80, 4), generator=generator)
    item_ids = [f"film {number}" for number in range(80)]
    vocab = crs_fast.SidVocab.extend(tokenizer, model, levels=4, codes=64)
    trie = crs_fast.SidTrie.from_sids(sids, item_ids)
    crs_fast.SidIndex(trie, None, None).save("index.json")
    return {
        "crs_fast": crs_fast,
        "model": model,
        "tokenizer": tokenizer,
        "sids": sids,
        "item_ids": item_ids,
        "trie": trie,
        "vocab": vocab,
        "already_named": item_ids[:3],
        "comedy_ids": item_ids[10:30],
        "new_sids": [[1, 2, 3, 4]],
        "new_ids": ["film 80"],
        **{f"ids_of_level_{level}": ids for level, ids in enumerate(vocab.token_ids)},
    }


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_run(page, names):
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        exec(compile(block, str(page), "exec"), names)
    if page == ROOT / "README.md":
        tokens = names["tokens"][:, names["prompt_length"] :]
        found = crs_fast.find_items(tokens, names["trie"], names["vocab"])
        assert all(named for named in found)
        assert not set(names["out"].items[0]) & set(names["already_named"])
        assert names["turn"].mode in ("chat", "rec")
    if page == ROOT / "docs" / "README.md":
        assert len(names["out"].items[0]) == 50


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    """Those that leave docs/ too, which the site's strict build does not see."""
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    shown = {line.rpartition(".")[2] for line in text.splitlines() if line.startswith("::: ")}
    homes = {crs_fast: dir(crs_fast), crs_fast.ops: crs_fast.ops.__all__}
    homes[crs_fast.quantize] = crs_fast.quantize.__all__
    public = {
        name for home, names in homes.items() for name in names if callable(getattr(home, name))
    }
    assert not public - shown


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
