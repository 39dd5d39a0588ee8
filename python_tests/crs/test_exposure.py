"""What a request may be shown, against lists made by hand from the whole ranking."""

import dataclasses

import pytest

from crs_fast.cli.chat import answer
from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.exposure import Exposure, ItemGroups, genres_of
from crs_fast.crs.recommender import Recommender
from python_tests.helpers import sharpen

from .tiny_system import ITEMS, system

ASK = [{"role": "user", "content": "I like Film 3, any more?"}]
LONGER = [
    *ASK,
    {"role": "assistant", "content": "Film 2 (1992) maybe.", "shown": ["i5", "i6", "gone"]},
    {"role": "seeker", "content": "seen it"},
]
IDS = [item.item_id for item in ITEMS]


def groups_of(item):
    number = int(item.item_id[1:])
    return ["Even" if number % 2 == 0 else "odd", *(["third"] if number % 3 == 0 else [])]


@pytest.fixture(scope="module")
def recommender():
    model, tokenizer, trie, vocab, control, builder = system()
    sharpen(model)
    # Films 0 and 7 are one film with two entries.
    items = tuple(
        dataclasses.replace(item, imdb_id="tt1") if item.item_id in ("i0", "i7") else item
        for item in ITEMS
    )
    bundle = Bundle(model, tokenizer, trie, vocab, control, items, builder, None)
    return Recommender(bundle, groups_of)


def ids_of(ranking):
    return [item_id for item_id, _, _ in ranking]


def groups(item_id):
    return {name.lower() for name in groups_of(ITEMS[int(item_id[1:])])}


def greedy(ranking, limits, num_items):
    """The list by hand: best first, while no group is full."""
    out = []
    for item_id in ranking:
        counts = {g: sum(g in groups(i) for i in out) for g in groups(item_id)}
        if all(counts[g] < limits.get(g, 99) for g in counts) and len(out) < num_items:
            out.append(item_id)
    return out


def test_rank_is_the_ranking_of_respond_without_words(recommender):
    whole = recommender.respond([ASK, LONGER], mode="rec", num_items=8, max_new_tokens=1)
    assert recommender.rank([ASK, LONGER], num_items=8) == [turn.items for turn in whole]
    assert recommender.rank(ASK, num_items=8) == recommender.rank([ASK], num_items=8)[0]
    assert len(recommender.rank(ASK, num_items=60)) == 8


def test_named_and_shown_items_are_repeated_only_on_demand(recommender):
    paper = [ids_of(r) for r in recommender.rank([ASK, LONGER], num_items=8)]
    assert sorted(paper[0]) == sorted(paper[1]) == IDS
    lists = [ids_of(r) for r in recommender.rank([ASK, LONGER], num_items=8, repeat_named=False)]
    for ranking, named, got in zip(paper, ({"i3"}, {"i3", "i2", "i5", "i6"}), lists, strict=True):
        wanted = [i for i in ranking if i not in named]
        wanted.remove(max(("i0", "i7"), key=wanted.index))  # the film's second entry
        assert got == wanted
    said = [{"role": "user", "content": "that", "items": [{"item_id": "i0"}]}]
    assert set(ids_of(recommender.rank(said, num_items=8, repeat_named=False))) == {*IDS[1:7]}


def test_the_reply_may_name_what_is_not_repeated(recommender):
    """Told of a film, it may speak of it; an excluded one it may not name."""
    begin = recommender.bundle.builder.begin

    def opens(module, inputs, logits):
        logits[..., begin] += 1000

    with recommender.bundle.model.get_output_embeddings().register_forward_hook(opens):
        common = dict(mode="chat", max_new_tokens=12)
        spoken = recommender.respond(LONGER, allow=["i3"], repeat_named=False, **common)
        assert set(spoken.named) == {"i3"}
        assert recommender.respond(LONGER, exclude=IDS, **common).named == []


def test_lists_and_groups(recommender):
    ranking = ids_of(recommender.rank(ASK, num_items=8))

    def got(**how):
        return ids_of(recommender.rank(ASK, num_items=8, **how))

    assert got(allow=["i1", "i2", "i5"], exclude=["i2"]) == [i for i in ranking if i in "i1 i5"]
    assert got(groups=("EVEN ",)) == [i for i in ranking if "even" in groups(i)]
    both = [i for i in ranking if groups(i) & {"even", "third"}]
    assert got(groups=("even", "third")) == both
    assert got(groups=("odd",), allow=["i1", "i2"], exclude=["i3"]) == ["i1"]
    assert got(groups=()) == ranking
    assert got(allow=[]) == []
    one, two = recommender.rank([ASK, ASK], 8, allow=[["i1"], None])
    assert ids_of(one) == ["i1"]
    assert ids_of(two) == ranking
    nothing = recommender.respond(ASK, mode="rec", allow=["i1"], exclude=["i1"], max_new_tokens=1)
    assert (nothing.mode, nothing.items) == ("chat", [])


