"""Intents finer than two: where labels come from, which tokens they become, how they are scored."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from benchmarks.recommendation.arms import ARMS, Setting
from benchmarks.recommendation.arms.intents import fine_modes, mode_instances
from benchmarks.recommendation.results import write_results
from crs_fast.cli import main
from crs_fast.crs.checkpoint import Bundle, load_bundle, save_bundle
from crs_fast.crs.control_tokens import ControlTokens
from crs_fast.crs.data import load_dataset, write_dialogues, write_items
from crs_fast.crs.data.dialogue import (
    OTHER,
    RECOMMENDER,
    SEEKER,
    CrsDataset,
    Dialogue,
    Turn,
    merge_turns,
)
from crs_fast.crs.data.intents import read_iard, with_intents
from crs_fast.crs.evaluation.predict import predict
from crs_fast.crs.evaluation.predictions import Prediction, blank_predictions, write_predictions
from crs_fast.crs.evaluation.reply_perplexity import note_gold_nll
from crs_fast.crs.evaluation.report import intent_table
from crs_fast.crs.evaluation.score import intent_figures
from crs_fast.crs.sequence import SequenceBuilder, trie_sids
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.packing import collate_separate, label_logits, separate
from crs_fast.crs.training.pipeline import Catalogue
from crs_fast.quantize import build_sids
from python_tests.crs.tiny_system import DIALOGUE, ITEMS, TEXTS, dialogues, system, tiny_backbone

FINE = ("chat:explain", "chat:greet", "rec:explain")
INTENTS = {0: "greet", 2: "explain", 4: "ask"}  # of DIALOGUE's turns; turn 6 has none


def told(dialogue, intents):
    turns = [replace(turn, intent=intents.get(i)) for i, turn in enumerate(dialogue.turns)]
    return replace(dialogue, turns=tuple(turns))


@pytest.fixture(scope="module")
def fine():
    model, tokenizer, trie, vocab, _, _ = system()
    control = ControlTokens.extend(tokenizer, model, FINE)
    builder = SequenceBuilder(tokenizer, vocab, control, trie_sids(trie))
    return Bundle(model, tokenizer, trie, vocab, control, ITEMS, builder, None)


def test_tokens(fine):
    control = fine.control
    names = fine.tokenizer.convert_ids_to_tokens(control.tokens)
    assert names == [
        "<RESP>", "<MODE=CHAT>", "<MODE=REC>",
        "<MODE=CHAT:explain>", "<MODE=CHAT:greet>", "<MODE=REC:explain>",
    ]  # fmt: skip
    assert list(control.modes) == ["chat", "rec", *FINE]
    assert max(control.tokens) < len(fine.model.get_input_embeddings().weight)
    for wrong in ("explain", "rec:", "talk:greet", "rec"):
        with pytest.raises(ValueError, match=f"fine must hold names .*got '{wrong}'"):
            ControlTokens.extend(fine.tokenizer, None, [wrong])


def test_modes_and_intents_are_sums(fine):
    p = torch.tensor([[0.1, 0.2, 0.15, 0.3, 0.25], [0.4, 0.05, 0.1, 0.35, 0.1]])
    chances = fine.control.rec_probability(p.log())
    torch.testing.assert_close(chances, torch.tensor([0.2 + 0.25, 0.05 + 0.1]))
    # explain: .15 + .25 against greet: .3; then .1 + .1 against .35.
    assert fine.control.likeliest_intents(p.log()) == ["explain", "greet"]
    assert ControlTokens(0, 1, 2).likeliest_intents(p[:, :2].log()) == [None, None]


def test_labelled_turns_write_the_finer_token(fine):
    builder, modes = fine.builder, fine.control.modes
    found = [(i.turn_index, i.response) for i in builder.instances(told(DIALOGUE, INTENTS))]
    first = {turn: response[0] for turn, response in found}
    # "ask" has no token, and turn 6 no label.
    names = {0: "chat:greet", 2: "rec:explain", 4: "chat", 6: "rec"}
    assert first == {turn: modes[name] for turn, name in names.items()}
    plain = {i.turn_index: i for i in builder.instances(DIALOGUE)}
    assert all(response[1:] == plain[turn].response[1:] for turn, response in found if turn != 2)
    assert builder.prefix("rec:explain") == [modes["rec:explain"], builder.begin]
    with pytest.raises(ValueError, match="mode must be"):
        builder.prefix("chat:explain", "i1")
    with pytest.raises(ValueError, match="mode must be"):
        builder.prefix("rec:greet")


def test_mode_instances_teach_nothing_else(fine):
    dialogue = told(DIALOGUE, INTENTS)
    found = mode_instances(fine.builder, dialogue)
    assert [i.turn_index for i in found] == [0, 2, 4]  # one a turn, whatever its targets
    assert {len(i.response) for i in found} == {1}
    _, labels = label_logits(fine.model, collate_separate(separate(found)))
    assert set(labels.tolist()) <= set(fine.control.modes.values())
    assert fine_modes([dialogue]) == ("chat:ask", "chat:greet", "rec:explain")


def test_noted_intents_are_the_choice_after_the_context(fine):
    predictions = predict(fine, [DIALOGUE], replies=False, progress=False)
    ids = list(fine.control.modes.values())
    for p in predictions:
        context = fine.builder.context(DIALOGUE.turns[: p.turn])
        with torch.no_grad():
            _, rec, chat_e, chat_g, rec_e = (
                fine.model(torch.tensor([context])).logits[0, -1, ids].softmax(0).tolist()
            )
        assert p.rec_probability == pytest.approx(rec + rec_e, abs=1e-5)
        assert p.intent == ("explain" if chat_e + rec_e > chat_g else "greet")


def predicted(*pairs):
    return [
        Prediction(0, i, "d", [], [], gold_intent=gold, intent=own)
        for i, (gold, own) in enumerate(pairs)
    ]


def test_intent_figures_by_hand():
    """a: 2 gold, 1 chosen, 1 right, F1 2/3; b: 1, 2, 1, 2/3; c: never gold, chosen once, 0."""
    pairs = [("a", "a"), ("a", "b"), ("b", "b"), ("a", None), (None, "a"), ("d", "c")]
    figures = intent_figures(predicted(*pairs))
    assert figures == {
        "n": 4,
        "intents": 4,
        "accuracy": 0.5,
        "macro f1": pytest.approx((2 / 3 + 2 / 3 + 0 + 0) / 4),
        "most frequent": 0.5,
    }
    assert intent_figures(predicted(("a", None))) == intent_figures([]) == {}
    assert "| 4 | 4 | 50.0 | 33.3 | 50.0 |" in intent_table({"x": figures})


def test_tables_show_intents(tmp_path, capsys):
    """By `score`, from files alone, and by an experiment's results."""
    test = (told(DIALOGUE, INTENTS),)
    write_items(tmp_path / "items.jsonl", ITEMS)
    for split in ("train", "test"):
        write_dialogues(tmp_path / f"{split}.jsonl", test)
    predictions = blank_predictions(test)
    for p in predictions:
        p.intent, p.ranking = "explain", ["i1"]
    folder = tmp_path / "out" / "runs" / "fine-intents" / "seed0"
    folder.mkdir(parents=True)
    (folder / "done.json").write_text('{"seconds": {}}')
    write_predictions(folder / "predictions.jsonl", predictions)
    assert main(["score", str(folder / "predictions.jsonl"), "--data", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    figures = json.loads(printed.splitlines()[-1])["intents"]
    assert (figures["n"], figures["accuracy"]) == (3, pytest.approx(1 / 3))
    assert "### Intent" in printed
    results = write_results(tmp_path / "out", load_dataset(tmp_path))
    assert results["intents"] == {"fine-intents": figures}
    assert "| fine-intents | 3 | 3 | 33.3 |" in (tmp_path / "out" / "results.md").read_text()


def test_own_perplexity_takes_the_own_intent(fine):
    """Not the gold one, which would tell the model what to say."""
    dialogue = told(DIALOGUE, INTENTS)
    predictions = blank_predictions([dialogue])
    wrong = []
    for intent in (None, "explain"):
        for p in predictions:
            p.mode, p.intent = "chat", intent
        note_gold_nll(fine, [dialogue], predictions, progress=False)
        wrong.append([p.gold_nll for p in predictions])
    plain, explaining = wrong
    for one, two in zip(plain, explaining, strict=True):
        assert one["gold"] == pytest.approx(two["gold"])
        assert one["own"] != pytest.approx(two["own"])


def test_a_bundle_keeps_its_modes(fine, tmp_path):
    parts = (fine.model, fine.tokenizer), fine.trie, fine.vocab, fine.control, ITEMS
    back = load_bundle(save_bundle(tmp_path / "model", *parts))
    assert back.control == fine.control
    assert back.builder.prefix("rec:explain") == fine.builder.prefix("rec:explain")


@pytest.fixture(scope="module")
def setting():
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    quantizer, sids, report = build_sids(x, 3, 4, "rqkmeans")
    return Setting(
        CrsDataset("mine", ITEMS, {"train": tuple(dialogues(16)), "test": ()}),
        lambda signals, shape: Catalogue(x, sids, quantizer, report),
        lambda seed: tiny_backbone(TEXTS, hidden_size=32, heads=2, layers=2, vocab_size=300),
        TrainConfig(),
        pretrained=False,
        max_new_tokens=6,
    )


@pytest.mark.parametrize("taught_by", ["train", "valid"])
def test_the_arm_learns_intents(setting, tmp_path, taught_by):
    """Every second turn recommends, the others answer thanks: the text tells which."""
    labelled = tuple(told(d, {1: "explain", 3: "greet"}) for d in dialogues(16))
    plain = setting.dataset.splits["train"]
    teachers = tuple(replace(d, dialogue_id=f"v{d.dialogue_id}") for d in labelled)
    splits = {
        "train": {"train": labelled, "test": labelled[:3]},
        "valid": {"train": plain, "valid": teachers, "test": labelled[:3]},
    }[taught_by]
    here = replace(setting, dataset=replace(setting.dataset, splits=splits))
    config = TrainConfig(
        epochs=30, max_tokens=20_000, tokens_per_batch=300, lora_rank=None, learning_rate=2e-2
    )
    fitted = ARMS["fine-intents"].fit(here, tmp_path, config)
    (predictions,) = fitted.answer(splits["test"], False).values()
    assert intent_figures(predictions)["accuracy"] == 1.0
    assert [p.mode for p in predictions] == ["rec", "chat"] * 3
    assert all(len(p.ranking) == 8 for p in predictions if p.gold_items)


def test_data_without_intents_are_refused(setting, tmp_path):
    with pytest.raises(ValueError, match=r"fine-intents: .* \(got no intent in 'mine'\)"):
        ARMS["fine-intents"].fit(setting, tmp_path, TrainConfig())
    # Answers on validation must not come from a model that has read its labels.
    splits = {**setting.dataset.splits, "valid": tuple(told(d, INTENTS) for d in dialogues(4))}
    labelled = replace(setting, dataset=replace(setting.dataset, splits=splits), split="valid")
    with pytest.raises(ValueError, match=r"fine-intents: .* unless that is answered"):
        ARMS["fine-intents"].fit(labelled, tmp_path, TrainConfig())


def test_merged_turns_take_the_first_intent_that_says_something():
    def merged(*intents):
        (turn,) = merge_turns([Turn(RECOMMENDER, "x", intent=i) for i in intents])
        return turn.intent

    assert merged(OTHER, "ask", "greet") == "ask"
    assert merged(None, OTHER, None) == OTHER
    assert merged("greet", OTHER) == "greet"
    assert merged(None, None) is None


def utterance(role, text, *labels):
    return {"role": role, "utterance_text": text, "top-level intent/action": list(labels)}


def test_iard_labels_find_their_dialogue(tmp_path):
    said = {
        "S1": utterance("seeker", "something good", "AskForRec"),
        "R2": utterance("recommender", "Hello!...Try @7 <Heat  (1995)> ", "OTH", "Recommend"),
        "R3": utterance("recommender", "ok", "OTH"),
        "S4": utterance("seeker", "no", "GiveFeedback"),
        "R5": utterance("recommender", "bye", "OTH"),
    }
    path = tmp_path / "umap2020_IARD_Cai.json"
    path.write_text(json.dumps({"1": {"dialogue_info": said}}))
    labelled = read_iard(path)

    def dialogue(*texts):
        roles = [RECOMMENDER, SEEKER] * len(texts)
        return Dialogue("d", tuple(Turn(r, t) for r, t in zip(roles, texts, strict=False)))

    same = dialogue("Hello! Try Heat (1995) OK", "what the seeker says is free", "bye")
    cut = dialogue("Hello! Try", "x", "Heat (1995) ok", "x", "bye")
    other = dialogue("Hello! Try Ronin", "no", "bye")
    found = with_intents([same, cut, other], labelled)
    assert [t.intent for t in found[0].turns] == ["recommend", None, "other"]
    # Only what both cut alike.
    assert [t.intent for t in found[1].turns] == [None, None, None, None, "other"]
    assert found[2] == other
    path.write_text('{"1": {"turns": []}}')
    with pytest.raises(ValueError, match="must hold IARD's dialogues"):
        read_iard(path)


@pytest.mark.data
def test_intents_of_redial(data_root):
    splits = load_dataset("redial", data_root).splits
    told = {s: [d for d in ds if any(t.intent for t in d.turns)] for s, ds in splits.items()}
    assert {s: len(ds) for s, ds in told.items()} == {"train": 231, "valid": 9, "test": 36}
    intents = Counter(t.intent for d in told["test"] for t in d.turns if t.intent)
    assert intents == {"recommend": 98, "other": 48, "respond": 43, "request": 18, "explain": 11}
    assert sum(bool(t.intent) for d in told["train"] for t in d.turns) == 1615


@pytest.mark.data
def test_intents_of_inspired(data_root):
    splits = load_dataset("inspired", data_root).splits
    counts = {s: sum(bool(t.intent) for d in ds for t in d.turns) for s, ds in splits.items()}
    assert counts == {"train": 0, "valid": 1029, "test": 1059}
    assert len({t.intent for d in splits["test"] for t in d.turns} - {None}) == 14
