import json
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Turn
from crs_fast.crs.data.starter import load_starter, load_starter_items, phrases, templates
from crs_fast.crs.data.starter.simulator import attributes

HELD_OUT = (False, True)
EMPTY_WORDS = """a s an the and or of in on to from with about for that some set made how who where
my me i can it its is are be after against out all at by no not one two into"""


@pytest.fixture(scope="module")
def data():
    return load_starter(seed=0, train=600, valid=60, test=400)


@pytest.fixture(scope="module")
def items():
    return {item.item_id: item for item in load_starter_items()}


def targets(dialogues):
    """(film, whether it was named earlier) of every target by the standard count."""
    found = []
    for dialogue in dialogues:
        named: set[str] = set()
        for turn in dialogue.turns:
            if turn.role == RECOMMENDER:
                found += [(item, item in named) for item in turn.item_ids()]
            named.update(turn.item_ids())
    return found


def meanings():
    """Every phrase a seeker may use, as a pattern, with the attribute and whether it is wanted."""
    table = {(name, ("genre", genre), True) for genre, name in phrases.GENRE_NAMES.items()}
    for held_out in HELD_OUT:
        for wanted, source in ((True, phrases.want_phrases), (False, phrases.avoid_phrases)):
            for attribute, words in source(held_out).items():
                table |= {(phrase, attribute, wanted) for phrase in words}
    return table


MEANING = {phrase: (attribute, wanted) for phrase, attribute, wanted in meanings()}
PHRASE = re.compile(
    r"(?<!\w)(" + "|".join(map(re.escape, sorted(MEANING, key=len)[::-1])) + r")(?!\w)"
)


def skeletons(dialogues):
    """The sentences said, with films and attribute phrases blanked."""
    found = set()
    for dialogue in dialogues:
        for turn in dialogue.turns:
            text = turn.with_placeholder("FILM")
            text = PHRASE.sub("WISH", text)
            # several attributes make one wish: "a comedy" + "from the nineties" + "about cops"
            text = re.sub(r"(something )?WISH( WISH)*", "WISH", text)
            found.update(s.strip() for s in re.findall(r"[^.!?]+[.!?]", text))
    return found


def satisfying(catalogue, said):
    return {
        item_id
        for item_id, has in catalogue.items()
        if all((attribute in has) == wanted for attribute, wanted in said)
    }


def test_catalogue_is_real_sized_and_unique():
    items = load_starter_items()
    assert len(items) >= 320
    assert len({item.item_id for item in items}) == len(items)
    assert len({item.title.casefold() for item in items}) == len(items)
    for item in items:
        assert 1900 < item.year < 2030
        assert list(item.fields) == ["genres", "keywords", "director", "cast"]
        keywords = item.fields["keywords"].split(", ")
        assert 4 <= len(keywords) <= 6
        assert len(set(keywords)) == len(keywords)
        assert set(item.fields["genres"].split(", ")) <= set(phrases.GENRES)
        assert all(value == value.strip() and value for value in item.fields.values())


def test_every_phrase_belongs_to_films():
    present = set().union(*(attributes(item) for item in load_starter_items()))
    for _, attribute, _ in meanings():
        assert attribute in present


def test_phrases_are_unambiguous():
    assert len(MEANING) == len(meanings())
    for phrase in MEANING:
        inside = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)")
        clashes = [p for p in MEANING if inside.search(p) and MEANING[p] != MEANING[phrase]]
        assert not clashes, phrase
    sentences = [s for t in (templates.TRAIN, templates.HELD_OUT) for k in t.values() for s in k]
    assert not [s for s in sentences if PHRASE.search(s)]


def test_paraphrases_share_no_word_with_the_film(items):
    """A wish holds no content word of any film it is true of, apart from plain genre names."""
    empty = set(re.findall(r"\w+", EMPTY_WORDS))
    plain = set(phrases.GENRE_NAMES.values())
    words = {i: set(re.findall(r"\w+", item.text().casefold())) for i, item in items.items()}
    catalogue = {i: attributes(item) for i, item in items.items()}
    clashes = []
    for phrase, attribute, wanted in sorted(meanings()):
        if not wanted or phrase in plain:
            continue
        content = set(re.findall(r"\w+", phrase.casefold())) - empty
        assert content, phrase
        clashes += [
            (phrase, items[item_id].title, content & words[item_id])
            for item_id, has in catalogue.items()
            if attribute in has and content & words[item_id]
        ]
    assert not clashes


def test_jobs_say_nothing_of_any_film(items):
    """A job tells the taste group only: none of its words is in the catalogue's text."""
    catalogue = set(re.findall(r"\w+", " ".join(i.text() for i in items.values()).casefold()))
    assert len(set(phrases.JOBS)) == len(phrases.JOBS)
    for job in phrases.JOBS:
        assert job.split()[-1] not in catalogue


