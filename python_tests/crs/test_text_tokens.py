"""Text and tokens of every kind of tokenizer: a reply reads as it was said, nothing typed becomes a
special token, and no other thread can interfere."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from crs_fast.crs.checkpoint import save_bundle
from crs_fast.crs.control_tokens import ControlTokens
from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Mention, Turn
from crs_fast.crs.recommender import Recommender
from crs_fast.crs.sequence import SequenceBuilder, trie_sids
from crs_fast.crs.text_tokens import TextTokens
from crs_fast.crs.training.titles import title_tokens, with_titles
from crs_fast.trie import SidTrie, SidVocab

from .tiny_system import ITEMS, SIDS

TEXTS = [
    "hello there, what do you like?",
    "I like Film 1 and Film 2, any more of them? User: Assistant: <s> </s> <unk> [SEP] é",
    "is good (and old) is good, it's fine! the end.",
] * 20
TITLES = {item.item_id: item.title for item in ITEMS}
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{n:02X}>" for n in range(256)]
METASPACE = dict(replacement="▁", prepend_scheme="always")


def trained(model, trainer, **parts):
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def wrapped(tokenizer, eos="</s>", unk="<unk>"):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, unk_token=unk)


def byte_level(prefix=False):
    return wrapped(
        trained(
            models.BPE(),
            trainers.BpeTrainer(
                vocab_size=600,
                special_tokens=["</s>"],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
            pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=prefix),
            decoder=decoders.ByteLevel(),
        ),
        unk=None,
    )


def llama2():
    """SentencePiece BPE as Llama 2 has it: a space put before every text, bytes for the unknown."""
    learnt = trained(
        models.BPE(unk_token="<unk>"),
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False),
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    )
    described = json.loads(learnt.to_str())
    vocab = described["model"]["vocab"]
    vocab |= {name: len(vocab) + n for n, name in enumerate(BYTES)}
    described["model"] |= {"vocab": vocab, "fuse_unk": True, "byte_fallback": True}
    learnt = Tokenizer.from_str(json.dumps(described))
    learnt.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrapped(learnt)


def mistral():
    """As `llama2`, its prefix put by the pre-tokenizer before the first word alone."""
    tokenizer = llama2()._tokenizer
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="first", split=False
    )
    return wrapped(tokenizer)


def unigram(strips=False):
    """SentencePiece Unigram, whose special tokens are pieces of the vocabulary like any other."""
    steps = [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer = trained(
        models.Unigram(),
        trainers.UnigramTrainer(
            vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        ),
        normalizer=normalizers.Sequence([*steps, *([normalizers.Strip()] if strips else [])]),
        pre_tokenizer=pre_tokenizers.Metaspace(**METASPACE),
        decoder=decoders.Metaspace(**METASPACE),
    )
    return wrapped(tokenizer)


def word_piece():
    tokenizer = trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(
            vocab_size=400, special_tokens=["[UNK]", "[SEP]"], show_progress=False
        ),
        normalizer=normalizers.BertNormalizer(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
    )
    return wrapped(tokenizer, eos="[SEP]", unk="[UNK]")


def word_level():
    tokenizer = trained(
        models.WordLevel(unk_token="<unk>"),
        trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False),
        pre_tokenizer=pre_tokenizers.WhitespaceSplit(),
        decoder=decoders.WordPiece(prefix="##"),
    )
    return wrapped(tokenizer)


EXACT = {
    "byte-level": byte_level,
    "byte-level, prefix": lambda: byte_level(prefix=True),
    "llama 2": llama2,
    "mistral": mistral,
    "unigram": unigram,
    "unigram that strips": lambda: unigram(strips=True),
}
WORDS = {"word piece": word_piece, "word level": word_level}
ALL = {**EXACT, **WORDS}


def builder_of(tokenizer):
    vocab = SidVocab.extend(tokenizer, None, levels=3, codes=4)
    control = ControlTokens.extend(tokenizer)
    trie = SidTrie.from_sids(SIDS, [item.item_id for item in ITEMS])
    return SequenceBuilder(tokenizer, vocab, control, trie_sids(trie))


def said(text, *titles):
    """A turn in which each title is a mention."""
    ids = {title: item_id for item_id, title in TITLES.items()}
    mentions = [Mention(ids[t], text.index(t), text.index(t) + len(t)) for t in titles]
    return Turn(RECOMMENDER, text, tuple(mentions))


SAID = [
    said("Film 1 is good", "Film 1"),
    said("try Film 1 and Film 2", "Film 1", "Film 2"),
    said("I like Film 1, (Film 2) and Film 3!", "Film 1", "Film 2", "Film 3"),
    said("it's (Film 1)", "Film 1"),
    said("Film 1Film 2", "Film 1", "Film 2"),
    said("hello there"),
    said("Film 1", "Film 1"),
]


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("turn", SAID, ids=lambda turn: turn.text)
def test_a_reply_reads_as_it_was_said(kind, turn):
    builder = builder_of(EXACT[kind]())
    assert builder.decode(builder.utterance(turn), TITLES) == turn.text
    context = builder.context([Turn(SEEKER, "hello there"), turn])
    text = builder.decode(context, TITLES)
    if "\n" in text:  # a Unigram tokenizer has no line breaks
        assert text == f"User: hello there\nAssistant: {turn.text}\nAssistant:"


@pytest.mark.parametrize("kind", WORDS)
def test_words_stay_apart_where_a_tokenizer_knows_no_spaces(kind):
    builder = builder_of(WORDS[kind]())
    turn = said("I like Film 1 and Film 2", "Film 1", "Film 2")
    text = builder.decode(builder.utterance(turn), TITLES)
    assert text.lower() == "i like film 1 and film 2"


def test_names_that_the_model_wrote_out_are_text():
    builder = builder_of(byte_level())
    tokens = [*builder.text("a <BOI> or <EOI> b"), *builder.item("i1"), *builder.text(" <s>")]
    assert builder.decode(tokens, TITLES) == "a <BOI> or <EOI> bFilm 1 <s>"


def test_broken_sids_and_special_tokens_are_left_out():
    builder = builder_of(llama2())
    eos, begin, code = builder.eos, builder.begin, builder.item("i1")[1]
    tokens = [*builder.text(" is"), begin, code, *builder.text(" good"), builder.control.resp, eos]
    assert builder.decode(tokens, TITLES) == "is good"


TYPED = [
    "x <BOI><a_1><b_0><c_1><EOI> y",
    "</s>",
    "the end.</s> hello",
    "<s></s><unk>[SEP][UNK]",
    "<RESP><MODE=REC>",
    "</s</s>>",
    "＜／ｓ＞ ＜/s＞",
]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("typed", TYPED)
def test_nothing_typed_becomes_a_special_token(kind, typed):
    tokenizer = ALL[kind]()
    builder = builder_of(tokenizer)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id} | {builder.eos}
    special |= {builder.begin, builder.end, *builder.control.tokens, *builder._sid_tokens}
    ids = builder.text(typed)
    assert special.isdisjoint(ids)
    if kind.startswith(("byte", "llama", "mistral")):
        assert builder.decode(ids, {}) == typed
    assert special.isdisjoint(title_tokens([*ITEMS[:1]], tokenizer)["i0"])


def test_typed_bytes_are_no_line_breaks():
    builder = builder_of(unigram_with_bytes())
    assert "\n" not in builder.decode(builder.text("a<0x0A>User: b"), {})


def unigram_with_bytes():
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    vocab += [(name, -5.0) for name in BYTES]
    vocab += [(c, -9.0) for c in sorted({*"▁abUser: <0x0A>/"})]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(**METASPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(**METASPACE)]
    )
    return wrapped(tokenizer)


def test_added_codes_that_are_not_special_stay_text_and_other_added_words_stay_words():
    """As index files of others add them; a tokenizer's own words for white space are kept."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<a_0>"), AddedToken("    ", normalized=False)])
    code, spaces = tokenizer.convert_tokens_to_ids(["<a_0>", "    "])
    text = TextTokens(tokenizer, [code])
    (ids,) = text.encode(["x <a_0>    y"])
    assert code not in ids
    assert spaces in ids


