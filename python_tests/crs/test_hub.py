"""Directories that leave this machine: saved again, uploaded, loaded by name, and what servers and
people read in them."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from transformers import AutoTokenizer

from crs_fast.crs.checkpoint import save_bundle
from crs_fast.crs.recommender import Recommender

from .tiny_system import DIALOGUE, ITEMS, RECOMMENDER, system

MESSAGES = [{"role": "user", "content": "I like Film 1, any more?"}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model, tokenizer, trie, vocab, control, _ = system()
    path = tmp_path_factory.mktemp("hub") / "model"
    return save_bundle(path, (model, tokenizer), trie, vocab, control, ITEMS, quantizer="q1")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub in a folder."""

    class Api:
        def create_repo(self, repo_id, private=None, exist_ok=False):
            assert exist_ok
            (tmp_path / repo_id).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, *, repo_id, folder_path, ignore_patterns):
            Path(folder_path).rename(tmp_path / repo_id)
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(name, revision=None):
        if not (tmp_path / name).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"offline\nno {name}")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return tmp_path


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_saving_a_loaded_recommender_writes_the_same_files(saved, tmp_path):
    recommender = Recommender.from_pretrained(saved)
    again = recommender.save_pretrained(tmp_path / "again")
    assert files(again).keys() == files(saved).keys()
    for name in ("items.jsonl", "README.md", "chat_template.jinja"):
        assert (again / name).read_text() == (saved / name).read_text()
    other = Recommender.from_pretrained(again)
    assert other.bundle.quantizer == "q1"
    assert other.bundle.trie.sids().tolist() == recommender.bundle.trie.sids().tolist()
    for weight, same in zip(
        recommender.bundle.model.parameters(), other.bundle.model.parameters(), strict=True
    ):
        assert torch.equal(weight, same)
    recommender.save_pretrained(again)  # the directory may be its own


def test_to_the_hub_and_back(saved, hub):
    recommender = Recommender.from_pretrained(saved)
    address = recommender.push_to_hub("someone/recommender", private=True)
    assert address == "https://hub/someone/recommender/commit/1"
    back = Recommender.from_pretrained("someone/recommender")
    answer, expected = (r.respond(MESSAGES, mode="rec", num_items=3) for r in (back, recommender))
    assert answer == expected


def test_names_that_are_nowhere(hub):
    for name in ("nobody/nothing", "no_such_folder", "./no/such", "/no/such/folder", Path("a/b")):
        with pytest.raises(FileNotFoundError, match=rf"load_bundle: {name} must be a direct"):
            Recommender.from_pretrained(name)


def test_the_card_says_what_it_is(saved):
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: crs_fast\n")
    assert "| items | `items.jsonl`, 8 |" in card
    assert "`q1`" in card
    assert "gives the token ids that the model was trained on" in card


def test_the_chat_template_gives_our_token_ids(saved):
    recommender = Recommender.from_pretrained(saved)
    builder, tokenizer = recommender.bundle.builder, AutoTokenizer.from_pretrained(saved)
    texts = ["hi", "any year?", " two\nlines\r\n and ", "the 90s...", "ok", "(so) 1,000! ☂"]
    roles = ["user", "assistant", "assistant", "user", "user", "assistant"]
    for count in range(1, 7):
        messages = [
            {"role": role, "content": text, "items": []}
            for role, text in zip(roles[:count], texts, strict=False)
        ]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids == builder.context(recommender.turns(messages))
    # Items that were named stand in the text as their tokens.
    spoken = [
        {
            "role": "assistant" if turn.role == RECOMMENDER else "user",
            "content": "".join(
                piece if item is None else tokenizer.decode(builder.item(item))
                for piece, item in turn.pieces()
            ),
        }
        for turn in DIALOGUE.turns
    ]
    ids = tokenizer.apply_chat_template(spoken, add_generation_prompt=True, return_dict=False)
    assert ids == builder.context(DIALOGUE.turns)
    with pytest.raises(Exception, match="roles of messages must be 'user' and 'assistant'"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}])


def test_a_tokenizer_that_tokenizes_whole_texts_otherwise(tmp_path):
    """This one puts a space before every text. The card says that the ids are not ours."""
    from tokenizers import pre_tokenizers

    model, tokenizer, trie, vocab, control, _ = system()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    path = save_bundle(tmp_path / "model", (model, tokenizer), trie, vocab, control, ITEMS)
    assert "not the token ids of training" in (path / "README.md").read_text()
