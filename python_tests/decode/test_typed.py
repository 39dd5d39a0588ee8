"""Films and books in one text: each begin token has a catalogue of its own."""

import pytest
import torch

from crs_fast.decode import SidLogitsProcessor
from crs_fast.decode.recommend import recommend
from crs_fast.decode.row_mask import RowMask
from crs_fast.trie import (
    ItemFilter,
    SidTrie,
    SidVocab,
    TypedVocab,
    find_items,
    typed_catalogue,
    vocabulary_from_dict,
)
from python_tests.helpers import clear_places, random_sids, tiny_model

FILM, BOOK, SONG, END = 40, 41, 42, 43
SHARED = [list(range(10, 16)), list(range(16, 22)), list(range(22, 28))]
OWN = [list(range(28, 34)), [16, 34, 35, 36]]  # two levels; a token that films have too
VOCABS = {FILM: SidVocab(SHARED, end=END), BOOK: SidVocab(SHARED, end=END),
          SONG: SidVocab(OWN, end=END)}  # fmt: skip


def tries():
    return {
        FILM: SidTrie.from_sids(random_sids(0, 20, 3, 6), [f"film {n}" for n in range(20)]),
        BOOK: SidTrie.from_sids(random_sids(1, 15, 3, 6), [f"book {n}" for n in range(15)]),
        SONG: SidTrie.from_sids([[0, 1], [0, 2], [5, 3]], ["song 0", "song 1", "song 2"]),
    }


@pytest.fixture(scope="module")
def typed():
    return typed_catalogue(tries(), VOCABS)


def token_rows():
    """Each item as its tokens in text, from the separate catalogues."""
    rows = {}
    for begin, trie in tries().items():
        for item in map(str, trie.item_ids.tolist()):
            tokens = VOCABS[begin].encode(trie.sids([item]))[0].tolist()
            rows[item] = [begin, *[token for token in tokens if token >= 0]]
    return rows


def legal(prefix, allowed=None, ending=(END,)):
    """The tokens that may follow in text, by looking at every item: the oracle."""
    every = {item: [*row, *ending] for item, row in token_rows().items()}
    items = {item: row for item, row in every.items() if allowed is None or item in allowed}
    begins = [at for at, token in enumerate(prefix) if token in VOCABS]
    if begins and END not in prefix[begins[-1] :]:
        open_part = prefix[begins[-1] :]
        n = len(open_part)
        return {row[n] for row in items.values() if row[:n] == open_part}
    codes = {t for vocab in VOCABS.values() for t in vocab.code_tokens().tolist()}
    return set(range(50)) - codes - {END} - (set(VOCABS) - {row[0] for row in items.values()})


def prefixes():
    rows = token_rows()
    yield [3]
    yield [3, *rows["film 1"], END, 4]
    for item in ("film 0", "film 7", "book 0", "book 3", "song 0", "song 2"):
        for n in range(1, len(rows[item]) + 1):
            yield [2, *rows["book 1"], END, 5, *rows[item][:n]]


@pytest.mark.parametrize("as_mapping", [True, False])
@pytest.mark.parametrize("allowed", [None, ["film 3", "song 1", "song 2"], ["book 3"], []])
def test_each_begin_token_opens_its_own_catalogue(typed, as_mapping, allowed):
    filters = None if allowed is None else typed.trie.filter(allow=allowed)
    catalogue = (tries(), VOCABS) if as_mapping else typed
    processor = SidLogitsProcessor(*catalogue, filters=filters, on_illegal="free")
    checked = 0
    for prefix in prefixes():
        wanted = legal(prefix, allowed)
        if not wanted:
            continue  # no allowed item has this prefix
        masked = processor(torch.tensor([prefix]), torch.zeros(1, 50))
        assert set((masked[0] > -1).nonzero()[:, 0].tolist()) == wanted, prefix
        checked += 1
    assert checked > 1