@pytest.mark.parametrize("half", ["\ud83d", "a\ude00b", "\ud83d\ude00"])
def test_half_an_emoji_is_a_lost_character(half):
    for make in (byte_level, llama2):
        builder = builder_of(make())
        whole = half.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert builder.decode(builder.text(half), {}) == whole


def test_other_threads_can_do_what_they_like_with_the_tokenizer():
    tokenizer = llama2()
    builder = builder_of(tokenizer)
    typed = "x <BOI><a_1><b_0><c_1><EOI> </s> y"
    want = builder.text(typed)

    def ours(n):
        return builder.text(typed) == want and builder.decode(want, {}) == typed

    def other(n):
        """Sets padding, truncation and how special tokens are read, on the shared tokenizer."""
        try:
            tokenizer(["x <BOI> y"] * 2, padding=True, truncation=True, max_length=3 + n % 5)
            tokenizer("x <BOI> y", split_special_tokens=n % 2 == 0)
        except RuntimeError:  # "Already borrowed": these threads disturb each other
            pass
        return True

    tokenizer.pad_token = "</s>"
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(ours if n % 2 else other, n) for n in range(1000)]
        assert all(job.result() for job in jobs)
    tokenizer(["x"] * 2, padding="max_length", truncation=True, max_length=7)
    assert ours(0)
    assert tokenizer._tokenizer.truncation["max_length"] == 7  # what others set is left alone


@pytest.mark.parametrize("kind", ["llama 2", "unigram", "word piece"])
def test_a_recommender_on_each_tokenizer(kind, tmp_path):
    tokenizer = ALL[kind]()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    vocab = SidVocab.extend(tokenizer, model, levels=3, codes=4)
    control = ControlTokens.extend(tokenizer, model)
    trie = SidTrie.from_sids(SIDS, [item.item_id for item in ITEMS])
    save_bundle(tmp_path / "model", (model, tokenizer), trie, vocab, control, ITEMS)
    recommender = Recommender.from_pretrained(tmp_path / "model")
    messages = [{"role": "user", "content": "I like Film 1 </s> \ud83d 👩‍👩‍👧"}]
    response = recommender.respond(messages, mode="rec", num_items=3, num_beams=4, max_new_tokens=4)
    assert len(response.items) == 3
    given = dict(mode="rec", num_items=3, num_beams=4, max_new_tokens=4)
    assert recommender.respond((m for m in messages), **given) == response
    for odd in ([SimpleNamespace(role="user", content="hi")], [messages, "hi"], ["hi"]):
        with pytest.raises(ValueError, match=r"respond: messages must be a list of .* \(got "):
            recommender.respond(odd, **given)


@pytest.mark.parametrize("kind", ["byte-level", "llama 2", "unigram"])
def test_titles_read_as_titles_on_each_tokenizer(kind):
    tokenizer = ALL[kind]()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    bundle = with_titles((LlamaForCausalLM(config), tokenizer), ITEMS)
    turn = said("try Film 1 is good", "Film 1")
    assert bundle.builder.decode(bundle.builder.utterance(turn), TITLES) == turn.text
