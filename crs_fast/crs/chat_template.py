"""Our dialogue format as a chat template, for servers that tokenize messages themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Turn, merge_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from crs_fast.crs.sequence import SequenceBuilder

FILE = "chat_template.jinja"

# One role's consecutive messages are one turn, and a turn is one line, as in `SequenceBuilder`.
CHAT_TEMPLATE = """\
{%- set labels = {'user': 'User:', 'assistant': 'Assistant:'} -%}
{%- set state = namespace(role='') -%}
{%- for message in messages -%}
{%- if message['role'] not in labels -%}
{{- raise_exception("the roles of messages must be 'user' and 'assistant'") -}}
{%- endif -%}
{%- if message['role'] != state.role -%}
{{- '' if loop.first else '\\n' -}}
{{- labels[message['role']] -}}
{%- endif -%}
{%- set state.role = message['role'] -%}
{{- ' ' ~ message['content'].replace('\\r', ' ').replace('\\n', ' ') -}}
{%- if loop.last -%}{{- '\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- labels['assistant'] -}}{%- endif -%}
"""

# Places at which a tokenizer may join what `SequenceBuilder` tokenizes apart.
_PROBES = (
    (SEEKER, "hello there, what do you like?"),
    (RECOMMENDER, "Any genre..."),
    (RECOMMENDER, "or year"),
    (SEEKER, " the 1990s\nof course "),
    (RECOMMENDER, "(hm)"),
    (SEEKER, "!"),
)


def agrees(tokenizer: PreTrainedTokenizerBase, builder: SequenceBuilder) -> bool:
    """Whether the template's token ids are those of `builder`, tried on a few turns. A tokenizer
    that joins a line's last sign with the line break (Qwen's does) does not give the same."""
    roles = {SEEKER: "user", RECOMMENDER: "assistant"}
    for count in range(1, len(_PROBES) + 1):
        turns = merge_turns([Turn(role, text) for role, text in _PROBES[:count]])
        messages = [{"role": roles[role], "content": text} for role, text in _PROBES[:count]]
        text = tokenizer.apply_chat_template(
            messages, chat_template=CHAT_TEMPLATE, add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if list(ids) != builder.context(turns):
            return False
    return True
