"""Service and worker read the same rows: what is accepted is what is measured."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fimlora_contract.references import UploadedDataset
from fimlora_jobs.datasets.checks import survey
from fimlora_jobs.datasets.files import read_files
from fimlora_jobs.datasets.folders import FolderDigests
from fimlora_jobs.datasets.parquet import read_footer
from fimlora_jobs.datasets.rows import BYTE_ORDER_MARK, MAX_ROW_BYTES, RowError, read_jsonl
from fimlora_jobs.datasets.table import Rows, rows_of_files
from fimlora_worker.errors import DatasetEmpty, DatasetSchema
from fimlora_worker.inputs.rows import open_rows
from fimlora_worker.settings import Settings

ID = "ds_" + "0" * 32
READABLE = {
    "commas-in-text": b'{"text": "' + b"a,[{" * 600_000 + b'"}\n',
    "plain": b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n',
    "byte-order-mark": BYTE_ORDER_MARK + b'{"text": "a"}\n',
    "blank-lines": b'\n{"text": "a"}\r\n\r\n  \n{"text": "b"}',
    "escapes": b'{"text": "\\ud83d\\ude00 \\u0000 \xc3\xa9"}\n',
    "numbers": b'{"text": "a", "x": 12345678901234567890, "y": -1.5e-300, "z": 1E3}\n',
    "nested": b'{"messages": [{"role": "user", "content": "a"}], "x": {"y": null}}\n',
    "other-columns": b'{"text": "a"}\n{"text": "b", "more": 1}\n{}\n',
    "same-name-twice": b'{"text": "a", "text": "b"}\n',
    "separators": b'{"text": "a\xe2\x80\xa8b\xc2\x85c"}\n',
}
UNREADABLE = {
    "nan": b'{"text": "a"}\n{"x": NaN}\n',
    "infinity": b'{"x": -Infinity}\n',
    "too-large": b'{"x": 1e400}\n',
    "digits": b'{"x": ' + b"9" * 5000 + b"}\n",
    "no-object": b'["a"]\n',
    "cut-off": b'{"text": \n',
    "latin-1": b'{"text": "\xff"}\n',
    "half-a-character": b'{"text": "\\ud800"}\n',
    "mark-inside": b"{}\n" + BYTE_ORDER_MARK + b"{}\n",
    "utf-16": '{"text": "a"}\n'.encode("utf-16"),
    "values": b'{"x": [' + b"[]," * 600_000 + b"0]}\n",
    "long": b'{"text": "' + b"x" * MAX_ROW_BYTES + b'"}\n',
}


def store(settings: Settings, content: bytes | pa.Table) -> Path:
    """An upload as the service has put it on disk."""
    folder = settings.uploads_dir / ID
    folder.mkdir(parents=True)
    if isinstance(content, bytes):
        (folder / "data.jsonl").write_bytes(content)
        return folder / "data.jsonl"
    pq.write_table(content, folder / "data.parquet", row_group_size=700)
    return folder / "data.parquet"


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(data_dir=tmp_path)


def opened(settings: Settings, **resolved) -> Rows:
    return open_rows(UploadedDataset(id=ID), resolved, settings, FolderDigests())


def all_of(rows: Rows, *columns: str):
    """Every row with its place."""
    return rows.read(range(rows.n_rows), columns or rows.names)


@pytest.mark.parametrize("content", READABLE.values(), ids=READABLE)
def test_a_line_that_is_accepted_is_read_alike(settings, content):
    """The same rows under the same numbers, whatever way they are written."""
    file = store(settings, content)
    accepted = list(read_jsonl(file))

    rows = opened(settings)

    assert all_of(rows) == accepted
    assert rows.names == survey(iter(accepted)).columns


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_a_line_that_is_refused_is_refused_by_both(settings, content):
    """A registered file is looked at only in part before its job begins: the worker sees it."""
    file = store(settings, content)
    with pytest.raises(RowError) as refused:
        list(read_jsonl(file))

    with pytest.raises(DatasetSchema) as failed:
        opened(settings)

    assert str(failed.value) == str(refused.value)


def test_parquet_rows_are_read_alike(settings):
    """In several row groups, with nested and missing values."""
    table = pa.table({
        "text": [f"w{i}" for i in range(2000)],
        "label": pa.array([None if i % 7 == 0 else i for i in range(2000)], pa.int32()),
        "nested": [{"a": [i]} for i in range(2000)],
        "half": pa.array([i / 2 for i in range(2000)], pa.float32()),
    })  # fmt: skip
    file = store(settings, table)
    accepted = list(read_files([file], table.column_names))

    rows = opened(settings)

    assert all_of(rows) == accepted
    assert [v for _, v in rows.scan("label")] == table.column("label").to_pylist()
    assert rows.names == read_footer(file).columns


def test_a_column_that_nobody_uses_ends_no_job(settings):
    """Its values cannot be read, and need not be."""
    long_ago = pa.array([-(2**62)], pa.timestamp("us"))
    file = store(settings, pa.table({"text": ["a"], "when": long_ago}))
    assert list(read_files([file], ["text"])) == [("row 1", {"text": "a"})]

    rows = opened(settings)

    assert all_of(rows, "text") == [("row 1", {"text": "a"})]
    with pytest.raises(RowError, match="a row after row 0 cannot be read"):
        all_of(rows)


def test_a_damaged_file_is_refused_by_both(settings):
    """With the same sentence."""
    file = store(settings, pa.table({"text": ["a"] * 5000}))
    content = bytearray(file.read_bytes())
    content[20:200] = bytes(180)
    file.write_bytes(content)
    with pytest.raises(RowError) as refused:
        list(read_files([file], ["text"]))

    with pytest.raises(RowError) as failed:
        all_of(opened(settings))

    assert str(failed.value) == str(refused.value)


def test_rows_that_a_footer_tells_of_and_pages_lack_are_named(tmp_path):
    """Whoever waits for them would wait for ever."""
    file = tmp_path / "data.parquet"
    pq.write_table(pa.table({"text": [f"w{n}" for n in range(60)]}), file)
    content = file.read_bytes()
    told = content.replace(b"\x16\x78\x19", b"\x16\x7e\x19")  # as the format writes 60 and 63
    file.write_bytes(told)
    rows = rows_of_files([file])
    assert (rows.n_rows, len(told)) == (63, len(content))

    assert len(rows.read([3, 62, 5], ["text"])) == 1
    with pytest.raises(RowError, match=r"have 63 rows, and row 63 is not there: .* damaged"):
        list(rows.read_all([3, 62, 5], ["text"]))


def test_files_of_one_dataset_may_have_different_columns(tmp_path):
    """Each is read by itself, as the service reads it: what one lacks is null in a column."""
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"more": [1.5], "text": ["c"]}), tmp_path / "c.parquet")
    files = sorted(tmp_path.iterdir())

    rows = rows_of_files(files)

    accepted = list(read_files(files, ["text", "label", "more"]))
    assert all_of(rows, "text", "label", "more") == accepted
    assert [value for _, value in rows.scan("text")] == ["a", "b", "c"]
    assert rows.names == ("text", "label", "more")


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", pa.table({"text": pa.array([], pa.string())})], ids=repr
)
def test_no_rows_are_no_rows_to_both(settings, content):
    """Neither takes an empty file for a broken one."""
    file = store(settings, content)

    assert list(read_files([file], ["text"])) == []
    with pytest.raises(DatasetEmpty):
        opened(settings)


@pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("most_bytes", [1, 40, 90, 200, 1000, 10**6])
def test_rows_that_would_fill_memory_are_read_some_at_a_time(tmp_path, format_, most_bytes):
    """The first of those wanted, one at least, in whatever order they stand in the files."""
    sizes = [3, 80, 5, 300, 0, 40, 12, 90, 1, 60]
    texts = [f"{n}" + "x" * size for n, size in enumerate(sizes)]
    for number in range(2):
        part = texts[number * 5 : number * 5 + 5]
        file = tmp_path / f"{number}.{format_}"
        match format_:
            case "jsonl":
                file.write_text("".join(f'{{"text": "{text}"}}\n' for text in part))
            case "csv":
                file.write_text("text\n" + "".join(f"{text}\n" for text in part))
            case "parquet":
                pq.write_table(pa.table({"text": part}), file, row_group_size=2)
    rows = rows_of_files(sorted(tmp_path.iterdir()), most_bytes=most_bytes)
    for seed in range(5):
        wanted = np.random.RandomState(seed).permutation(10)[: 4 + seed].tolist()

        first = rows.read(wanted, ["text"])
        every = list(rows.read_all(wanted, ["text"]))

        assert [row["text"] for _, row in every] == [texts[n] for n in wanted]
        assert 1 <= len(first) <= len(wanted)
        assert first == every[: len(first)]
        # No fewer than fit, but for what a format adds to a text.
        kept = [len(row["text"]) for _, row in first]
        assert len(kept) == 1 or sum(kept) <= most_bytes
        following = [len(texts[n]) for n in wanted[: len(first) + 1]]
        assert first == every or sum(following) + 40 * len(following) > most_bytes
