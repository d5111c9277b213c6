"""Whether rows show more than text, told by the first of them where nobody has looked before."""

from fimlora_jobs.datasets.columns import (
    ColumnError,
    TextFields,
    conversation_of,
    media_of,
    used_columns,
)
from fimlora_jobs.datasets.media import Kind
from fimlora_jobs.datasets.rows import Row
from fimlora_jobs.datasets.table import Rows

ROWS_LOOKED_AT = 64


def kinds_shown(rows: Rows, fields: TextFields) -> tuple[Kind, ...]:
    """Kinds of what the first rows show besides text."""
    if fields.label or not (fields.images or fields.audio or fields.messages or fields.prompt):
        return ()
    numbers = range(min(rows.n_rows, ROWS_LOOKED_AT))
    found: set[Kind] = set()
    for where, row in rows.read(numbers, used_columns(fields)):
        found |= _kinds(row, fields, where)
    return tuple(sorted(found))


def _kinds(row: Row, fields: TextFields, where: str) -> set[Kind]:
    try:
        conversation = conversation_of(row, fields, where=where)
        media = (
            media_of(row, fields, where=where) if conversation is None else conversation.media
        )
    except ColumnError:  # said once the row is drawn
        return set()
    return {kind for kind, _ in media}
