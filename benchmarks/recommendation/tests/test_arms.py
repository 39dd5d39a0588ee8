"""Every arm on a tiny model: what it is trained on, and how its answers are found."""

import math
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from benchmarks.recommendation import reproduce
from benchmarks.recommendation.arms import ARMS, Setting, choose_arms, generative, retrieval
from benchmarks.recommendation.arms.align import alignment_instances
from benchmarks.recommendation.arms.generative import extended
from benchmarks.recommendation.arms.joint import join
from benchmarks.recommendation.arms.retrieval import RetrievalArm, RetrievalHead
from benchmarks.recommendation.arms.setting import ORACLE
from benchmarks.recommendation.cold_start import hold_out
from crs_fast.crs.backbones import tiny_backbone
from crs_fast.crs.data.dialogue import CrsDataset, Dialogue, Item, Mention, Turn
from crs_fast.crs.evaluation.predict import predict, predict_in_words
from crs_fast.crs.sequence import GCRS, Instance, Layout
from crs_fast.crs.training.co_mention import co_mention_embeddings, fill_unnamed
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.mentions import mention_instances, with_mentions
from crs_fast.crs.training.packing import collate_separate, label_logits, pack, read_after, separate
from crs_fast.crs.training.pipeline import Catalogue, SidConfig, make_catalogue
from crs_fast.crs.training.titles import title_tokens, with_titles
from crs_fast.crs.training.train import train_instances
from crs_fast.quantize import build_sids
from python_tests.crs.tiny_system import DIALOGUE, ITEMS, TEXTS, dialogues

TRAIN = tuple(
    replace(d, turns=(*d.turns[:3], replace(d.turns[3], intent="thank")), liked={"i1": "liked"})
    for d in dialogues(16)
)
DATASET = CrsDataset("tiny", ITEMS, {"train": TRAIN, "test": (DIALOGUE,)})
TRAINING = TrainConfig(
    max_tokens=1500, tokens_per_batch=300, lora_rank=None, learning_rate=3e-3, logging_steps=1
)


def embeddings(n=8):
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(0))


OTHER = CrsDataset(
    "other",
    (Item("x", "Film 1", 1991), Item("y", "Elsewhere", 2001)),
    {
        "train": (
            Dialogue(
                "o",
                (
                    Turn("seeker", "Film 1?", (Mention("x", 0, 6),)),
                    Turn("recommender", "no, Elsewhere", (Mention("y", 4, 13),)),
                ),
                {"x": "liked"},
            ),
        )
    },
)


def joint(signals, shape=None):
    both = join(DATASET, OTHER)
    levels = shape[0] if shape else 3
    quantizer, sids, report = build_sids(embeddings(9), levels, 4, "rqkmeans")
    return both, Catalogue(embeddings(9), sids, quantizer, report)


def test_join():
    both = join(DATASET, OTHER)
    assert [item.item_id for item in both.items] == [*(i.item_id for i in ITEMS), "other:y"]
    (dialogue,) = both.splits["first"]
    assert [t.item_ids() for t in dialogue.turns] == [["i1"], ["other:y"]]
    assert dialogue.liked == {"i1": "liked"}
    assert both.splits["train"] == (dialogue, *DATASET.splits["train"])


def test_joint_items_are_known_by_both_data_sets_dialogues(monkeypatch, tmp_path):
    seen = {}

    def spy(dataset, config, held, texts):
        assert texts.shape == (len(dataset.items), 384)
        seen[config.signals] = dataset
        return joint(config.signals)[1]

    monkeypatch.setattr(reproduce, "load_dataset", lambda *args: OTHER)
    monkeypatch.setattr(reproduce, "make_catalogue", spy)
    encode = Mock(side_effect=reproduce.encode_texts)
    reproduce._encoded.cache_clear()  # of other tests with the same items
    monkeypatch.setattr(reproduce, "encode_texts", encode)
    sids = reproduce.SidConfig(method="rqkmeans")
    plan = reproduce.Plan("tiny", "tiny", ("redial-first",), 100, sids=sids)
    setting = reproduce.make_setting(plan, DATASET, out=tmp_path)
    both, _ = setting.joint(("text", "co-mention"), None)
    assert setting.joint(("text", "co-mention"), None)[0] is both
    setting.joint(("text",), (2, 8))
    assert list(seen) == [("text", "co-mention"), ("text",)]
    named = seen["text", "co-mention"].splits["train"]
    assert {d.dialogue_id for d in named} == {"o", *(d.dialogue_id for d in TRAIN)}
    found = sorted(folder.name for folder in (tmp_path / "catalogue").iterdir())
    assert found == ["joint-text+co-mention", "joint-text-2x8"]
    assert encode.call_count == 1


