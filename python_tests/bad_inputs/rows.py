"""All rows of the table, by name."""

from __future__ import annotations

from . import data_rows, model_rows, ops_rows, public_rows, whole_run_rows
from .table import Call, Row


def _meta(call: Call) -> list[Row]:
    """The one row of a call whose arguments are all changed already."""
    [(name, [change])] = call.changes.items()
    return [
        Row(
            f"{call.op}/{name}/{change.label}",
            change.verdict,
            (),
            lambda: call.function(**call.arguments()),
        )
    ]


_CALLS = [
    *ops_rows.trie_calls(),
    *ops_rows.codebook_calls(),
    *ops_rows.collision_calls(),
    *ops_rows.text_calls(),
    *ops_rows.item_id_calls(),
    *ops_rows.attention_calls(),
    *ops_rows.head_calls(),
    *public_rows.calls(),
    *whole_run_rows.calls(),
    *model_rows.calls(),
    *data_rows.calls(),
]
ROWS = [row for call in _CALLS for row in call.rows()]
ROWS += [row for call in ops_rows.meta_calls() for row in _meta(call)]
assert len({row.name for row in ROWS}) == len(ROWS)
