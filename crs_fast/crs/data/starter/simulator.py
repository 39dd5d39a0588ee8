"""A seeded simulator of film dialogues: ask, refine, recommend, accept or reject, small talk.

A world is a catalogue, a Zipf popularity over it and latent taste groups. For each dialogue a
seeker of one group has a goal film in mind, states some of the goal's attributes in words of their
own, may say what they do for a living (which goes with the group, as in life, and is in no film's
text), names a film of the group's taste, and is recommended films that satisfy what was said until
the goal comes up. What was said never narrows the catalogue below `MIN_CANDIDATES` films, so
a recommender must learn the groups' tastes; copying or matching words is not enough.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Dialogue, Item, Mention, Turn
from crs_fast.crs.data.starter import phrases, templates
from crs_fast.crs.data.starter.phrases import Attribute

MIN_CANDIDATES = 5
NUM_GROUPS = len(phrases.JOBS)
ZIPF_EXPONENT = 0.74
TASTE_STRENGTH = 8.0
TASTE_NOISE = 0.3
OFF_TASTE = 0.04
TYPICAL = 2.0  # how much a seeker's wishes lean to what sets their taste apart
# The world (popularity, tastes) is one and the same for every seed of the dialogues, or a model
# trained on one seed could not be tested on another.
WORLD_SEED = 20261

Part = str | Item


def attributes(item: Item) -> frozenset[Attribute]:
    """What a seeker may wish for or rule out that is true of `item`."""
    found = [("decade", str(item.year // 10 * 10))] if item.year else []
    for kind, name in (("genre", "genres"), ("keyword", "keywords")):
        found += [(kind, value.strip()) for value in item.fields.get(name, "").split(",")]
    return frozenset(a for a in found if a[1])


@dataclass(frozen=True)
class World:
    """What stays the same in every dialogue.

    Attributes:
        items: the catalogue, F films.
        has: attribute -> bool [F], which films have it.
        popularity: float64 [F], sums to 1; Zipf over a fixed random order of the films.
        tastes: float64 [G, F], rows sum to 1: what a seeker of each group wants to see. The mean
            of the rows is `popularity`.
    """

    items: tuple[Item, ...]
    has: dict[Attribute, np.ndarray]
    popularity: np.ndarray
    tastes: np.ndarray


def build_world(items: Sequence[Item]) -> World:
    """The world over a catalogue; deterministic."""
    rng = np.random.default_rng(WORLD_SEED)
    sets = [attributes(item) for item in items]
    names = sorted(set().union(*sets))
    table = np.array([[name in s for name in names] for s in sets])  # [F, A]
    popularity = 1.0 / np.arange(1, len(items) + 1) ** ZIPF_EXPONENT
    popularity = rng.permutation(popularity / popularity.sum())  # [F]
    anchors = rng.choice(len(items), NUM_GROUPS, replace=False, p=popularity)
    shared = table[anchors].astype(float) @ table.T.astype(float)  # [G, F]
    affinity = TASTE_STRENGTH * shared + rng.normal(0.0, TASTE_NOISE, shared.shape)
    tastes = _with_marginal(np.exp(affinity), popularity)
    has = {name: table[:, a] for a, name in enumerate(names)}
    return World(tuple(items), has, popularity, tastes)


def _with_marginal(weights: np.ndarray, marginal: np.ndarray) -> np.ndarray:
    """Scale positive weights [G, F] so that rows sum to 1 and their mean is `marginal` [F]
    (Sinkhorn, Knopp 1967), which keeps the mixture of the groups Zipf."""
    for _ in range(200):
        weights = weights * (len(weights) * marginal / weights.sum(0))
        weights = weights / weights.sum(1, keepdims=True)
    return weights


class _Script:
    """One dialogue in the making: what was said, and which films still satisfy it."""

    def __init__(self, world: World, rng: np.random.Generator, held_out: bool) -> None:
        self.world, self.rng = world, rng
        self.sentences = templates.HELD_OUT if held_out else templates.TRAIN
        self.wants = phrases.want_phrases(held_out)
        self.avoids = phrases.avoid_phrases(held_out)
        self.turns: list[Turn] = []
        self.stated: set[Attribute] = set()
        self.named: list[int] = []
        self.loved: list[int] = []
        self.open = np.ones(len(world.items), dtype=bool)  # [F]
        self.group = int(rng.integers(len(world.tastes)))
        own = not self.chance(OFF_TASTE)
        self.taste = world.tastes[self.group] if own else world.popularity  # [F]
        self.goal = self.draw(world.popularity if self.chance(OFF_TASTE) else self.taste)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def draw(self, weights: np.ndarray) -> int:
        return int(self.rng.choice(len(weights), p=weights / weights.sum()))

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def say(self, kind: str, **slots: Part) -> list[Part]:
        """One sentence of a kind, as text and films."""
        pieces = re.split(r"\{(\w+)\}", self.pick(self.sentences[kind]))
        return [slots[piece] if i % 2 else piece for i, piece in enumerate(pieces)]

    def turn(self, role: str, *sentences: list[Part]) -> None:
        """Close a turn made of sentences, with its films located."""
        text, mentions = "", []
        for sentence in sentences:
            text += " " if text else ""
            for part in sentence:
                if isinstance(part, Item):
                    mentions.append(Mention(part.item_id, len(text), len(text) + len(part.title)))
                    part = part.title
                text += part
        self.turns.append(Turn(role, text, tuple(mentions)))

    def name(self, film: int) -> Item:
        """Name a film: from now on it is no candidate."""
        self.named.append(film)
        self.open[film] = False
        return self.world.items[film]

    def others(self) -> np.ndarray:
        """Weights [F] of the films, other than the goal, that may be named next."""
        weights = np.where(self.open, self.taste, 0.0)
        weights[self.goal] = 0.0
        return weights

    def can_state(self, attribute: Attribute, value: bool = True) -> bool:
        """Whether it holds of the goal, is news, and leaves enough candidates if stated."""
        has = self.world.has.get(attribute)
        if has is None or attribute in self.stated or bool(has[self.goal]) != value:
            return False
        return int((self.open & (has == value)).sum()) >= MIN_CANDIDATES

    def state(self, attribute: Attribute, value: bool = True) -> None:
        self.stated.add(attribute)
        self.open &= self.world.has[attribute] == value

    def wish(self, count: int, lacking: Sequence[int] = ()) -> dict[str, str]:
        """State up to `count` attributes of the goal, of different kinds; with `lacking`, the first
        is one that those films lack. Returns kind -> words; empty if nothing can be stated."""
        options = [a for a in self.wants if self.can_state(a)]
        if lacking:
            options = [a for a in options if not self.world.has[a][list(lacking)].any()]
        said: dict[str, str] = {}
        for attribute in self.shuffled(options):
            kind = attribute[0]
            if len(said) < count and kind not in said and self.can_state(attribute):
                self.state(attribute)
                said[kind] = self.word(attribute)
        return said

    def shuffled(self, options: Sequence[Attribute]) -> list[Attribute]:
        """In random order, what is typical of the seeker's taste tending to come first."""
        having = [self.world.has[attribute] for attribute in options]
        lift = [self.taste @ has / (self.world.popularity @ has) for has in having]
        keys = self.rng.exponential(size=len(options)) / np.array(lift) ** TYPICAL
        return [options[at] for at in keys.argsort()]

    def asked(self, kind: str, said: dict[str, str]) -> list[list[Part]]:
        """A wish as one sentence of a kind, or as two where one would not read well."""
        genre = said.get("genre")
        detail = " ".join(said[key] for key in ("keyword", "decade") if key in said)
        if genre and detail and not phrases.takes_detail(genre):
            return [self.say(kind, want=genre), self.say("detail", detail=detail)]
        return [self.say(kind, want=" ".join(filter(None, (genre or "something", detail))))]

    def persona(self) -> list[Part]:
        """What the seeker does for a living: tells their group, and nothing of tonight's film."""
        return self.say("persona", job=phrases.JOBS[self.group])

    def word(self, attribute: Attribute) -> str:
        kind, value = attribute
        if kind == "genre" and self.chance(0.4):
            return phrases.GENRE_NAMES[value]
        return self.pick(self.wants[attribute])

    def liked(self) -> list[list[Part]]:
        """A film of the seeker's taste, whatever was wished for tonight; none if naming it would
        leave too few candidates."""
        weights = self.taste.copy()
        weights[[self.goal, *self.named]] = 0.0
        film = self.draw(weights)
        if self.open[film] and self.open.sum() <= MIN_CANDIDATES:
            return []
        self.loved.append(film)
        return [self.say("liked", film=self.name(film))]

    def avoid(self) -> list[list[Part]]:
        """Something to rule out that holds neither of the goal nor of a film the seeker likes."""
        options = [
            a
            for a in self.avoids
            if self.can_state(a, False) and not self.world.has[a][self.named].any()
        ]
        if not options:
            return []
        attribute = options[self.rng.integers(len(options))]
        self.state(attribute, False)
        return [self.say("avoid", avoid=self.pick(self.avoids[attribute]))]

    def request(self) -> list[list[Part]]:
        wish = self.wish(int(self.rng.integers(1, 4)))
        sentences = self.asked("request", wish or {"genre": "something good"})
        if self.chance(0.8):
            sentences += self.liked()
        if self.chance(0.15):
            sentences += self.avoid()
        return sentences

    def opening(self) -> None:
        """Greetings and the first request."""
        hello, request = [self.say("seeker_hello")], self.request()
        if self.chance(0.35):
            hello.append(self.say("remark"))
        if self.chance(0.95):
            if self.chance(0.5):
                hello.append(self.persona())
            else:
                request.insert(0, self.persona())
        if self.chance(0.5):
            self.turn(SEEKER, *hello)
            self.turn(RECOMMENDER, self.say("recommender_hello"))
            hello = []
        self.turn(SEEKER, *hello, *request)

    def ask_back(self) -> None:
        """The recommender asks, the seeker answers."""
        if not self.named and self.chance(0.6):
            self.turn(RECOMMENDER, self.say("ask_liked"))
            self.turn(SEEKER, *(self.liked() or [self.say("no_favorite")]))
            return
        wish = self.wish(1)
        self.turn(RECOMMENDER, self.say("ask_more"))
        self.turn(SEEKER, *(self.asked("refine", wish) if wish else [self.say("shrug")]))

    def rejected(self) -> None:
        """A film that satisfies all said so far is recommended (now and then two, or one the
        seeker loved), and turned down for a reason."""
        if self.loved and self.chance(0.1):
            loved = self.world.items[self.loved.pop()]
            self.turn(RECOMMENDER, self.say("rewatch", film=loved))
            self.turn(SEEKER, self.say("reject_rewatch"))
            return
        films = [self.draw(self.others())]
        film = self.name(films[0])
        if self.chance(0.1) and self.open.sum() >= MIN_CANDIDATES:
            films.append(self.draw(self.others()))
            self.turn(RECOMMENDER, self.say("recommend_two", film=film, other=self.name(films[1])))
        else:
            self.turn(RECOMMENDER, self.say("recommend", film=film))
        wish = self.wish(1, lacking=films) if self.chance(0.6) else None
        if wish:
            self.turn(SEEKER, *self.asked("reject_wish", wish))
        elif len(films) == 2:
            self.turn(SEEKER, self.say("reject_both"))
        else:
            self.turn(SEEKER, self.say(self.pick(("reject_seen", "reject_taste"))))

    def ending(self) -> None:
        """The goal is recommended and accepted."""
        goal = self.name(self.goal)
        self.turn(RECOMMENDER, self.say("recommend", film=goal))
        self.turn(SEEKER, self.say("accept"))
        if self.chance(0.1):
            self.turn(RECOMMENDER, self.say("close_film", film=goal))
        elif self.chance(0.7) or len(self.turns) < 4:
            self.turn(RECOMMENDER, self.say("close"))


def simulate(world: World, seed: Sequence[int], held_out: bool, dialogue_id: str) -> Dialogue:
    """One dialogue of 4 to 10 turns; `seed` decides it wholly. `held_out` talks in the sentence
    templates that training dialogues never use."""
    script = _Script(world, np.random.default_rng(seed), held_out)
    script.opening()
    if script.chance(0.5):
        script.ask_back()
    rejections = int(script.rng.choice(3, p=(0.35, 0.45, 0.2)))
    for _ in range(min(rejections, (7 - len(script.turns)) // 2)):
        script.rejected()
    script.ending()
    return Dialogue(dialogue_id, tuple(script.turns))