@pytest.mark.parametrize("allowed", [None, ["film 3", "song 1", "song 2"]])
def test_a_terminator_of_several_tokens(typed, allowed):
    filters = None if allowed is None else typed.trie.filter(allow=allowed)
    processor = SidLogitsProcessor(*typed, filters=filters, terminator=(6, END), on_illegal="free")
    for prefix in [*prefixes(), [2, *token_rows()["song 1"], 6]]:
        if wanted := legal(prefix, allowed, (6, END)):
            masked = processor(torch.tensor([prefix]), torch.zeros(1, 50))
            assert set((masked[0] > -1).nonzero()[:, 0].tolist()) == wanted, prefix


@pytest.mark.parametrize("allowed", [None, ["film 3", "song 1", "song 2"], ["book 3"], []])
def test_rows_inside_an_engine(typed, allowed):
    """As the processor masks them; and a SID that begins right after the prompt."""
    filters = None if allowed is None else typed.trie.filter(allow=allowed)
    mask = RowMask(*typed)
    rows = [row for row in prefixes() if legal(row, allowed)]
    windows = torch.tensor([mask.window(row[:2], row[2:]) for row in rows])
    masked = mask.apply_(
        torch.zeros(len(rows), 50), windows, torch.full((len(rows),), -1), [filters] * len(rows)
    )
    for row, one in zip(rows, masked, strict=True):
        assert set((one > -1).nonzero()[:, 0].tolist()) == legal(row, allowed), row
    for item, tokens in token_rows().items():
        if allowed is not None and item not in allowed:
            continue
        for n in range(len(tokens) + 1):
            window = torch.tensor([mask.window([2, *tokens[:n]], [])])
            one = mask.apply_(torch.zeros(1, 50), window, torch.tensor([n]), [filters])[0]
            wanted = legal([2, *tokens[:n]], allowed) if n else {
                row[0] for i, row in token_rows().items() if allowed is None or i in allowed
            }  # fmt: skip
            assert set((one > -1).nonzero()[:, 0].tolist()) == wanted


def test_rows_of_different_types_share_a_call(typed):
    rows = [p for p in prefixes() if len(p) == 9]
    together = SidLogitsProcessor(*typed)(torch.tensor(rows), torch.zeros(len(rows), 50))
    for row, masked in zip(rows, together, strict=True):
        assert set((masked > -1).nonzero()[:, 0].tolist()) == legal(row)


def test_generate_names_only_items_of_the_type_that_it_opened(typed):
    model = tiny_model("llama", 50)
    prompt = torch.tensor([[3, 4, begin] for begin in VOCABS])
    out = model.generate(
        prompt, max_new_tokens=12, do_sample=True, eos_token_id=None, pad_token_id=0,
        logits_processor=[SidLogitsProcessor(*typed)],
    )  # fmt: skip
    named = find_items(out, *typed)
    for row, kind in zip(named, ("film", "book", "song"), strict=True):
        assert all(item.startswith(kind) for item in row[0].item_ids)
        assert row[0].start == 2


def test_recommend_ranks_the_type_that_the_prompt_ends_with(typed):
    """As its own catalogue alone ranks after the same prompt; the scores differ by what the begin
    token costs."""
    model = tiny_model("llama", 50)
    prompt = torch.tensor([[3, 4, FILM], [5, 6, BOOK], [7, 8, SONG]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1], [1, 1, 1]])
    filters = ItemFilter.stack([typed.trie.filter(deny=["film 2"]), None, None])
    out = recommend(model, prompt, mask, trie=typed.trie, vocab=typed.vocab, filters=filters,
                    num_beams=40)  # fmt: skip
    for row, (begin, trie) in enumerate(tries().items()):
        ids, real = prompt[row : row + 1], mask[row : row + 1]
        deny = trie.filter(deny=["film 2"]) if begin == FILM else None
        alone = recommend(model, ids, real, trie=trie, vocab=VOCABS[begin], filters=deny,
                          num_beams=40)  # fmt: skip
        assert len(out.items[row]) == len(alone.items[0])
        sure = clear_places(alone.scores)[0, : len(alone.items[0])].tolist()
        for got, wanted, is_sure in zip(out.items[row], alone.items[0], sure, strict=True):
            assert got == wanted or not is_sure
        own = int(real.sum()) - 1
        start = 3 - int(real.sum())
        with torch.no_grad():
            logits = model(ids[:, start : start + own]).logits[0, -1].log_softmax(0)
        cost = float(logits[begin])
        assert out.item_scores[row][0] == pytest.approx(alone.item_scores[0][0] + cost, abs=1e-4)
    mapped = recommend(model, prompt, mask, trie=tries(), vocab=VOCABS, num_beams=40)
    assert mapped.items[1:] == out.items[1:]


