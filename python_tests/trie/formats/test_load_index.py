"""Index files of other projects: each format in its exact shape, read and written again."""

import gzip
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import crs_fast
from crs_fast.trie import SidTrie, SidVocab
from python_tests.helpers import tiny_model
from python_tests.trie.formats import files
from python_tests.trie.formats.files import SIDS, names, tokenizer_of

NUMBERED = dict(enumerate(SIDS))


def catalogue(index):
    """Item -> SID, in the words of the trie."""
    ids = index.trie.item_ids.tolist()
    return dict(zip(ids, index.trie.sids().tolist(), strict=True))


READ = {
    "index.json": files.index_json,
    "info.txt": files.info_txt,
    "sid2pid.json": files.sid2pid_json,
    "sid2iid.json": lambda path: files.sid2pid_json(path, "iid"),
    "sid2pid_v2.json": lambda path: files.sid2pid_json(path, dotted=True),
    "sids.npy": files.npy,
    "sids_u2.npy": lambda path: files.npy(path, dtype=np.uint16),
    "sid": lambda path: files.generation(path, "v1", range(6), whole=range(6)).parent,
    "csv": lambda path: files.generation(path, "v1", range(6), whole=range(6), kind="csv"),
}


@pytest.mark.parametrize("name", READ)
def test_every_format_gives_the_same_catalogue(name, tmp_path):
    index = crs_fast.load_index(READ[name](tmp_path / name))
    assert catalogue(index) == NUMBERED
    assert sorted(index.trie.items([[2, 1, 3]])[0]) == [2, 5]
    assert index.vocab is None
    trie, vocab, tokens = index
    assert (trie, vocab, tokens) == (index.trie, index.vocab, index.tokens)


@pytest.mark.parametrize("name", ["index.json", "sid2pid.json", "info.txt"])
def test_packed_by_gzip(name, tmp_path):
    plain = READ[name](tmp_path / name)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert catalogue(crs_fast.load_index(packed)) == NUMBERED


@pytest.mark.parametrize("levels", [3, 4])
def test_flashrec_catalogue(levels, tmp_path):
    index = crs_fast.load_index(files.flashrec_json(tmp_path / "sid2pid_beamrec.json", levels))
    assert catalogue(index) == {",".join(map(str, sid)): sid for sid in SIDS}
    assert index.tokens[2][3] == "<s_c_3>"


def test_lc_rec_tokens_and_a_tokenizer_that_has_only_the_used_ones(tmp_path):
    """LC-Rec's get_new_tokens adds the tokens that items carry, and no others."""
    path = files.index_json(tmp_path / "index.json")
    used = sorted({token for sid in SIDS for token in files.tokens_of(sid)})
    tokenizer = tokenizer_of(used)
    index = crs_fast.load_index(path, tokenizer)
    assert index.tokens == names("")
    assert index.vocab.code_tokens().tolist() == sorted(tokenizer.convert_tokens_to_ids(used))
    assert index.vocab.token_ids[0][1] == -1  # <a_1>: no item carries it, the tokenizer lacks it
    assert (index.vocab.begin, index.vocab.end) == (None, None)
    assert index.vocab.eos == tokenizer.eos_token_id
    text = "".join(files.tokens_of(SIDS[3]))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert index.trie.items(index.vocab.decode([ids])) == [[3]]


@pytest.mark.parametrize("name", ["index.json", "sid2pid.json", "sids.npy", "sid"])
def test_tokens_that_no_item_carries_are_known(name, tmp_path):
    """Free text must not hold them, also those above the highest code of the catalogue."""
    prefix = "s_" if name == "sid2pid.json" else ""
    held = [*(token for level in names(prefix) for token in level), f"<{prefix}b_4>"]
    frame = ["<|sid_begin|>", "<|sid_end|>"] if prefix else ["<BOI>", "<EOI>"]
    tokenizer = tokenizer_of([*held, *frame])
    vocab = crs_fast.load_index(READ[name](tmp_path / name), tokenizer).vocab
    assert vocab.code_tokens().tolist() == sorted(tokenizer.convert_tokens_to_ids(held))
    assert [vocab.begin, vocab.end] == tokenizer.convert_tokens_to_ids(frame)


