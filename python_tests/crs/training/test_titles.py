"""Items written as their titles: saved and loaded, answered turn by turn, refused with SIDs."""

import pytest
import torch

from crs_fast.crs.backbones import load_backbone, tiny_backbone
from crs_fast.crs.checkpoint import load_bundle, save_bundle
from crs_fast.crs.control_tokens import CHAT, REC
from crs_fast.crs.data.dialogue import CrsDataset, Item, Turn
from crs_fast.crs.recommender import Recommender
from crs_fast.crs.training.backbone import starting_backbone, tiny_backbone_for
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.mentions import mention_instances, with_mentions
from crs_fast.crs.training.pipeline import SidConfig, train_recommender
from crs_fast.crs.training.titles import with_titles
from crs_fast.crs.training.train import train
from crs_fast.crs.turn import TurnBatch
from crs_fast.decode import SidLogitsProcessor
from python_tests.helpers import sharpen

from ..tiny_system import DIALOGUE, ITEMS, TEXTS, dialogues, system

# Of unequal lengths; one begins another; two can only be told apart by their years.
FILMS = (
    *ITEMS,
    Item("long", "Film 1 and Film 2, more of them", 2001),
    Item("old", "hello there", 1950),
    Item("new", "hello there", 2020),
)
ASK = [{"role": "user", "content": "I like Film 3, any more?"}]
LONGER = [*ASK, {"role": "assistant", "content": "Film 2 (1992) maybe."}, *ASK]
DATASET = CrsDataset("tiny", ITEMS, {"train": tuple(dialogues(6))})


@pytest.fixture(scope="module")
def bundle():
    backbone = tiny_backbone(TEXTS, hidden_size=32, layers=2, heads=2, vocab_size=300)
    bundle = with_titles(backbone, FILMS)
    sharpen(bundle.model)
    return bundle


def test_a_saved_title_model_answers_as_before(bundle, tmp_path):
    backbone = bundle.model, bundle.tokenizer
    path = save_bundle(
        tmp_path / "model", backbone, bundle.trie, bundle.vocab, bundle.control, FILMS
    )
    assert len((path / "crs_fast.json").read_text()) < 2000  # no list of all tokens of each level
    again = load_bundle(path)
    assert again.vocab == bundle.vocab
    assert again.builder.instances(DIALOGUE) == bundle.builder.instances(DIALOGUE)
    for film in FILMS:
        assert again.builder.item(film.item_id) == bundle.builder.item(film.item_id)
    common = dict(mode="rec", num_items=11, max_new_tokens=12)
    one = Recommender(bundle).respond([ASK, LONGER], **common)
    two = Recommender.from_pretrained(path).respond([ASK, LONGER], **common)
    assert one == two
    for turn in one:
        assert {i for i, _, _ in turn.items} == {film.item_id for film in FILMS}
        assert turn.invalid_items == 0
        assert "<" not in turn.text


def test_replies_are_those_of_generate(bundle):
    """After every item, and in small talk: what `generate` writes under the trie, one by one."""
    builder, recommender = bundle.builder, Recommender(bundle)
    context = builder.context(recommender.turns(LONGER))
    contexts = [context] * (len(FILMS) + 1)
    prefixes = [builder.prefix(REC, film.item_id) for film in FILMS] + [builder.prefix(CHAT)]
    turns = TurnBatch(bundle, contexts)
    turns.rank(num_beams=len(FILMS))  # whose keys and values are kept where they fit
    replies = turns.write(prefixes, max_new_tokens=10)
    for prefix, reply in zip(prefixes, replies, strict=True):
        tokens = torch.tensor([[*context, *prefix]])
        out = bundle.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=builder.eos,
            pad_token_id=0,
            suppress_tokens=bundle.control.tokens,
            logits_processor=[SidLogitsProcessor(bundle.trie, bundle.vocab)],
        )[0, tokens.shape[1] :].tolist()
        expected = out[: out.index(builder.eos)] if builder.eos in out else out
        assert reply[: len(expected)] == expected


