"""Arrow's columns as Python values, never more of them at once than fit in memory.

A value that stands once in Arrow's memory may be taken by thousands of rows, and is copied for
each as soon as it is a Python object.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fimlora_jobs.datasets.rows import MAX_ROW_BYTES, Row, RowError

if TYPE_CHECKING:
    import pyarrow as pa


def rows_of_batch(batch: "pa.RecordBatch", *, after: int = 0) -> Iterator[Row]:
    """Rows as Python objects.

    Args:
        batch: The rows.
        after: How many others came before.

    Raises:
        RowError: A row is too long, or cannot be read; names it.
    """
    if not batch.num_columns:
        yield from ({} for _ in range(batch.num_rows))
        return
    n_bytes = sum(map(value_bytes, batch.columns))
    if n_bytes <= MAX_ROW_BYTES:
        yield from _python_rows(batch, after)
    elif batch.num_rows == 1:
        raise RowError(f"row {after + 1} has {n_bytes} bytes; a row may have {MAX_ROW_BYTES}")
    else:
        middle = batch.num_rows // 2
        yield from rows_of_batch(batch.slice(0, middle), after=after)
        yield from rows_of_batch(batch.slice(middle), after=after + middle)


def _python_rows(batch: "pa.RecordBatch", after: int) -> list[Row]:
    import pyarrow as pa

    try:
        rows: list[Row] = batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise RowError(f"a row after row {after} cannot be read") from error
    return rows


def value_bytes(array: Any) -> int:
    """Bytes of all values in an array, counted as often as a row has them."""
    import pyarrow as pa
    from pyarrow import compute, types

    if isinstance(array, pa.ExtensionArray):
        return value_bytes(array.storage)
    kind = array.type
    if types.is_dictionary(kind):
        lengths = _lengths(array.dictionary)
        return 0 if lengths is None else _sum(compute.take(lengths, array.indices))
    if types.is_nested(kind):
        return sum(map(value_bytes, _parts(array)))
    lengths = _lengths(array)
    return array.nbytes if lengths is None else _sum(lengths)


def longest_in_dictionaries(batch: "pa.RecordBatch") -> int:
    """Bytes of the longest text that any row of a batch may refer to."""
    from pyarrow import types

    largest, arrays = 0, list(batch.columns)
    while arrays:
        array = arrays.pop()
        if types.is_dictionary(array.type):
            lengths = _lengths(array.dictionary)
            largest = max(largest, _most(lengths) if lengths is not None else 0)
        elif types.is_nested(array.type):
            arrays += _parts(array)
    return largest


def _parts(array: Any) -> list[Any]:
    """What the values of a nested array consist of: no more than its rows have."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_map(array.type):
        pair = pa.struct([array.type.key_field, array.type.item_field])
        array = array.cast(pa.list_(pair))
    parts = array.flatten()
    return parts if isinstance(parts, list) else [parts]


def _lengths(array: Any) -> Any:
    import pyarrow as pa
    from pyarrow import compute, types

    kind = array.type
    if types.is_string_view(kind) or types.is_binary_view(kind):
        array = array.cast(
            pa.large_binary() if types.is_binary_view(kind) else pa.large_string()
        )
    elif not (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    ):
        return None
    return compute.binary_length(array)


def _sum(lengths: Any) -> int:
    from pyarrow import compute

    return compute.sum(lengths).as_py() or 0


def _most(lengths: Any) -> int:
    from pyarrow import compute

    return compute.max(lengths).as_py() or 0
