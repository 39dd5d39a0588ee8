"""Which of the waiting turns come next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .turn import Turn

# A group may be padded to so many times its own tokens, and by so many tokens in any case.
_PADDING, _LITTLE = 2, 512


def next_group(
    waiting: Sequence[Turn],
    unread: Callable[[Turn], int],
    *,
    max_tokens: int,
    max_turns: int,
    seconds_per_token: float,
) -> list[Turn]:
    """The turns to read next, in one forward pass, all from one catalogue.

    Turns are ordered by when they would end if each had begun when it arrived: a short one passes
    a long one that came a little earlier, and no turn waits for ever.

    Args:
        waiting: at least one turn.
        unread: tokens of a turn that the model must read.
        max_tokens: of the forward pass, padding included; a turn with more goes alone.
        max_turns: the most turns, at least 1.
        seconds_per_token: how long reading takes.
    """
    lengths = [(turn, unread(turn)) for turn in waiting]
    lengths.sort(key=lambda pair: pair[0].arrived + seconds_per_token * pair[1])
    first, _ = lengths[0]
    group: list[Turn] = []
    total = longest = 0
    for turn, tokens in lengths:
        if turn.catalogue is not first.catalogue:
            continue
        padded = max(longest, tokens) * (len(group) + 1)
        is_padded_much = padded > max(_PADDING * (total + tokens), _LITTLE)
        if group and (padded > max_tokens or is_padded_much):
            continue
        group.append(turn)
        total, longest = total + tokens, max(longest, tokens)
        if len(group) == max_turns:
            break
    return group
