"""A recommender of films and books, each with a begin token of its own."""

import pytest
import torch

from crs_fast.crs import ControlTokens, Recommender, make_model_directory
from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.turn import TurnCache
from crs_fast.trie import SidTrie, typed_catalogue
from crs_fast.trie.sid_vocab import add_special_tokens
from python_tests.helpers import sharpen

from .tiny_system import ITEMS, SIDS, system

ASK = [{"role": "user", "content": "I like Film 3 and Book 2, any more?"}]
BOOKS = tuple(Item(f"b{n}", f"Book {n}", None, {"kind": "book"}) for n in range(5))
BOOK_SIDS = [[n % 4, 3, n % 3] for n in range(5)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    model, tokenizer, trie, vocab, _, _ = system()
    (book,) = add_special_tokens(tokenizer, model, ["<BOB>"])
    sharpen(model)
    tries = {vocab.begin: trie, book: SidTrie.from_sids(BOOK_SIDS, [b.item_id for b in BOOKS])}
    path = tmp_path_factory.mktemp("typed") / "model"
    return make_model_directory(path, model, tokenizer, tries, vocab, [*ITEMS, *BOOKS])


@pytest.fixture(scope="module")
def recommender(directory):
    return Recommender.from_pretrained(
        directory, groups_of=lambda item: [item.fields.get("kind", "film")]
    )


def ids_of(ranking):
    return [item_id for item_id, _, _ in ranking]


def score(bundle, context, item_id):
    """The log-prob of an item's tokens behind `Assistant:<MODE=REC>`, by one plain forward pass."""
    tokens = bundle.builder.item(item_id)[:-1]
    ids = torch.tensor([[*context, bundle.control.rec, *tokens]])
    with torch.no_grad():
        logits = bundle.model(ids).logits[0, -len(tokens) - 1 : -1].log_softmax(1)
    return float(logits.gather(1, torch.tensor(tokens)[:, None]).sum())


def test_films_and_books_are_ranked_together(recommender):
    bundle = recommender.bundle
    (turn,) = recommender.turns(ASK)
    assert turn.item_ids() == ["i3", "b2"]
    assert bundle.builder.item("b2")[0] != bundle.builder.item("i3")[0]
    context = bundle.builder.context([turn], reserve=0)
    wanted = {i.item_id: score(bundle, context, i.item_id) for i in bundle.items}
    ranking = recommender.rank(ASK, 20)
    assert ids_of(ranking) == sorted(wanted, key=wanted.get, reverse=True)
    for item_id, _, got in ranking:
        assert got == pytest.approx(wanted[item_id], abs=1e-3)
    books = recommender.rank(ASK, 20, groups=["book"], repeat_named=False)
    assert ids_of(books) == [i for i in ids_of(ranking) if i in ("b0", "b1", "b3", "b4")]


def test_a_turn_and_its_cache(recommender):
    cache = TurnCache()
    whole = recommender.respond(ASK, "rec", 5, groups=["book"], cache=cache, max_new_tokens=8)
    assert set(ids_of(whole.items)) == {"b0", "b1", "b2", "b3", "b4"}
    assert (whole.invalid_items, "<BO" in whole.text) == (0, False)
    given = recommender.respond(ASK, item=ids_of(whole.items)[:1], groups=["book"],
                                max_new_tokens=8)  # fmt: skip
    assert given.text == whole.text
    more = [*ASK, {"role": "assistant", "content": "Book 4"}, *ASK]
    kept = recommender.respond(more, "rec", cache=cache, max_new_tokens=4)
    fresh = recommender.respond(more, "rec", max_new_tokens=4)
    assert (kept.text, ids_of(kept.items)) == (fresh.text, ids_of(fresh.items))


@pytest.mark.parametrize("group", ["film", "book"])
def test_a_reply_opens_only_what_the_request_allows(recommender, group):
    begins = list(recommender.bundle.vocab.begins)

    def opens(module, inputs, logits):
        logits[..., begins] += 1000

    with recommender.bundle.model.get_output_embeddings().register_forward_hook(opens):
        turn = recommender.respond(ASK, "chat", groups=[group], max_new_tokens=12)
    assert turn.named
    assert {recommender.groups.of(i) for i in turn.named} == {(group,)}
    assert turn.invalid_items == 0


def test_parts_of_a_stream(recommender):
    first, *deltas, last = recommender.stream(ASK, "rec", max_new_tokens=12)
    assert "".join(deltas) == last.text
    assert first.items == last.items


def test_items_join_by_their_sids(recommender):
    new = [Item("b9", "Book 9", None, {"kind": "book"})]
    changed = recommender.with_catalogue(add=new, remove=["b0"], sids=[[1, 2, 2, 2]])
    assert set(ids_of(changed.rank(ASK, 20, groups=["book"]))) == {"b1", "b2", "b3", "b4", "b9"}
    with pytest.raises(ValueError, match="sids must be given"):
        recommender.with_catalogue(add=new)


def test_the_directory_holds_the_types(directory, recommender):
    bundle = recommender.bundle
    again = Recommender.from_pretrained(directory)
    assert again.rank(ASK, 20) == recommender.rank(ASK, 20)
    assert again.bundle.vocab.to_dict() == bundle.vocab.to_dict()
    assert ControlTokens.of(again.bundle.tokenizer) == bundle.control
    tries = {begin: SidTrie.from_sids(sids, [i.item_id for i in items])
             for begin, sids, items in zip(bundle.vocab.begins, (SIDS, BOOK_SIDS), (ITEMS, BOOKS),
                                           strict=True)}  # fmt: skip
    joint, _ = typed_catalogue(tries, system()[3])
    assert torch.equal(joint.sids(), bundle.trie.sids())