@pytest.mark.parametrize("name", ["index.json", "info.txt", "sid2pid.json", "sids.npy"])
def test_a_model_that_does_not_know_the_catalogue_gets_its_tokens(name, tmp_path):
    """Those of the catalogue's codes, and two that frame a SID; only where some are lacking."""
    prefix = "s_" if name == "sid2pid.json" else ""
    path, tokenizer = READ[name](tmp_path / name), tokenizer_of(["<a_3>"])
    model = tiny_model("llama", len(tokenizer))
    index = crs_fast.load_index(path, tokenizer, model=model)
    used = sorted({token for sid in SIDS for token in files.tokens_of(sid, prefix)})
    frame = ["<|sid_begin|>", "<|sid_end|>"] if prefix else ["<BOI>", "<EOI>"]
    ids = tokenizer.convert_tokens_to_ids([*used, *frame])
    assert sorted({*ids, *range(5)}) == list(range(len(tokenizer)))
    assert len(model.get_input_embeddings().weight) == len(tokenizer)
    assert index.vocab.code_tokens().tolist() == sorted(ids[:-2])
    assert [index.vocab.begin, index.vocab.end] == ids[-2:]
    again = crs_fast.load_index(path, tokenizer, model=model)
    assert torch.equal(again.vocab.token_ids[0], index.vocab.token_ids[0])
    assert len(model.get_input_embeddings().weight) == len(tokenizer)
    text = tokenizer(f"a film {frame[0]}", return_tensors="pt").input_ids
    out = crs_fast.recommend(model, text, trie=index.trie, vocab=index.vocab, num_beams=9)
    assert sorted(out.items[0]) == sorted(index.trie.item_ids.tolist())


def test_bare_numbers_of_a_catalogue_without_code_0(tmp_path):
    """The names are told by a code that an item carries: a tokenizer may have no other tokens."""
    np.save(tmp_path / "sids.npy", np.array([[14, 0], [17, 2]]))
    tokenizer = tokenizer_of(["<s_a_14>", "<s_a_17>", "<s_b_0>", "<s_b_2>"])
    index = crs_fast.load_index(tmp_path / "sids.npy", tokenizer)
    assert index.vocab.encode([[17, 2]]).tolist() == [[5, 7]]
    new = tokenizer_of([])
    crs_fast.load_index(tmp_path / "sids.npy", new, model=tiny_model("llama", len(new)))
    assert crs_fast.load_index(tmp_path / "sids.npy", new).tokens[0][14] == "<a_14>"
    SidTrie.from_sids([[1, 2]]).remove([0]).save(tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="code tokens such as '<a_0>'"):
        crs_fast.load_index(tmp_path / "empty.safetensors", tokenizer_of([]))


def test_a_new_lowest_code_changes_no_family(tmp_path):
    """The catalogue has a code below those that the tokenizer knows: it joins their family."""
    np.save(tmp_path / "sids.npy", np.array([[9, 0], [14, 2]]))
    tokenizer = tokenizer_of(["<s_a_14>", "<s_b_0>", "<s_b_2>"])
    model = tiny_model("llama", len(tokenizer))
    index = crs_fast.load_index(tmp_path / "sids.npy", tokenizer, model=model)
    assert [index.tokens[0][code] for code in (9, 14)] == ["<s_a_9>", "<s_a_14>"]


def test_a_trained_tokenizer_gets_no_tokens(tmp_path):
    """Also not those that frame a SID: its model has learned to do without."""
    tokenizer = tokenizer_of(sum(names(""), []))  # noqa: RUF017
    model = tiny_model("llama", len(tokenizer))
    index = crs_fast.load_index(files.index_json(tmp_path / "index.json"), tokenizer, model=model)
    assert (index.vocab.begin, index.vocab.end) == (None, None)
    assert len(tokenizer) == len(model.get_input_embeddings().weight) == 16


def test_a_model_needs_its_tokenizer(tmp_path):
    path = files.index_json(tmp_path / "index.json")
    with pytest.raises(ValueError, match="load_index: tokenizer must be given beside model"):
        crs_fast.load_index(path, model=tiny_model("llama", 16))


def test_tokens_without_numbers_are_ranked(tmp_path):
    path = tmp_path / "index.json"
    index = {"x": ["<red>", "<tall>"], "y": ["<blue>"], "z": ["<red>", "<w_01>"]}
    path.write_text(json.dumps(index))
    index = crs_fast.load_index(path, tokenizer_of(["<red>", "<blue>", "<tall>", "<w_01>"]))
    assert index.tokens == [["<blue>", "<red>"], ["<tall>", "<w_01>"]]
    assert catalogue(index) == {"x": [1, 0], "y": [0, -1], "z": [1, 1]}
    assert crs_fast.SidTrie.vocabulary(index.trie, index.vocab) is index.vocab


def test_nvidia_catalogue_holds_token_ids(tmp_path):
    tokenizer = tokenizer_of([t for level in names("") for t in level])
    ids = [tokenizer.convert_tokens_to_ids(files.tokens_of(sid)) for sid in SIDS]
    path = files.jsonl(tmp_path / "catalog.jsonl", ids)
    for index in (crs_fast.load_index(path), crs_fast.load_index(path, tokenizer)):
        assert catalogue(index) == {f"film {item}": row for item, row in enumerate(ids)}
        assert index.trie.items(index.vocab.decode([ids[3]])) == [["film 3"]]
        assert index.tokens is None
    assert index.vocab.eos == tokenizer.eos_token_id
    one = tmp_path / "one.json"
    one.write_text(path.read_text().splitlines()[0])
    assert crs_fast.load_index(one).trie.num_items == 1