def test_the_best_title_is_kept_from_the_search(bundle):
    """A reply after the item found is the one that follows without anything kept."""
    recommender = Recommender(bundle)
    for messages in (ASK, LONGER):
        found = recommender.respond(messages, mode="rec", max_new_tokens=10)
        given = recommender.respond(messages, item=found.items[0][0], max_new_tokens=10)
        assert (found.text, found.named) == (given.text, given.named)


def test_text_shows_titles_once(bundle):
    builder = bundle.builder
    written = [*builder.text("see"), *builder.item("long"), *builder.text(" or")]
    written += [*builder.item("i1"), builder.begin, *builder.text(" nothing")]
    shown = {film.item_id: film.display() for film in FILMS}
    text = builder.decode(written, shown)
    assert text == "seeFilm 1 and Film 2, more of them (2001) orFilm 1 (1991) nothing"
    assert builder.sid_fragments(written) == (["long", "i1"], 1)


def test_a_long_context_is_never_cut_inside_a_title(bundle):
    builder = bundle.builder
    turn = Turn("seeker", DIALOGUE.turns[1].text, DIALOGUE.turns[1].mentions)
    whole = builder.context([turn] * 3)
    for budget in range(len(builder.prompt), len(whole)):
        cut = builder.context([turn] * 3, reserve=builder.max_length - budget)
        assert whole[-len(cut) :] == cut
        opens = [t for t in cut if t in (builder.begin, builder.end)]
        assert opens == [builder.begin, builder.end] * (len(opens) // 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(sids=SidConfig()), "sids must be left out with titles"),
        (dict(training=TrainConfig(code_noise=0.1)), "code_noise must be left out with titles"),
    ],
)
def test_what_is_about_sids_is_refused_with_titles(given, message, tmp_path):
    backbone = tiny_backbone(TEXTS, hidden_size=32, layers=1, heads=2, vocab_size=300)
    with pytest.raises(ValueError, match=message):
        train_recommender(DATASET, backbone, tmp_path / "out", titles=True, **given)
    assert not (tmp_path / "out").exists()


def test_every_mention_is_trained_on(monkeypatch, tmp_path):
    model, tokenizer, trie, vocab, control, builder = system()
    groups = []
    monkeypatch.setattr(
        "crs_fast.crs.training.train.train_instances",
        lambda model, instances, **settings: groups.append(instances),
    )
    for every in (False, True):
        config = TrainConfig(every_mention=every)
        parts = ((model, tokenizer), [DIALOGUE], trie, vocab, control)
        train(*parts, output_dir=tmp_path, config=config, progress=False)
    assert groups[0] == [builder.instances(DIALOGUE)]
    assert groups[1] == [with_mentions(builder, DIALOGUE)]
    assert len(groups[1][0]) == len(groups[0][0]) + len(mention_instances(builder, DIALOGUE))


def test_a_tiny_backbone_is_made_for_its_data():
    def encode(words):
        return torch.randn(len(words), 16, generator=torch.Generator().manual_seed(0))

    one, tokenizer = starting_backbone("tiny", DATASET, seed=3, encode=encode)
    two, _ = tiny_backbone_for(DATASET, seed=3, encode=encode)
    other, _ = tiny_backbone_for(DATASET, seed=4, encode=encode, layers=1)
    assert len(tokenizer("then see Film")["input_ids"]) < 5  # its own words
    weights = [m.get_input_embeddings().weight for m in (one, two)]
    assert torch.equal(*weights)
    assert (len(one.model.layers), len(other.model.layers)) == (2, 1)
    with pytest.raises(ValueError, match="must be a path or a hub name with qlora"):
        starting_backbone("tiny", DATASET, four_bit=True)
    with pytest.raises(ValueError, match="a tiny model is made from texts, see tiny_backbone"):
        load_backbone("tiny")