@pytest.fixture(scope="module")
def setting():
    def catalogue(signals, shape):
        # Eight items fill no 64 codes: the levels are as asked for, of 4 codes.
        levels = shape[0] if shape else 3
        quantizer, sids, report = build_sids(embeddings(), levels, 4, "rqkmeans")
        return Catalogue(embeddings(), sids, quantizer, report)

    return Setting(
        DATASET,
        catalogue,
        lambda seed: tiny_backbone(TEXTS, hidden_size=32, heads=2, layers=2, vocab_size=300),
        TRAINING,
        joint,
        pretrained=False,
        max_new_tokens=6,
    )


COMBINED = choose_arms(
    "co-mention+mentions+fast-rows,retrieval+co-mention+mentions+fast-rows,redial-first+sids-5x64"
)


@pytest.mark.parametrize("arm", [*ARMS.values(), *COMBINED], ids=lambda arm: arm.name)
def test_every_arm_ranks_every_target_and_filters(arm, setting, tmp_path):
    fitted = arm.fit(setting, tmp_path, TRAINING)
    assert (fitted.training is not None) == arm.trains
    if fitted.training is not None:
        # Batches differ in size: a budget is kept to within one.
        assert abs(fitted.training.losses[-1]["tokens"] - 1500) <= 300
    answers = fitted.answer(DATASET.splits["test"], True)
    # Where an arm writes SIDs in words, its replies are scored: after them the gold ones too.
    words = getattr(arm, "layout", GCRS).words and arm.trains and not isinstance(arm, RetrievalArm)
    scored = words and not getattr(arm, "titles", False)
    for way, predictions in answers.items():
        wrote = all(p.reply is not None for p in predictions)
        assert all((p.gold_nll is not None) == bool(scored and wrote) for p in predictions)
        assert not scored or wrote or "own words" in answers
        assert [(p.dialogue, p.turn) for p in predictions] == [(0, 0), (0, 2), (0, 4), (0, 6)]
        for p in predictions:
            assert p.invalid_items == 0
            if not p.gold_items or way == "own words" or arm.name == "copy":
                continue
            assert sorted(p.ranking) == sorted(i.item_id for i in ITEMS)
            assert set(p.without_named()) == set(p.ranking) - set(p.named)
            assert (p.scores is not None) == arm.trains
            if arm.trains:
                assert p.scores == sorted(p.scores, reverse=True)
                total = sum(map(math.exp, p.scores))
                # The head spreads 1 over the items, a language model part of it.
                assert total == pytest.approx(1) if isinstance(arm, RetrievalArm) else total < 1


