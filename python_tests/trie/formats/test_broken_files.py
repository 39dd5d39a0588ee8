"""Broken, partial, colliding, huge and dangerous index files: one clear error each."""

import gzip
import json
import pickle

import numpy as np
import pytest
import torch

import crs_fast
from crs_fast.trie.formats import texts
from python_tests.trie.formats import files
from python_tests.trie.formats.files import tokenizer_of

TEXTS = {
    "index.json": [
        ('{"0": ["<a_1>"], "1": ["<a', "no whole JSON file; it may be cut off"),
        ("[1, 2]", "must hold a JSON object"),
        ("{}", "at least one item"),
        ('{"0": ["<a_1>"], "0": ["<a_2>"]}', "every key once (got '0' twice)"),
        ('{"0": ["<a_1>"], "1": []}', "item '1' has an empty one"),
        ('{"0": ["<a_1>"], "1": "<a_1>"}', "a list of tokens for every item (got '<a_1>' for '1')"),
        ('{"0": ["<a_1>", "<b_1>"], "1": ["<b_2>"]}', "tokens of one kind at level 0 (got '<b_2>'"),
        ('{"0": ["<a_99999999999>"]}', "must number the tokens of a level below"),
        ("\xff\xfe", "may be cut off"),
    ],
    "info.txt": [
        ("<a_1><b_2>\tHeat", "line 1 must be SID, title and item id"),
        ("<a_1>\tHeat\t0\n\n<a_2> x\tUp\t1", "line 3 must be SID, title and item id"),
        ("<a_1>\tHeat\t0\n<a_2>\tUp\t0", "every item once (got item 0 twice)"),
        ("", "at least one item"),
    ],
    "sid2pid.json": [
        ('{"5": [{"pid": 1}], "6": [{"pid": 1}]}', "every item once (got item 1 twice)"),
        ('{"5": [{"count": 1}]}', "list items with a pid or an iid"),
        ('{"5": []}', "list items with a pid or an iid"),
        ('{"5": [{"pid": 1}], "x": [{"pid": 2}]}', "numbers, 'a,b,c' or 'a.b.c' as keys (got 'x')"),
        (f'{{"{8192**4}": [{{"pid": 1}}]}}', "pack at most 4 codes of 8192"),
        ('{"1,2": 1, "1,x": 1}', "keys of codes with ',' between (got '1,x')"),
        ('{"1,2": 1, "1,2,3": 1}', "one number of codes in every key"),
        ('{"1,2": 1, "1, 2": 1}', "every item once (got item '1,2' twice)"),
        ('{"9999999999,2": 1}', "codes from 0 to 2^31 - 1"),
    ],
    "catalog.jsonl": [
        ('{"item_id": 1, "token_ids": [1]}\n{"item_id": 2, "tok', "line 2 is no JSON"),
        ('{"item_id": 1}', "line 1 must have item_id and token_ids"),
        ('{"item_id": 1, "token_ids": []}', "a list of token ids (got [])"),
        ('{"item_id": 1, "token_ids": [1.5]}', "a list of token ids (got [1.5])"),
        ('{"item_id": true, "token_ids": [1]}', "int or str item_id"),
        ('{"item_id": 1, "token_ids": [1]}\n{"item_id": 1, "token_ids": [2]}', "item 1 twice"),
        ('{"item_id": 1, "token_ids": [1]}\n{"item_id": "b", "token_ids": [2]}', "all int or all"),
        ("", "at least one item"),
    ],
}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [(name, *case) for name, cases in TEXTS.items() for case in cases],
)
def test_text_files(name, text, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"^load_index: ") as caught:
        crs_fast.load_index(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["index.json.gz", "info.txt.gz"])
def test_cut_off_gzip(name, tmp_path):
    whole = gzip.compress(b"<a_1>\tHeat\t0\n" * 500)
    path = tmp_path / name
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut off"):
        crs_fast.load_index(path)


def test_huge_json_is_not_parsed(tmp_path, monkeypatch):
    path = files.index_json(tmp_path / "index.json")
    monkeypatch.setattr(texts, "LARGEST_JSON", 20)
    with pytest.raises(ValueError, match=r"parsed at once \(got 0\.0\); save it as \.jsonl"):
        crs_fast.load_index(path)


@pytest.mark.parametrize("name", ["merged_predictions_tensor.pt", "index.pkl", "sids.npy"])
def test_pickles_are_refused_with_a_way_round(name, tmp_path):
    path, ran = tmp_path / name, []

    class Dangerous:
        def __reduce__(self):
            return ran.append, (1,)

    path.write_bytes(pickle.dumps(Dangerous()))
    if name.endswith(".npy"):
        np.save(path, np.array([Dangerous()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"is a pickle.*weights_only=True\)\.numpy") as caught:
        crs_fast.load_index(path)
    assert not ran
    # The way round works.
    torch.save(torch.tensor(files.SIDS), tmp_path / "x.pt")
    command = str(caught.value).split("once: ")[1].replace(path.name, str(tmp_path / "x.pt"))
    command = command.replace(path.with_suffix(".npy").name, str(tmp_path / "y.npy"), 1)
    if not name.endswith(".npy"):
        exec(command.replace("numpy.save", "np.save", 1), {"np": np, "torch": torch})
        assert crs_fast.load_index(tmp_path / "y.npy").trie.num_items == 6


@pytest.mark.parametrize("name", ["sids.npy", "sids.safetensors"])
def test_cut_off_arrays(name, tmp_path):
    index = crs_fast.load_index(files.index_json(tmp_path / "index.json"))
    index.save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="cut off"):
        crs_fast.load_index(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2)), "must hold integers (got float64)"),
        (np.zeros(3, dtype=int), "integers [items, levels] (got torch.int64 (3,))"),
        (np.zeros((0, 0), dtype=int), "at least one item"),
        (np.full((4, 2), 1 << 31), "codes in [0, 2^31 - 1]"),
        (np.full((4, 2), -1), "at least one code"),
        (np.full((4, 2), 1 << 63, dtype=np.uint64), "codes below 2^31"),
    ],
)
def test_arrays(array, message, tmp_path):
    np.save(tmp_path / "sids.npy", array)
    with pytest.raises(ValueError, match=r"^load_index: ") as caught:
        crs_fast.load_index(tmp_path / "sids.npy")
    assert message in str(caught.value)