def test_deterministic_in_the_seed_and_stable_in_the_count():
    first = load_starter(seed=3, train=8, valid=2, test=4)
    assert first == load_starter(seed=3, train=8, valid=2, test=4)
    assert first.splits["train"][:5] == load_starter(3, train=5, valid=0, test=0).splits["train"]
    other = load_starter(seed=4, train=8, valid=2, test=4)
    assert first.items == other.items
    assert first.splits != other.splits


@pytest.mark.parametrize("name", ["seed", "train", "valid", "test"])
def test_negative_counts_are_refused(name):
    with pytest.raises(ValueError, match=rf"load_starter: {name} must be at least 0 \(got -1\)"):
        load_starter(**{"train": 0, "valid": 0, "test": 0, name: -1})


def test_dialogues_are_labelled_and_well_formed(data, items):
    ids = [d.dialogue_id for dialogues in data.splits.values() for d in dialogues]
    assert data.name == "starter"
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 600, "valid": 60, "test": 400}
    assert len(set(ids)) == len(ids)
    for split, dialogues in data.splits.items():
        for dialogue in dialogues:
            assert dialogue.dialogue_id.startswith(f"simulated-{split}-")
            roles = [turn.role for turn in dialogue.turns]
            assert 4 <= len(roles) <= 10
            assert roles == [(SEEKER, RECOMMENDER)[n % 2] for n in range(len(roles))]
            assert sum(len(turn.text.split()) for turn in dialogue.turns) < 160
            for turn in dialogue.turns:
                for mention in turn.mentions:
                    title = items[mention.item_id].title
                    assert turn.text[mention.start : mention.end] == title


def test_vocabulary_is_small(data):
    turns: list[Turn] = [t for split in data.splits.values() for d in split for t in d.turns]
    vocabulary = {w for t in turns for w in t.with_placeholder("").casefold().split()}
    assert len(vocabulary) < 3000


@pytest.mark.parametrize("split", ["train", "test"])
def test_both_modes_and_both_verdicts_occur(data, split):
    turns = [t for d in data.splits[split] for t in d.turns if t.role == RECOMMENDER]
    assert 0.4 < np.mean([bool(t.mentions) for t in turns]) < 0.6
    assert any(len(t.mentions) == 2 for t in turns)
    recommended = [
        sum(bool(t.mentions) for t in d.turns if t.role == RECOMMENDER) for d in data.splits[split]
    ]
    assert 0.2 < np.mean([n == 1 for n in recommended]) < 0.6