LAYOUTS = {
    "gcrs": (GCRS, "<MODE=REC><BOI>sid<EOI><RESP>", "<MODE=CHAT><RESP>", "<MODE=REC><BOI>"),
    "resp": (Layout(mode=False, item=False), "", "", "<BOI>"),
    "mode-resp": (
        Layout(item=False), "<MODE=REC><RESP>", "<MODE=CHAT><RESP>", "<MODE=REC><RESP><BOI>",
    ),
    "sid-only": (Layout(mode=False, words=False), "<BOI>sid<EOI>", "", "<BOI>"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_write_what_they_say(name, setting):
    layout, rec, chat, opening = LAYOUTS[name]
    assert ARMS[name].layout == layout
    builder = extended(setting, TRAINING, setting.catalogue(("text",), None), layout).builder
    codes = [
        f"<{'abc'[l]}_{c}>" for l, c in enumerate(setting.catalogue((), None).sids[5].tolist())
    ]
    shown = {
        "rec": builder.prefix("rec", "i5"),
        "chat": builder.prefix("chat"),
        "opening": builder.prefix("rec"),
    }
    text = {k: "".join(builder.tokenizer.convert_ids_to_tokens(v)) for k, v in shown.items()}
    assert text == {"rec": rec.replace("sid", "".join(codes)), "chat": chat, "opening": opening}
    instances = builder.instances(DIALOGUE)
    targets = [(i.turn_index, i.item_id) for i in instances]
    multiple = [(2, "i2"), (2, "i3"), (2, "i4")] if layout.item else [(2, "i2")]
    if layout.words:
        assert targets == [(0, None), *multiple, (4, None), (6, "i5")]
    else:
        assert targets == [*multiple, (6, "i5")]
        assert [list(i.response) for i in instances][-1] == [*shown["rec"], builder.eos]
    assert all(i.response[-1] == builder.eos for i in instances)


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_read_after_equals_one_forward_a_context(setting, architecture):
    """Bloom takes no tree, so its contexts are read one by one."""
    bundle = extended(setting, TRAINING, setting.catalogue(("text",), None), GCRS)
    model = bundle.model
    if architecture == "bloom":
        from transformers import BloomConfig, BloomForCausalLM

        shape = dict(vocab_size=len(bundle.tokenizer), hidden_size=32, n_layer=2, n_head=2)
        torch.manual_seed(0)
        model = BloomForCausalLM(BloomConfig(**shape)).eval()
    turns = DIALOGUE.turns
    contexts = [bundle.builder.context(turns[:n]) for n in (0, 2, 4, 6)]
    contexts.append(bundle.builder.context(dialogues(1)[0].turns[:3]))
    got = read_after(model, contexts, [0, 0, 0, 0, 1], lambda x: x, 10_000)
    for row, context in zip(got, contexts, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([context])).logits[0, -1]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)


def test_modes_are_the_choice_after_the_context(setting):
    bundle = extended(setting, TRAINING, setting.catalogue(("text",), None), GCRS)
    for p in predict(bundle, (DIALOGUE,), replies=False, progress=False):
        context = bundle.builder.context(DIALOGUE.turns[: p.turn])
        with torch.no_grad():
            logits = bundle.model(torch.tensor([context])).logits[0, -1]
        pair = logits[[bundle.control.chat, bundle.control.rec]].softmax(0)
        assert p.rec_probability == pytest.approx(float(pair[1]), abs=1e-5)


def test_own_words_rank_where_the_model_says_an_item(setting):
    """A model made to say <BOI> at once ranks as the forced search does; one that never says it
    ranks nothing and chooses CHAT."""
    layout = Layout(mode=False, item=False)
    bundle = extended(setting, TRAINING, setting.catalogue(("text",), None), layout)
    # The pushed token must not count in a score.
    common = dict(normalize="level", max_new_tokens=6, progress=False)
    forced = predict(bundle, (DIALOGUE,), replies=False, **common)
    head = bundle.model.get_output_embeddings()
    forward = head.forward
    for push, chooses in ((40.0, "rec"), (-40.0, "chat")):

        def pushed(hidden, push=push):
            logits = forward(hidden).clone()
            logits[..., bundle.vocab.begin] += push
            return logits

        head.forward = pushed
        try:
            own = predict_in_words(bundle, (DIALOGUE,), **common)
        finally:
            del head.forward
        assert {p.mode for p in own} == {chooses}
        for one, two in zip(own, forced, strict=True):
            expected = two.ranking if chooses == "rec" else None
            assert one.ranking == expected
            assert (one.reply_items != []) == (chooses == "rec")


def test_titles_are_ranked_by_their_own_probability(setting):
    bundle = with_titles(setting.backbone(0), ITEMS)
    (p, *_) = [
        p
        for p in predict(bundle, (DIALOGUE,), replies=False, progress=False)
        if p.gold_items == ["i5"]
    ]
    start = [*bundle.builder.context(DIALOGUE.turns[: p.turn]), *bundle.builder.prefix("rec")]
    scores = {}
    for item in ITEMS:
        title = [*bundle.builder.item(item.item_id)[1:]]  # the title and <EOI>
        with torch.no_grad():
            logits = bundle.model(torch.tensor([start + title])).logits[0].log_softmax(-1)
        at = range(len(start) - 1, len(start) + len(title) - 1)
        scores[item.item_id] = sum(float(logits[i, t]) for i, t in zip(at, title, strict=True))
    assert p.ranking == sorted(scores, key=scores.__getitem__, reverse=True)


def test_like_titles_get_their_year(setting):
    _, tokenizer = setting.backbone(0)
    items = (Item("a", "Heat", 1995), Item("b", "heat", 1972), Item("c", "Ronin", 1998))
    titles = {k: tokenizer.decode(v) for k, v in title_tokens(items, tokenizer).items()}
    assert titles == {"a": " Heat (1995)", "b": " heat (1972)", "c": " Ronin"}


def test_retrieval_head_scores_every_item(setting):
    model = RetrievalHead(setting.backbone(0)[0], embeddings())
    head = model.head
    instances = [Instance(0, "i2", (5, 6, 7), (2,)), Instance(0, "i5", (8, 9), (5,))]
    logits, labels = label_logits(model, collate_separate(separate(instances)))
    assert logits.shape == (2, 8)
    assert labels.tolist() == [2, 5]
    states = model.backbone(torch.tensor([[5, 6, 7]])).last_hidden_state[0, -1]
    cosine = torch.nn.functional.cosine_similarity(
        head.query(states)[None], head.item(head.known) + head.rows
    )
    torch.testing.assert_close(logits[0], cosine * 20 + head.popularity, rtol=1e-4, atol=1e-4)


def test_items_held_out_are_no_wrong_answers(setting):
    model = RetrievalHead(setting.backbone(0)[0], embeddings(), held=[3, 6])
    batch = collate_separate(separate([Instance(0, "i2", (5, 6, 7), (2,))]))
    training, answering = (label_logits(model.train(on), batch)[0][0] for on in (True, False))
    assert training.isinf().nonzero().flatten().tolist() == [3, 6]
    assert answering.isfinite().all()


HELD_OUT_FROM = ("gcrs", "align", "mentions", "retrieval", "fine-intents", "redial-first")


@pytest.mark.parametrize("name", ["gcrs", "resp", "titles", "retrieval"])
def test_answers_in_bf16_are_nearly_those_in_float32(name, setting, tmp_path):
    """Of one training: a rounded score may swap neighbours, and no more."""
    ranks = []
    for there, bf16 in (("one", False), ("two", True)):
        fitted = ARMS[name].fit(
            replace(setting, bf16_answers=bf16), tmp_path / there, replace(TRAINING, save_steps=0)
        )
        model = fitted.training.model
        model = getattr(model, "backbone", model)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16 if bf16 else torch.float32}
        answers = fitted.answer((DIALOGUE,), True)
        ranks.append([p.ranking for p in answers[""] if p.gold_items])
    for exact, rounded in zip(*ranks, strict=True):
        assert set(exact) == set(rounded)
        assert all(abs(rounded.index(item) - place) <= 1 for place, item in enumerate(exact))


