"""A hand-written catalogue, dialogues and a tiny language model for the tests of this folder."""

import torch

from crs_fast.crs.backbones import tiny_backbone
from crs_fast.crs.control_tokens import ControlTokens
from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Dialogue, Item, Mention, Turn
from crs_fast.crs.sequence import SequenceBuilder, trie_sids
from crs_fast.trie import SidTrie, SidVocab

ITEMS = tuple(Item(f"i{n}", f"Film {n}", 1990 + n) for n in range(8))
SIDS = [[n % 4, n // 4, n % 3] for n in range(8)]
TEXTS = ["hello there, what do you like?", "I like Film 1 and Film 2, any more of them?"] * 4


def say(role, text, *item_ids, unlocated=()):
    """A turn in which each item is named by its title, once."""
    titles = {item.item_id: item.title for item in ITEMS}
    mentions = []
    for item_id in item_ids:
        start = text.index(titles[item_id])
        mentions.append(Mention(item_id, start, start + len(titles[item_id])))
    return Turn(role, text, (*mentions, *(Mention(item_id) for item_id in unlocated)))


DIALOGUE = Dialogue(
    "whole",
    (
        say(RECOMMENDER, "hello there"),
        say(SEEKER, "I like Film 1, any more?", "i1"),
        say(RECOMMENDER, "Film 2 or Film 3 maybe", "i2", "i3", unlocated=("i4",)),
        say(SEEKER, "what of the old ones?"),
        say(RECOMMENDER, "which years do you like?"),
        say(SEEKER, "the nineties"),
        say(RECOMMENDER, "try Film 5", "i5"),
    ),
)


def dialogues(n):
    """`n` short dialogues that all differ; which item is recommended follows from the text."""
    return [
        Dialogue(
            f"d{i}",
            (
                say(SEEKER, f"I like Film {i % 8}, " + "more " * (i % 5), f"i{i % 8}"),
                say(RECOMMENDER, f"then see Film {(i + 3) % 8}", f"i{(i + 3) % 8}"),
                say(SEEKER, "thank you"),
                say(RECOMMENDER, "you are welcome"),
            ),
        )
        for i in range(n)
    ]


def system(max_length=768, seed=0, **shape):
    """model, tokenizer, trie, vocab, control, builder, over `ITEMS`."""
    size = {"hidden_size": 32, "layers": 2, "heads": 2, "vocab_size": 300, **shape}
    model, tokenizer = tiny_backbone(TEXTS, seed=seed, **size)
    torch.manual_seed(seed)  # rows for new tokens are drawn from the global random state
    vocab = SidVocab.extend(tokenizer, model, levels=3, codes=4, special=True)
    control = ControlTokens.extend(tokenizer, model)
    trie = SidTrie.from_sids(SIDS, [item.item_id for item in ITEMS])
    builder = SequenceBuilder(tokenizer, vocab, control, trie_sids(trie), max_length)
    return model, tokenizer, trie, vocab, control, builder
