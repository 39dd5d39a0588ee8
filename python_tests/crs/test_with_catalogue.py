"""A recommender whose catalogue changes, against one that is built anew from the same rows."""

import dataclasses

import pytest
import torch

from crs_fast.crs.checkpoint import Bundle, load_bundle, save_bundle
from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.data.entity_linking import TitleIndex
from crs_fast.crs.item_encoder import ItemEncoder, encoder_record, save_quantizer
from crs_fast.crs.recommender import Recommender
from crs_fast.crs.sequence import SequenceBuilder, trie_sids
from crs_fast.crs.training.titles import with_titles
from crs_fast.crs.turn import TurnCache
from crs_fast.quantize import RQKMeans, resolve_collisions
from crs_fast.trie import SidTrie
from python_tests.helpers import sharpen

from .tiny_system import ITEMS, SIDS, system

ASK = [{"role": "user", "content": "I like Film 3, any more?"}]
NEW = (
    Item("n1", "Film 3", 2021, {"genres": "comedy"}),
    Item("n2", "The Wall-E Show", 2022),
    Item("n3", "Film 3 of Three"),
)


def embed(texts):
    """A text encoder that needs no model: counts of letters."""
    return torch.tensor([[float(t.count(c)) for c in "aeiourstln 123"] for t in texts])


@pytest.fixture(scope="module")
def parts():
    model, tokenizer, trie, vocab, control, builder = system()
    sharpen(model)
    texts = embed([item.text() for item in ITEMS])
    quantizer = RQKMeans(levels=3, codes=4).fit(torch.nn.functional.normalize(texts, dim=1))
    bundle = Bundle(model, tokenizer, trie, vocab, control, ITEMS, builder, quantizer.fingerprint())
    return bundle, quantizer


@pytest.fixture
def recommender(parts):
    bundle, quantizer = parts
    return Recommender(bundle, item_encoder=ItemEncoder(quantizer, embed))


def rebuilt(bundle, rows):
    """From nothing but rows (item, SID), in catalogue order."""
    items = tuple(item for item, _ in rows)
    trie = SidTrie.from_sids([sid for _, sid in rows], [item.item_id for item in items])
    builder = SequenceBuilder(bundle.tokenizer, bundle.vocab, bundle.control, trie_sids(trie))
    return Recommender(dataclasses.replace(bundle, trie=trie, items=items, builder=builder))


def same(got, wanted):
    assert got.bundle.items == wanted.bundle.items
    assert got.titles == wanted.titles
    for a, b in zip(got.bundle.trie.tensors, wanted.bundle.trie.tensors, strict=True):
        assert torch.equal(a, b)
    assert got.bundle.trie.item_ids.tolist() == wanted.bundle.trie.item_ids.tolist()
    assert got.bundle.builder._codes == wanted.bundle.builder._codes
    assert got.bundle.builder._items == wanted.bundle.builder._items
    assert vars(got.index) == vars(TitleIndex(wanted.bundle.items))
    for messages in (ASK, [{"role": "user", "content": "I saw Film 3 (2021), loved Wall-E Show"}]):
        answers = [r.respond(messages, "rec", 8, max_new_tokens=6) for r in (got, wanted)]
        assert answers[0] == answers[1]


def new_sids(quantizer, items, occupied):
    x = torch.nn.functional.normalize(embed([item.text() for item in items]), dim=1)
    return resolve_collisions(
        quantizer.embed(x), quantizer.encode(x), quantizer.codebooks, torch.tensor(occupied)
    ).tolist()