@pytest.mark.parametrize("name", HELD_OUT_FROM)
def test_nothing_is_trained_on_items_held_out(name, setting, tmp_path, monkeypatch):
    """Neither as targets nor in contexts, whatever an arm reads beside its own dialogues."""
    cut, held = hold_out(DATASET, 0.5)
    untold = [replace(t, intent=None) for d in cut.splits["train"] for t in d.turns]
    train = (Dialogue("all", tuple(untold)),)
    valid = tuple(replace(d, dialogue_id=f"v{d.dialogue_id}") for d in TRAIN)
    cut = replace(cut, splits={"train": train, "valid": valid, "test": (DIALOGUE,)})
    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "load_dataset", lambda *args: DATASET)
        patch.setattr(reproduce, "make_catalogue", lambda *args, **kw: setting.catalogue((), None))
        plan = reproduce.Plan("tiny", "tiny", (name,), 100)
        joint = reproduce.make_setting(plan, cut, held).joint
        joint(("text",), None)
    here = replace(setting, dataset=cut, held=held, joint=joint)
    builder = extended(here, TRAINING, here.catalogue(("text",), None), GCRS).builder
    sids = [builder.item(item)[1:-1] for item in held]
    read = []

    def spy(model, groups, **settings):
        read.extend(i for group in groups for i in group)
        return train_instances(model, groups, **settings)

    for module in (generative, retrieval):
        monkeypatch.setattr(module, "train_instances", spy)
    ARMS[name].fit(here, tmp_path, TRAINING)
    assert read
    for i in read:
        assert i.item_id not in held
        tokens = [*i.context, *i.response]
        assert not any(tokens[k : k + 3] == sid for k in range(len(tokens)) for sid in sids)