def test_a_type_without_items(typed):
    """It is neither opened in text nor recommended."""
    trie = typed.trie.remove([f"book {n}" for n in range(15)])
    masked = SidLogitsProcessor(trie, typed.vocab)(torch.tensor([[3, 4]]), torch.zeros(1, 50))
    assert (masked[0, [FILM, BOOK, SONG]] > -1).tolist() == [True, False, True]
    prompt = torch.tensor([[3, 4, BOOK], [3, 4, SONG]])
    out = recommend(tiny_model("llama", 50), prompt, trie=trie, vocab=typed.vocab, num_beams=9)
    assert [len(items) for items in out.items] == [0, 3]


def test_recommend_ranks_all_types_together(typed):
    """By the log-probs of the items' tokens, summed one item at a time."""
    model = tiny_model("llama", 50)
    prompt = torch.tensor([[3, 4, 5], [6, 7, BOOK]])
    out = recommend(model, prompt, trie=typed.trie, vocab=typed.vocab, num_beams=40)
    scores = {}
    for item, row in token_rows().items():
        ids = torch.tensor([[3, 4, 5, *row]])
        with torch.no_grad():
            logits = model(ids).logits[0, 2:-1].log_softmax(1)
        scores[item] = float(logits.gather(1, ids[0, 3:, None]).sum())
    by_sid = {tuple(row): max(scores[i] for i, r in token_rows().items() if r == row)
              for row in token_rows().values()}  # fmt: skip
    assert int(out.num_valid[0]) == len(by_sid)
    for item, score in zip(out.items[0], out.item_scores[0], strict=True):
        assert score == pytest.approx(scores[item], abs=1e-4)
    assert {item.split()[0] for item in out.items[0]} == {"film", "book", "song"}
    assert {item.split()[0] for item in out.items[1]} == {"book"}


def test_the_joint_catalogue(typed):
    assert typed.trie.num_items == 38
    assert typed.trie.sids(["film 4"])[0, 1:].tolist() == random_sids(0, 20, 3, 6)[4].tolist()
    rows = token_rows()
    for item, row in rows.items():
        tokens = typed.vocab.encode(typed.trie.sids([item]))[0]
        assert [t for t in tokens.tolist() if t >= 0] == row
    again = vocabulary_from_dict(typed.vocab.to_dict())
    assert isinstance(again, TypedVocab)
    assert again.to_dict() == typed.vocab.to_dict()
    text = [1, *rows["song 1"], END, 2, 3, *rows["book 5"], END]
    (named,) = find_items([text], *typed)
    assert (named[0].item_ids, named[0].start) == (["song 1"], 1)
    assert "book 5" in named[1].item_ids


@pytest.mark.parametrize(
    ("tries_of", "vocab", "message"),
    [
        ({}, VOCABS[FILM], "at least one catalogue"),
        ({FILM: SidTrie.from_sids([[1]])}, None, "vocab must be a SidVocab"),
        ({FILM: SidTrie.from_sids([[1]])}, VOCABS | {FILM: SidVocab(SHARED)}, "one end token"),
        ({10: SidTrie.from_sids([[1]])}, VOCABS[FILM], "a begin token must stand for no code"),
        ({END: SidTrie.from_sids([[1]])}, VOCABS[FILM], "a begin token must stand for no code"),
        (
            {FILM: SidTrie.from_sids([[1]]), BOOK: SidTrie.from_sids([[2]])},
            VOCABS,
            "item_ids must be distinct",
        ),
        ({FILM: SidTrie.from_sids([[9]])}, VOCABS, "vocab must have a token for each code"),
    ],
)
def test_what_can_not_be_joined(tries_of, vocab, message):
    with pytest.raises(ValueError, match=message):
        typed_catalogue(tries_of, vocab)