def test_a_change_equals_a_rebuild_that_keeps_the_old_rows(recommender, parts):
    bundle, quantizer = parts
    assert recommender.index  # made before the change, so that the change goes on from it
    before = [t.clone() for t in bundle.trie.tensors]
    rows = dict(zip([i.item_id for i in ITEMS], zip(ITEMS, SIDS, strict=True), strict=True))
    current = recommender
    for add, remove in ((NEW, ["i4", "i0"]), ((), ["n1"]), ([ITEMS[4]], ["i1", "n2"])):
        for item_id in remove:
            del rows[item_id]
        sids = new_sids(quantizer, add, [sid for _, sid in rows.values()]) if add else []
        rows |= {item.item_id: (item, sid) for item, sid in zip(add, sids, strict=True)}
        current = current.with_catalogue(add=add, remove=remove)
        assert current.bundle.model is bundle.model
        same(current, rebuilt(bundle, rows.values()))
    assert recommender.bundle is bundle
    assert all(torch.equal(a, b) for a, b in zip(before, bundle.trie.tensors, strict=True))


def test_an_update_keeps_the_sid(recommender, parts):
    better = dataclasses.replace(ITEMS[2], title="Film Two", fields={"genres": "noir"})
    changed = recommender.with_catalogue(add=[NEW[1], better], remove=["i2"])
    assert changed.bundle.trie.sids(["i2"]).tolist() == [SIDS[2]]
    assert changed.titles["i2"] == "Film Two (1992)"
    assert changed.groups.names == ["noir"]
    rows = [(i, s) for i, s in zip(ITEMS, SIDS, strict=True) if i.item_id != "i2"]
    sid = new_sids(parts[1], NEW[1:2], SIDS)[0]
    assert recommender.index
    same(changed, rebuilt(parts[0], [*rows, (NEW[1], sid), (better, SIDS[2])]))


def test_new_items_fill_free_sids_until_there_is_none(recommender):
    """64 SIDs, 8 of them taken: 56 equal texts get 56 SIDs, and no more."""
    many = [Item(f"m{n}", "the same") for n in range(57)]
    full = recommender.with_catalogue(add=many[:56])
    sids = full.bundle.trie.sids()
    assert len(sids.unique(dim=0)) == 64
    assert full.bundle.trie.sids([i.item_id for i in ITEMS]).tolist() == SIDS
    with pytest.raises(ValueError, match="K \\*\\* L - M"):
        full.with_catalogue(add=many[56:])
    emptied = full.with_catalogue(remove=[*full.titles])
    answer = emptied.respond(ASK, "rec", max_new_tokens=2)
    assert (answer.mode, answer.items, answer.named) == ("chat", [], [])
    again = emptied.with_catalogue(add=NEW)
    assert {i for i, _, _ in again.rank(ASK)} == {"n1", "n2", "n3"}


def test_given_sids_and_embeddings(recommender, parts):
    free = [[3, 3, 3], [0, 3, 1]]
    given = recommender.with_catalogue(add=NEW[:2], sids=free)
    assert given.bundle.trie.sids(["n1", "n2"]).tolist() == free
    x = embed(["some", "other", "texts"])
    by_hand = recommender.with_catalogue(add=NEW, embeddings=x)
    wanted = resolve_collisions(
        parts[1].embed(x), parts[1].encode(x), parts[1].codebooks, torch.tensor(SIDS)
    )
    assert torch.equal(by_hand.bundle.trie.sids(["n1", "n2", "n3"]), wanted)


def test_a_conversation_goes_on_over_a_change(recommender):
    """With its cache, and with an item in it that is gone."""
    cache, messages = TurnCache(), [*ASK]
    first = recommender.respond(messages, "rec", cache=cache, max_new_tokens=4)
    messages += [{"role": "assistant", "content": first.text}, *ASK]
    changed = recommender.with_catalogue(add=NEW, remove=["i3"])
    kept = changed.respond(messages, "rec", cache=cache, max_new_tokens=4)
    fresh = changed.respond(messages, "rec", max_new_tokens=4)
    assert [i for i, _, _ in kept.items] == [i for i, _, _ in fresh.items]
    assert "i3" not in {i for i, _, _ in fresh.items}
    assert kept.text == fresh.text


