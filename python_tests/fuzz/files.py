"""Files of each kind that a reader takes, small and right: what mutations begin from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch

from crs_fast import SidTrie
from python_tests.trie.formats import files as index_files

ITEMS = b"""\
{"item_id": "m17", "title": "Heat", "year": 1995, "genres": ["crime"], "plot": "A thief."}
{"item_id": "m40", "title": "Ronin", "imdb_id": "tt1"}
"""
DIALOGUES = b"""\
{"dialogue_id": "d1", "liked": {"m17": "liked"}, "seen": ["m40"], "turns": [\
{"role": "seeker", "text": "I liked Heat.", "items": [{"item_id": "m17", "start": 8, "end": 12}]},\
{"role": "recommender", "text": "Try Ronin!", "intent": "recommend", "breaks": [4]}]}
{"messages": [{"role": "user", "content": "Heat"}, {"role": "assistant", "content": "Ronin"}]}
"""
REDIAL = b"""\
{"messages": [{"text": "I liked @7", "senderWorkerId": 1}], "conversationId": "11", \
"respondentWorkerId": 2, "initiatorWorkerId": 1, \
"initiatorQuestions": {"7": {"liked": 1, "seen": 1}}}
"""
MOVIES = b'movieId,movieName,nbMentions\n30,"Good, the Bad (1966)",2\n7,Heat  (1995),5\n'
INFO = b"""\
{"7": {"name": "Heat (1995)", "genre": ["crime"], "plot": "A thief.", "director": ["A"], \
"star": ["S"], "imdb_id": "tt1"}}
"""
IARD = b"""\
{"1": {"dialogue_info": {"1": {"role": "seeker", "utterance_text": "@7 <Heat>", \
"top-level intent/action": ["OTH"]}}}}
"""
INSPIRED = b"""\
[{"role": "SEEKER", "text": "Heat", "movie": ["Heat (1995)"]}, \
{"role": "RECOMMENDER", "text": "Ronin", "movie": []}]
"""
TABLE = (
    b"dialog_id\tutt_id\tspeaker\ttext\tmovies\texpert_label\n"
    b"d1\t1\tSEEKER\tHeat\tHeat (1995)\tno_strategy\n"
    b"d1\t2\tRECOMMENDER\tRonin\tRonin (1998);Heat (1995)\t\n"
)
FACTS = b'{"Heat (1995)": {"genre": ["crime"], "directors": ["A"], "casts": ["S"]}}'
UNICRS = b"""\
{"context": ["", "Hi", "Heat (1995)"], "resp": "Try <movie>", "rec": ["Ronin (1998)"], \
"entity": ["Heat (1995)"]}
{"context": ["a", 2], "resp": "b", "rec": [1], "entity": [0], "dialog_id": 3, "turn_id": 1}
"""

# Kind: the data set to load, the file that is replaced, and the files of the whole folder.
_OWN = {"own/items.jsonl": ITEMS, "own/train.jsonl": DIALOGUES}
_REDIAL = {
    "redial/movies_with_mentions.csv": MOVIES,
    "redial/id2info.json": INFO,
    "redial/train_data.jsonl": REDIAL,
    "redial/test_data.jsonl": REDIAL,
    "iard/umap2020_IARD_Cai.json": IARD,
}
_INSPIRED = {
    "inspired/train.tsv": TABLE,
    "inspired/dev.tsv": TABLE,
    "inspired/movies.json": FACTS,
    "redial/id2info.json": INFO,
    "inspired2/dev.tsv": TABLE,
}
_INSPIRED_LINES = {"inspired/train.jsonl": INSPIRED, "inspired/train.tsv": TABLE}
_UNICRS = {
    "unicrs/train_data_processed.jsonl": UNICRS,
    "unicrs/entity2id.json": b'{"<http://dbpedia.org/resource/Heat_(1995_film)>": 0, "b": 1}',
    "unicrs/item_ids.json": b"[0, 1]",
    "unicrs/id2info.json": INFO,
}
DIALOGUE_KINDS: list[tuple[str, str, dict[str, bytes]]] = [
    (name, changed, folder)
    for name, folder in (
        ("own", _OWN),
        ("redial", _REDIAL),
        ("inspired", _INSPIRED),
        ("inspired", _INSPIRED_LINES),
        ("unicrs", _UNICRS),
    )
    for changed in folder
]
DIALOGUE_KINDS.append(("own", "own/train.jsonl.gz", {"own/items.jsonl": ITEMS}))

INDEX_KINDS = [
    ("a.index.json", "auto"),
    ("a.index.json.gz", "auto"),
    ("info.txt", "auto"),
    ("sid2pid.json", "auto"),
    ("flashrec.json", "flashrec"),
    ("catalog.jsonl", "auto"),
    ("sids.npy", "auto"),
    ("sids.npy", "grid"),
    ("sids.safetensors", "auto"),
]


def seeds(target: str, folder: Path) -> list[bytes]:
    """Inputs of a target that its reader takes, in the form of `targets.py`."""
    if target == "dialogues":
        whole = [files.get(changed) for _, changed, files in DIALOGUE_KINDS]
        contents = [gzip.compress(DIALOGUES, mtime=0) if c is None else c for c in whole]
    elif target == "index":
        contents = _index_seeds(folder)
    elif target == "trie":
        path = folder / "trie.safetensors"
        trie = SidTrie.from_sids([[0, 1], [0, 2], [1, -1], [1, -1]], item_ids=list("abcd"))
        trie.save(path)
        return [path.read_bytes()]
    else:
        contents = _bodies()
    return [bytes([kind]) + content for kind, content in enumerate(contents)]


def _index_seeds(folder: Path) -> list[bytes]:
    tokens = [index_files.tokens_of(sid) for sid in index_files.SIDS]
    index = index_files.index_json(folder / "a").read_bytes()
    array = folder / "sids.npy"
    sids = torch.tensor(index_files.SIDS)
    import numpy as np
    from safetensors.torch import save

    np.save(array, sids.numpy())
    grid = folder / "grid.npy"
    np.save(grid, sids.t().contiguous().numpy())
    rows = [{"item_id": i, "token_ids": [len(t) + i for t in row]} for i, row in enumerate(tokens)]
    return [
        index,
        gzip.compress(index, mtime=0),
        index_files.info_txt(folder / "b").read_bytes(),
        index_files.sid2pid_json(folder / "c").read_bytes(),
        index_files.flashrec_json(folder / "d").read_bytes(),
        "".join(json.dumps(row) + "\n" for row in rows).encode(),
        array.read_bytes(),
        grid.read_bytes(),
        save({"sids": sids, "item_ids": torch.arange(len(sids))}),
    ]


def _bodies() -> list[bytes]:
    said = [{"role": "user", "content": "I like Film 3, any more?"}]
    respond = {
        "messages": said, "mode": "rec", "num_items": 2, "exclude": ["i1"], "allow": ["i2"],
        "groups": ["a"], "max_per_group": {"a": 1}, "num_beams": 4, "max_new_tokens": 3,
        "do_sample": True, "temperature": 0.5, "top_p": 0.5, "seed": 1, "conversation": "c",
        "timeout": 9.5, "stream": True, "repeat_named": True,
    }  # fmt: skip
    chat = {
        "model": "model", "messages": said, "max_tokens": 3, "crs_fast": {"mode": "rec"},
        "stream": True, "stream_options": {"include_usage": True}, "n": 1,
    }  # fmt: skip
    change = {
        "add": [{"item_id": "n1", "title": "Heat", "year": 1995, "genres": ["crime"]}],
        "remove": ["i1"], "sids": [[0, 1, 2]], "embeddings": None,
    }  # fmt: skip
    return [json.dumps(body).encode() for body in (respond, chat, change, {"version": "0"})]