def test_alignment_says_what_an_item_is(setting):
    builder = extended(setting, TRAINING, setting.catalogue(("text",), None), GCRS).builder
    (to_sid,), (to_title,) = alignment_instances(builder, ITEMS[:1])
    assert list(to_sid.response) == [*builder.item("i0"), builder.eos]
    assert builder.decode(to_sid.context, {}).startswith("title: Film 0 | year: 1990")
    assert list(to_title.context[:5]) == builder.item("i0")
    assert builder.decode(to_title.response[:-1], {}) == "Film 0 (1990)"


@pytest.mark.parametrize("titles", [False, True])
def test_every_located_mention_is_a_target(setting, titles):
    sids = setting.catalogue(("text",), None)
    bundle = (
        with_titles(setting.backbone(0), ITEMS)
        if titles
        else extended(setting, TRAINING, sids, GCRS)
    )
    builder = bundle.builder
    found = mention_instances(builder, DIALOGUE)
    assert [(i.turn_index, i.item_id) for i in found] == [
        (1, "i1"),
        (2, "i2"),
        (2, "i3"),
        (6, "i5"),
    ]
    whole = [token for turn in builder.turns(DIALOGUE.turns) for token in turn]
    for i in found:
        assert list(i.response) == builder.item(i.item_id)[1:]
        assert whole[: len(i.context) + len(i.response)] == [*i.context, *i.response]
    # On the trunk that is there already a mention costs its own tokens; the last one, in the last
    # answer, makes the trunk longer.
    alone, both = builder.instances(DIALOGUE), with_mentions(builder, DIALOGUE)
    assert both == alone + found
    assert [len(p.branches) for p in pack(both[:-1])] == [len(both) - 1]
    assert sum(map(len, pack(both[:-1]))) - sum(map(len, pack(alone))) == sum(
        len(i.response) for i in found[:-1]
    )


def test_mentions_end_where_the_dialogue_outgrows_its_room(setting):
    config = replace(TRAINING, max_length=60)
    builder = extended(setting, config, setting.catalogue(("text",), None), GCRS).builder
    found = mention_instances(builder, DIALOGUE)
    assert 0 < len(found) < 4
    assert all(len(i.context) + len(i.response) <= 60 for i in found)


def test_co_mentioned_items_are_near():
    x = co_mention_embeddings(ITEMS, dialogues(8), dim=4)
    # Dialogue i names items i and i + 3 (mod 8), nothing else.
    near = [float(x[i] @ x[(i + 6) % 8]) for i in range(8)]  # share the neighbour i + 3
    far = [float(x[i] @ x[(i + 4) % 8]) for i in range(8)]
    assert sum(near) > sum(far)
    assert torch.equal(x, co_mention_embeddings(ITEMS, dialogues(8), dim=4))
    assert not co_mention_embeddings(ITEMS, [], dim=4).any()


def test_items_without_co_mentions_get_their_neighbours():
    vectors = torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, 0]])
    texts = torch.tensor([[2.0, 0, 0], [0, 2, 0], [3, 4, 0], [-1, 0, 1]])
    filled = fill_unnamed(vectors, texts)
    torch.testing.assert_close(filled[2], torch.tensor([0.6, 0.8]))
    assert torch.equal(filled[:2], vectors[:2])
    assert not filled[3].any()  # like nothing that is known
    assert fill_unnamed(vectors, texts, neighbours=1)[2].tolist() == [0, 1]
    assert not fill_unnamed(torch.zeros(4, 2), texts).any()
    assert torch.equal(fill_unnamed(vectors[:2], texts[:2]), vectors[:2])