def test_unfinished_generations(tmp_path):
    unfinished = files.generation(tmp_path, "v1", range(6), whole=range(6))
    (unfinished / "manifest.json").rename(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"has no manifest\.json, which TorchEasyRec writes last"):
        crs_fast.load_index(unfinished)
    (tmp_path / "kept").rename(unfinished / "manifest.json")
    (unfinished / "item_to_sid" / "part-1.parquet").unlink()
    with pytest.raises(ValueError, match=r"the 6 rows of the manifest \(got 3\); part of it"):
        crs_fast.load_index(unfinished)
    delta = files.generation(tmp_path / "other", "v2", range(2), since="v1")
    with pytest.raises(ValueError, match="adds to generation uuid of v1, which must be in"):
        crs_fast.load_index(delta)


def test_generations_that_contradict_themselves(tmp_path):
    folder = files.generation(tmp_path, "v1", range(6), whole=range(6))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"codebook": [3, 4, 4]}))
    with pytest.raises(ValueError, match=r"\[3, 4, 4\] \(got 3 levels up to \[3, 3, 3\]\)"):
        crs_fast.load_index(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    part = folder / "item_to_sid" / "part-0.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is damaged, or has no item_id and codebook"):
        crs_fast.load_index(folder)
    twice = files.generation(tmp_path, "v2", range(2), whole=[0, 1, 0])
    with pytest.raises(ValueError, match="item_ids must be distinct"):
        crs_fast.load_index(twice)


def test_tokens_that_the_tokenizer_lacks(tmp_path):
    path = files.index_json(tmp_path / "index.json")
    with pytest.raises(ValueError, match="got none for <a_0>, <a_2>, <a_3>, …: 10 of 10"):
        crs_fast.load_index(path, tokenizer_of([]))
    with pytest.raises(ValueError, match=r"load_index: .*load_index\(\.\.\., model=model\) adds"):
        crs_fast.load_index(path, tokenizer_of([]))
    with pytest.raises(ValueError, match="tokenizer must have code tokens such as '<a_0>'"):
        crs_fast.load_index(files.npy(tmp_path / "sids.npy"), tokenizer_of([]))
    with pytest.raises(ValueError, match=r"token ids of the tokenizer, < 4 \(got 900\)"):
        crs_fast.load_index(files.jsonl(tmp_path / "c.jsonl", [[1, 900]]), tokenizer_of([]))


def test_what_is_not_there_or_not_known(tmp_path):
    with pytest.raises(FileNotFoundError, match="load_index: no file"):
        crs_fast.load_index(tmp_path / "index.json")
    (tmp_path / "index.bin2").write_text("x")
    with pytest.raises(ValueError, match=r"format must be given for index\.bin2"):
        crs_fast.load_index(tmp_path / "index.bin2")
    with pytest.raises(ValueError, match="format must be 'auto' or one of"):
        crs_fast.load_index(tmp_path / "index.bin2", format="csv")


def test_what_a_format_cannot_hold(tmp_path):
    index = crs_fast.load_index(files.index_json(tmp_path / "index.json"))
    named = crs_fast.SidIndex(crs_fast.SidTrie.from_sids([[1, 2], [3, -1]], ["x", "y"]), None, None)
    cases = [
        (named, "a.npy", {}, "item ids must be 0 .. N - 1 in .npy"),
        (named, "a.safetensors", {}, "item ids must be ints in .safetensors"),
        (named, "a.json", dict(format="sid2pid"), "takes SIDs of one length"),
        (named, "a", {}, "takes SIDs of one length"),
        (index, "a.txt", {}, "titles must be given for info.txt alone"),
        (index, "a.json", dict(titles={}), "titles must be given for info.txt alone"),
        (index, "a.txt", dict(titles={0: "x"}), "titles must have one per item"),
        (index, "a.json", dict(format="csv"), "format must be"),
    ]
    for held, name, arguments, message in cases:
        with pytest.raises(ValueError, match=r"^SidIndex\.save: ") as caught:
            held.save(tmp_path / name, **arguments)
        assert message in str(caught.value)
        assert not (tmp_path / name).exists()
    tokens = crs_fast.load_index(files.jsonl(tmp_path / "c.jsonl", [[7, 8]]))
    with pytest.raises(ValueError, match="needs names of tokens"):
        tokens.save(tmp_path / "a.json")