@pytest.mark.parametrize("limits", [1, 2, {"even": 1}, {"third": 1, "odd": 2}, {"Odd ": 3}])
def test_diversity_limit(recommender, limits):
    ranking = ids_of(recommender.rank(ASK, num_items=8))
    names = ("even", "odd", "third")
    by_name = (
        {k.strip().lower(): v for k, v in limits.items()}
        if isinstance(limits, dict)
        else dict.fromkeys(names, limits)
    )
    for num_items in (1, 3, 8):
        got = recommender.rank(ASK, num_items=num_items, max_per_group=limits)
        assert ids_of(got) == greedy(ranking, by_name, num_items)


def test_a_short_list_is_filled_by_another_search(recommender):
    """With two beams, the first search may hold two items of one group: the next one leaves that
    group out. The oracle asks anew for each search, with deny lists."""
    limits, taken, denied, searches = {"even": 1, "odd": 1}, [], set(), 0
    while len(taken) < 2 and searches < 5:
        searches += 1
        ranking = recommender.rank(LONGER, 2, exclude=sorted(denied), num_beams=2)
        taken = greedy([*taken, *ids_of(ranking)], limits, 2)
        full = {g for i in taken for g in groups(i) if g in limits}
        denied = {*taken, *(i for i in IDS if groups(i) & full)}
    got = recommender.rank(LONGER, 2, max_per_group=limits, num_beams=2)
    assert ids_of(got) == taken
    assert (len(taken), searches) == (2, 2)
    batch = (ASK, LONGER)
    lists = recommender.rank(batch, 2, max_per_group=1, num_beams=2)
    alone = [recommender.rank(m, 2, max_per_group=1, num_beams=2) for m in batch]
    assert list(map(ids_of, lists)) == list(map(ids_of, alone))


def test_a_slate_stands_before_the_reply_once_each(recommender):
    turn = recommender.respond(ASK, "rec", num_items=3, num_named=3, max_per_group=2,
                               repeat_named=False, max_new_tokens=6)  # fmt: skip
    ids = ids_of(turn.items)
    assert len({*ids, "i3"}) == 4
    given = recommender.respond(ASK, item=ids, max_new_tokens=6)
    assert given.text == turn.text


def test_chat_repeats_nothing(recommender):
    messages = [*ASK]
    seen = {"i3"}
    for said in ("another one", "one more"):
        answer(recommender, messages, "rec", 2, False)
        shown = messages[-1]["shown"]
        assert len(shown) == 2
        assert not seen & set(shown)
        seen |= set(shown)
        messages.append({"role": "user", "content": said})


def test_unknown_ids_and_groups_are_set_aside(recommender):
    catalogue = recommender.groups
    given = Exposure(["i1", "gone"], ["i2", "lost"], ("even", "western"), {"odd": 1, "noir": 2})
    known, lacking = given.known(catalogue)
    assert (known.exclude, known.allow, known.groups) == (["i1"], ["i2"], ("even",))
    assert known.max_per_group == {"odd": 1}
    assert lacking == ["gone", "lost", "western", "noir"]
    assert Exposure(["i1"]).known(catalogue) == (Exposure(["i1"]), [])
    # What only unknown groups were allowed to do, nothing may.
    assert Exposure(groups=["western"]).known(catalogue)[0].allow == ()
    assert Exposure(allow=["lost"]).known(catalogue)[0].allow == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"allow": ["nope"]}, "rank: exclude, allow and item must be ids of the catalogue"),
        ({"groups": ("western",)}, r"rank: groups must be among \['even', 'odd', 'third'\]"),
        ({"groups": "even"}, "groups must be a collection of names"),
        ({"max_per_group": 0}, "max_per_group must be at least 1"),
        ({"max_per_group": {"odd": 0}}, "max_per_group must be at least 1"),
        ({"max_per_group": {"noir": 1}}, "groups must be among"),
    ],
)
def test_bad_requests(recommender, kwargs, message):
    with pytest.raises(ValueError, match=message):
        recommender.rank(ASK, **kwargs)
    with pytest.raises(ValueError, match="item must hold each item once"):
        recommender.respond(ASK, item=["i1", "i1"])
    with pytest.raises(ValueError, match="allow must hold one collection per request, 2"):
        recommender.rank([ASK, ASK], allow=[["i1"]])


def test_genres_are_groups():
    model, tokenizer, trie, vocab, control, builder = system()
    items = tuple(
        dataclasses.replace(item, fields={"genres": "Comedy, Drama" if n % 2 else " Drama,, "})
        for n, item in enumerate(ITEMS)
    )
    recommender = Recommender(Bundle(model, tokenizer, trie, vocab, control, items, builder, None))
    assert recommender.groups.names == ["comedy", "drama"]
    assert recommender.groups.of("i1") == ("comedy", "drama")
    assert set(ids_of(recommender.rank(ASK, 8, groups=["Comedy"]))) == {"i1", "i3", "i5", "i7"}
    assert ItemGroups(ITEMS, trie, genres_of).names == []