def test_titles_change_without_a_quantizer():
    model, tokenizer, *_ = system()
    bundle = with_titles((model, tokenizer), ITEMS)
    long = Item("n", "a much longer title than all of the others before, which were short")
    changed = Recommender(bundle).with_catalogue(add=[long, NEW[0]], remove=["i3", "i1"])
    anew = with_titles((model, tokenizer), changed.bundle.items)
    assert trie_sids(changed.bundle.trie) == trie_sids(anew.trie)
    assert changed.bundle.vocab == anew.vocab
    with torch.no_grad():  # `with_titles` drew new rows for its tokens
        assert changed.rank(ASK) == Recommender(anew).rank(ASK)
    assert "n" in {i for i, _, _ in changed.rank(ASK)}


def test_the_model_directory_knows_how_new_items_are_encoded(parts, tmp_path, monkeypatch):
    bundle, quantizer = parts
    path = save_bundle(
        tmp_path / "model", (bundle.model, bundle.tokenizer), bundle.trie, bundle.vocab,
        bundle.control, ITEMS, quantizer=quantizer.fingerprint(),
    )  # fmt: skip
    with pytest.raises(ValueError, match="holds no quantizer"):
        Recommender.from_pretrained(path).with_catalogue(add=NEW)
    save_quantizer(path, quantizer, None)
    with pytest.raises(ValueError, match="embeddings must be given"):
        Recommender.from_pretrained(path).with_catalogue(add=NEW)
    save_quantizer(path, quantizer, encoder_record("counts of letters", ("text",)))
    monkeypatch.setattr("crs_fast.crs.shared_encoder.load_encoder", lambda encoder, _: embed)
    changed = Recommender.from_pretrained(path).with_catalogue(add=NEW)
    assert changed.bundle.trie.sids(["n1", "n2", "n3"]).tolist() == new_sids(quantizer, NEW, SIDS)
    again = tmp_path / "again"
    for target in (again, again, path):  # the last one is the directory that it came from
        changed.save_pretrained(target)
        more = Recommender.from_pretrained(target).with_catalogue(add=ITEMS[1:2], remove=["i1"])
        assert more.with_catalogue(add=[Item("n4", "x")]).bundle.trie.num_items == 12
    other = RQKMeans(levels=3, codes=4, seed=5).fit(torch.rand(9, 14))
    with pytest.raises(ValueError, match="the quantizer must be the one that made"):
        Recommender(load_bundle(path), item_encoder=ItemEncoder(other, embed)).with_catalogue(
            add=[Item("n9", "x")]
        )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"add": [ITEMS[1]]}, r"add must hold new items.*'i1', which the catalogue has"),
        ({"add": [NEW[0], NEW[0]]}, "item_id must be given once"),
        ({"add": [Item("x", "")]}, "title must be a non-empty string"),
        ({"add": [Item("x", "x", None, {"year": "1"})]}, "fields must not be named 'year'"),
        ({"add": ["x"]}, "row 0 of items must be readable"),
        ({"remove": ["gone"]}, "remove must hold ids of the catalogue"),
        ({"remove": "i1"}, "remove must be a collection of ids"),
        ({"add": NEW[:1], "sids": [SIDS[5]]}, r"sids must be free \(got .*, the SID of 'i5'"),
        ({"add": NEW[:2], "sids": [[3, 3, 3], [3, 3, 3]]}, "sids must be distinct"),
        ({"add": NEW[:2], "sids": [[3, 3, 3]]}, "one SID per added item, 2"),
        ({"add": NEW[:1], "sids": [[1, 2, 3, 1]]}, "of at most 3 levels"),
        ({"add": NEW[:1], "sids": [[1, 2, 9]]}, "vocab must have a token for each code"),
        ({"add": NEW[:1], "embeddings": torch.zeros(1, 3)}, "embeddings must have shape .1, 14."),
        ({"add": NEW[:1], "embeddings": torch.zeros(2, 14)}, "one row per added item, 1"),
    ],
)  # fmt: skip
def test_bad_changes_change_nothing(recommender, how, message):
    with pytest.raises(ValueError, match=message):
        recommender.with_catalogue(**how)
    assert recommender.bundle.items == ITEMS