def test_what_sids_are_made_of():
    """Of 8 items the dialogues name 4, two by two."""
    sids = SidConfig(2, 4, "rqkmeans")
    named = replace(DATASET, splits={"train": tuple(dialogues(2))})
    text, plain, filled = (
        make_catalogue(named, replace(sids, signals=signals)).embeddings
        for signals in (("text",), ("text", "co-mention"), ("text", "co-mention-filled"))
    )
    assert torch.equal(plain[:, : text.shape[1]], text)
    rest = plain[:, text.shape[1] :]
    assert rest.any(1).sum() == 4
    assert torch.equal(filled[:, text.shape[1] :], fill_unnamed(rest, text))
    with pytest.raises(ValueError, match="signals must be among"):
        make_catalogue(named, replace(sids, signals=("text", "magic")))


def test_unknown_arm():
    with pytest.raises(ValueError, match="arms must be among"):
        choose_arms("gcrs,magic")
    assert [arm.name for arm in choose_arms("resp,gcrs,resp")] == ["resp", "gcrs"]


def test_switches_are_lent():
    both, head = choose_arms("co-mention+mentions+fast-rows,retrieval+co-mention+mentions")
    assert both.signals == head.signals == ("text", "co-mention")
    assert both.instances == head.instances == with_mentions
    assert (both.embedding_lr_ratio, head.embedding_lr_ratio) == (10, 1)
    assert both.name == "co-mention+mentions+fast-rows"
    assert both.about == "gcrs, SIDs of text and co-mentions, and mentions, and fast-rows"
    (joint,) = choose_arms("redial-first+resp")
    assert joint.joint
    assert joint.layout == ARMS["resp"].layout
    refused = (
        "retrieval+align copy+mentions gcrs+gcrs mentions+mentions copy+copy popularity+copy "
        "gcrs+popularity gcrs+copy+copy gcrs+copy+mentions gcrs+copy+copy-odds copy+copy-odds"
    )
    for name in refused.split():
        with pytest.raises(ValueError, match="must have a place for"):
            choose_arms(name)
    with pytest.raises(ValueError, match="arms must be among"):
        choose_arms("gcrs+magic")
    with pytest.raises(ValueError, match="arms must be among"):
        choose_arms("copy-odds")
    for name in ("titles+co-mention", "titles+sids-3x64", "align+titles", "redial-first+titles"):
        with pytest.raises(ValueError, match=r"must be .* with titles"):
            choose_arms(name)
    assert choose_arms("titles+mentions")[0].titles


def test_an_arm_fused_with_copy_brings_its_base():
    names = [arm.name for arm in choose_arms("gcrs+copy,resp,mentions+co-mention+copy,gcrs")]
    expected = ["gcrs", "gcrs+copy", "resp", "mentions+co-mention", "mentions+co-mention+copy"]
    assert names == expected
    both = choose_arms("gcrs+copy,gcrs+copy-odds")
    assert [arm.name for arm in both] == ["gcrs", "gcrs+copy", "gcrs+copy-odds"]
    (_, oracle) = choose_arms("oracle-liked+copy")
    assert oracle.about.startswith(ORACLE)


def test_two_fits_with_one_seed_give_the_same_ranks(setting, tmp_path):
    config = replace(TRAINING, seed=3)
    ranks = [
        [p.ranking for p in ARMS["gcrs"].fit(setting, tmp_path / str(i), config)
         .answer((DIALOGUE,), False)[""]]
        for i in range(2)
    ]  # fmt: skip
    assert ranks[0] == ranks[1]


def test_lora_serves_the_generative_arms(setting, tmp_path):
    config = replace(TRAINING, lora_rank=2)
    (answer,) = ARMS["gcrs"].fit(setting, tmp_path, config).answer((DIALOGUE,), True).values()
    assert len(answer[1].ranking) == 8