def test_grid_tensors_stand_the_other_way(tmp_path):
    """GRID keeps (num_hierarchies, num_embeddings)."""
    path = files.npy(tmp_path / "sids.npy", grid=True)
    assert catalogue(crs_fast.load_index(path, format="grid")) == NUMBERED
    with pytest.raises(ValueError, match=r"\(got \(3, 6\), more levels.*say format='grid'"):
        crs_fast.load_index(path)


def test_safetensors(tmp_path):
    path = tmp_path / "sids.safetensors"
    save_file({"whatever": torch.tensor(SIDS, dtype=torch.int16)}, path)
    assert catalogue(crs_fast.load_index(path)) == NUMBERED
    ids = torch.tensor([40, 41, 42, 43, 44, 45])
    save_file({"sids": torch.tensor(SIDS), "item_ids": ids, "more": ids + 1}, path)
    assert list(catalogue(crs_fast.load_index(path))) == [44, 40, 41, 42, 45, 43]
    trie = SidTrie.from_sids(SIDS, list("abcdef"))
    trie.save(path)
    assert catalogue(crs_fast.load_index(path)) == dict(zip("abcdef", SIDS, strict=True))


def test_torch_easy_rec_generations(tmp_path):
    """A later generation holds the whole catalogue; its delta alone needs the one before."""
    files.generation(tmp_path, "v1", range(4), whole=range(4))
    second = files.generation(tmp_path, "v2", range(4, 6), whole=range(6), since="v1")
    assert catalogue(crs_fast.load_index(second)) == NUMBERED
    third = files.generation(tmp_path / "deltas", "v2", range(4, 5), since="v1")
    files.generation(tmp_path / "deltas", "v1", range(4), whole=range(4))
    fourth = files.generation(tmp_path / "deltas", "v3", range(5, 6), since="v2")
    assert catalogue(crs_fast.load_index(third)) == dict(enumerate(SIDS[:5]))
    assert catalogue(crs_fast.load_index(fourth)) == NUMBERED
    with pytest.raises(ValueError, match=r"several generations; name one of \['v1', 'v2'\]"):
        crs_fast.load_index(tmp_path)


WRITTEN = {
    "out.json": dict(format="index.json"),
    "auto.json": {},
    "out.txt": dict(titles=dict(enumerate(files.TITLES))),
    "sid2pid.json": dict(format="sid2pid"),
    "out.npy": {},
    "out.safetensors": {},
    "grid.npy": dict(format="grid"),
    "generation": {},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_and_read_again(name, tmp_path):
    index = crs_fast.load_index(files.index_json(tmp_path / "index.json"))
    index.save(tmp_path / name, **WRITTEN[name])
    again = crs_fast.load_index(
        tmp_path / name, format="grid" if name.startswith("grid") else "auto"
    )
    assert catalogue(again) == NUMBERED
    assert {p.name for p in tmp_path.iterdir()} == {"index.json", name}
    if name.startswith("generation"):
        import pyarrow.parquet

        groups = pyarrow.parquet.read_table(tmp_path / name / "sid_to_items").to_pylist()
        assert sum(len(row["itemids"]) for row in groups) == 6
        assert {tuple(row["offset_codebook"]) for row in groups} >= {(2, 5, 11)}


def test_write_token_ids_and_flashrec(tmp_path):
    tokenizer = tokenizer_of([t for level in names("") for t in level])
    index = crs_fast.load_index(files.index_json(tmp_path / "index.json"), tokenizer)
    index.save(tmp_path / "catalog.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "catalog.jsonl").read_text().splitlines()]
    expected = tokenizer.convert_tokens_to_ids(files.tokens_of(SIDS[3]))
    assert next(row for row in rows if row["item_id"] == 3)["token_ids"] == expected
    index.save(tmp_path / "flashrec.json", "flashrec")
    assert (tmp_path / "flashrec.json").read_text() == (
        files.flashrec_json(tmp_path / "theirs.json").read_text()
    )
    assert SidVocab(**index.vocab.to_dict()).sizes == index.vocab.sizes


@pytest.mark.data
def test_minionerec_industrial(data_root):
    """3,686 items on 3,670 SIDs; 31 items share one."""
    stem = str(data_root / "minionerec_industrial" / "Industrial_and_Scientific.")
    index, info = (crs_fast.load_index(stem + name) for name in ("index.json.gz", "info.txt.gz"))
    assert index.trie.num_items == 3686
    sids = [tuple(sid) for sid in index.trie.sids().tolist()]
    assert len(set(sids)) == 3670
    assert sum(len(of_sid) > 1 for of_sid in index.trie.items(sids)) == 31
    assert [len(codes) for codes in index.trie.level_codes] == [48, 256, 256]
    assert catalogue(info) == catalogue(index)
    assert index.trie.sids([0]).tolist() == [[236, 231, 226]]
