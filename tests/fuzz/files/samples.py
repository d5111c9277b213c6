"""Sound files of each kind, which are then damaged."""

import io
import json
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TEXTS = [f"w{n} w{n * 7 % 50} w{n % 5}" for n in range(24)]
CHAT = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
TABLES: dict[str, list[dict[str, Any]]] = {
    "labels": [{"text": text, "label": n % 3} for n, text in enumerate(TEXTS)],
    "numbers": [{"text": text, "label": n / 8} for n, text in enumerate(TEXTS)],
    "text": [{"text": text, "id": n, "more": {"a": [n, None]}} for n, text in enumerate(TEXTS)],
    "prompts": [{"prompt": text, "completion": f"w{n % 9}"} for n, text in enumerate(TEXTS)],
    "chat": [{"messages": CHAT * (1 + n % 2), "tools": None} for n, _ in enumerate(TEXTS)],
}
WRITERS: tuple[dict[str, Any], ...] = (
    {},
    {"compression": "zstd", "row_group_size": 5},
    {"compression": "gzip", "data_page_version": "2.0"},
    {
        "compression": "none",
        "use_dictionary": False,
        "data_page_size": 64,
        "write_batch_size": 4,
    },
    {"compression": "brotli", "use_byte_stream_split": False, "write_statistics": False},
)


def jsonl_of(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def csv_samples() -> list[bytes]:
    """Plain, quoted, with lines inside cells, with a mark of UTF-8 and Windows' line ends."""
    lines = ["text,label", *(f"{text},{n % 3}" for n, text in enumerate(TEXTS))]
    quoted = ["text,label", *(f'"{text}, ""w1""\nw2",{n % 3}' for n, text in enumerate(TEXTS))]
    return [
        "\n".join(lines).encode(),
        "\n".join(quoted).encode(),
        b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n",
    ]


def parquet_samples() -> list[bytes]:
    """Each table by each writer, and columns of kinds that few use."""
    tables = [pa.Table.from_pylist(rows) for rows in TABLES.values()]
    odd = pa.table({
        "text": pa.array(TEXTS).dictionary_encode(),
        "label": pa.array([n % 2 for n in range(24)], pa.uint8()),
        "when": pa.array(range(24), pa.timestamp("ns", tz="UTC")),
        "exact": pa.array(range(24), pa.int64()).cast(pa.decimal128(30, 4)),
        "pairs": pa.array([[("a", n)] for n in range(24)], pa.map_(pa.string(), pa.int32())),
        "fixed": pa.array([[n, n] for n in range(24)], pa.list_(pa.float32(), 2)),
        "bytes": pa.array([bytes([n]) for n in range(24)], pa.binary()),
    })  # fmt: skip
    made = []
    for table in (*tables, odd):
        for options in WRITERS:
            buffer = io.BytesIO()
            pq.write_table(table, buffer, **options)
            made.append(buffer.getvalue())
    return made


def odd_parquet(random: Random) -> bytes:
    """A sound file whose columns hold what their names do not promise, written in an odd way."""
    names = ("text", "label", "messages", "prompt", "completion", "tools", "more", "text.a", "")
    kinds = _odd_kinds()
    table = pa.table({
        name: random.choice(kinds) for name in random.sample(names, k=random.randint(1, 5))
    })  # fmt: skip
    if random.random() < 0.6 and "text" in table.column_names:
        place = table.column_names.index("text")
        table = table.set_column(place, "text", pa.array(TEXTS))
    if random.random() < 0.2:
        table = table.replace_schema_metadata(
            {"huggingface": random.choice(("{", "[]", "null"))}
        )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **random.choice(WRITERS))
    return buffer.getvalue()


def _odd_kinds() -> list[pa.Array]:
    """Columns of as many rows as there are texts."""
    n = len(TEXTS)
    whole = pa.array(range(n))
    return [
        pa.nulls(n), pa.nulls(n, pa.string()), pa.array([None, *TEXTS[1:]]), pa.array([""] * n),
        pa.array(["\x00"] * n), pa.array(TEXTS, pa.large_string()), pa.array(TEXTS, pa.string_view()),
        pa.array(TEXTS).dictionary_encode(), pa.array([b"\xff"] * n, pa.binary()),
        pa.array([b"ab"] * n, pa.binary(2)), whole, whole.cast(pa.int8()), whole.cast(pa.uint64()),
        whole.cast(pa.float16()), pa.array([float("nan")] * n), pa.array([float("inf"), *range(1, n)]),
        pa.array([True, False] * (n // 2)), whole.cast(pa.timestamp("ns")), whole.cast(pa.int32()).cast(pa.date32()),
        whole.cast(pa.time64("us")), whole.cast(pa.duration("s")), whole.cast(pa.decimal128(38, 3)),
        pa.array([-(2**62)] * n, pa.timestamp("us")), pa.array([[]] * n, pa.list_(pa.string())),
        pa.array([None] * n, pa.list_(pa.int8())), pa.array([TEXTS[:2]] * n),
        pa.array([[[1], None]] * n), pa.array([{"role": "user", "content": "w1"}] * n),
        pa.array([[{"role": "user", "content": "w1"}, {"role": "assistant", "content": None}]] * n),
        pa.array([[{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]] * n),
        pa.array([[{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2"}]] * n),
        pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int8())),
        pa.array([{"a": {"b": [None]}}] * n), pa.array([2**63] * n, pa.uint64()),
    ]  # fmt: skip