@pytest.mark.parametrize("split", ["train", "test"])
def test_targets_follow_a_zipf_popularity(data, split):
    counts = Counter(item for item, _ in targets(data.splits[split]))
    total = sum(counts.values())
    assert sum(n for _, n in counts.most_common(10)) >= 0.15 * total
    popular = {i for i, _ in Counter(i for i, _ in targets(data.splits["train"])).most_common(10)}
    share = sum(counts[item] for item in popular) / total
    assert 0.13 < share < 0.22
    head = sum(n for _, n in counts.most_common(len(data.items) // 2))
    assert head < 0.95 * total


def test_some_targets_repeat_and_most_are_seen_in_training(data):
    repeats = [repeat for _, repeat in targets(data.splits["train"])]
    assert 0.05 < np.mean(repeats) < 0.12
    seen = {item for item, _ in targets(data.splits["train"])}
    assert np.mean([item in seen for item, _ in targets(data.splits["test"])]) > 0.85


def test_the_seeker_never_singles_out_the_target(data):
    """Recomputed from the words alone: what was said fits every new target, and at least three
    films not named yet."""
    catalogue = {item.item_id: attributes(item) for item in data.items}
    checked = 0
    for dialogues in data.splits.values():
        for dialogue in dialogues:
            said: set[tuple[tuple[str, str], bool]] = set()
            named: set[str] = set()
            for turn in dialogue.turns:
                text = turn.with_placeholder("|")
                if turn.role == SEEKER:
                    said |= {MEANING[phrase] for phrase in PHRASE.findall(text)}
                    assert not re.search(r"\b(19|20)\d\d\b", text)
                else:
                    fitting = satisfying(catalogue, said) - named
                    new = set(turn.item_ids()) - named
                    assert new <= fitting, (dialogue.dialogue_id, turn.text, said)
                    assert not new or len(fitting) >= 3, (dialogue.dialogue_id, turn.text, said)
                    checked += len(new)
                named.update(turn.item_ids())
    assert checked > 1500


def test_the_seeker_names_no_person_and_not_the_target(data, items):
    people = {
        name
        for item in items.values()
        for field in ("director", "cast")
        for name in item.fields[field].split(", ")
    }
    for dialogue in data.splits["test"]:
        spoken = " ".join(t.with_placeholder("|") for t in dialogue.turns)
        assert not [name for name in people if name in spoken]


def test_held_out_sentences_are_unseen(data):
    assert templates.TRAIN.keys() == templates.HELD_OUT.keys()
    flat = [{s for kind in t.values() for s in kind} for t in (templates.TRAIN, templates.HELD_OUT)]
    assert not flat[0] & flat[1]
    train = skeletons(data.splits["train"])
    for split in ("valid", "test"):
        held_out = skeletons(data.splits[split])
        assert len(held_out) > 30
        assert not train & held_out


def test_films_file_is_one_json_object_a_line():
    from importlib import resources

    text = (resources.files("crs_fast.crs.data.starter") / "films.jsonl").read_text(
        encoding="utf-8"
    )
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["item_id"] for row in rows] == [f"f{n:03d}" for n in range(1, len(rows) + 1)]


def learn(rows, num_items):
    """Naive Bayes from a context's words and films to the target: counts, with smoothing 0.1."""
    features: dict[str, int] = {}
    for words, _ in rows:
        for word in words:
            features.setdefault(word, len(features))
    counts = np.full((num_items, len(features)), 0.1)
    prior = np.full(num_items, 0.1)
    for words, target in rows:
        counts[target, [features[w] for w in words]] += 1
        prior[target] += 1
    table = np.log(counts / counts.sum(1, keepdims=True))
    return features, table, np.log(prior)


def contexts(dialogues, index):
    rows = []
    for dialogue in dialogues:
        words: set[str] = set()
        for turn in dialogue.turns:
            if turn.role == RECOMMENDER:
                rows += [(sorted(words), index[item]) for item in turn.item_ids()]
            else:
                said = re.findall(r"\w+", turn.with_placeholder("|").casefold())
                words |= {*said, *(" ".join(pair) for pair in pairwise(said))}
            words |= set(turn.item_ids())
    return rows


def test_learning_beats_popularity_and_matching_words():
    """The data is learnable: naive Bayes on 3,000 dialogues has three times popularity's R@10,
    while matching words (retrieval by shared words, rarer words counting more) has less."""
    data = load_starter(seed=0, train=3000, valid=0, test=200)
    index = {item.item_id: n for n, item in enumerate(data.items)}
    train = contexts(data.splits["train"], index)
    test = contexts(data.splits["test"], index)
    features, table, prior = learn(train, len(index))
    popular = np.argsort(-prior, kind="stable")[:10]
    text = [set(re.findall(r"\w+", item.text().casefold())) for item in data.items]
    rarity = Counter(word for words in text for word in words)
    hits = Counter()
    for words, target in test:
        score = prior + table[:, [features[w] for w in words if w in features]].sum(1)
        matched = [sum(1 / rarity[w] for w in set(words) & own) for own in text]
        hits["learned"] += target in np.argsort(-score, kind="stable")[:10]
        hits["popular"] += target in popular
        hits["matched"] += target in np.argsort(-np.array(matched), kind="stable")[:10]
    assert hits["learned"] > 3 * hits["popular"]
    assert hits["learned"] > 2 * hits["matched"]


def test_a_wish_is_told_one_modifier_at_a_time(data):
    """No second clause hangs on one that is complete ("... nightmares about a mum"): behind a
    phrase with a clause of its own the next one stands in a sentence of its own."""
    complete = {p for p in MEANING if re.search(r"\b(that|where|with|about|set)\b", p)}
    genres = {p for p in complete if MEANING[p][0][0] == "genre"}
    joined = re.compile(f"({PHRASE.pattern}) ({PHRASE.pattern})")
    turns = [t.with_placeholder("|") for s in data.splits.values() for d in s for t in d.turns]
    pairs = [match.group(2) for text in turns for match in joined.finditer(text)]
    assert len(pairs) > 100
    assert not genres & set(pairs)


def test_a_film_the_seeker_loved_is_the_only_one_offered_again(data):
    """Offering a film again that was just turned down answers nobody."""
    checked = 0
    for dialogue in (d for split in data.splits.values() for d in split):
        loved = {i for turn in dialogue.turns if turn.role == SEEKER for i in turn.item_ids()}
        offered: set[str] = set()
        for turn, answer in pairwise(dialogue.turns):
            if turn.role == RECOMMENDER and answer.role == SEEKER and turn.mentions:
                again = set(turn.item_ids()) & offered
                assert not again
                checked += bool(set(turn.item_ids()) & loved)
                offered |= set(turn.item_ids())
    assert checked > 20
