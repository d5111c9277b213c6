"""Parquet files: what differs harmlessly is read alike, and none takes more memory than allowed."""

import json
import subprocess
import sys
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fimlora_jobs.datasets.checks import survey_upload
from fimlora_jobs.datasets.columns import ColumnError, TextFields
from fimlora_jobs.datasets.files import check_kinds, read_files, read_header
from fimlora_jobs.datasets.parquet import ParquetLimits, read_footer, read_parquet
from fimlora_jobs.datasets.rows import MAX_ROW_BYTES, RowError

HUGE = 300 << 20  # Python's text, a gigabyte of it, would take the tests a minute
# Looks at a file as an upload, then at its rows, and says how much memory that took.
WATCH = """
import json, resource, sys
from pathlib import Path
import pyarrow.compute, pyarrow.parquet
from fimlora_jobs.datasets.checks import survey_upload
from fimlora_jobs.datasets.files import read_files
from fimlora_jobs.datasets.rows import RowError

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

def said(call):
    before = peak()
    try:
        reason = call()
    except RowError as error:
        reason = str(error)
    return [str(reason), peak() - before]

file = Path(sys.argv[1])
print(json.dumps([
    said(lambda: survey_upload(file).rows),
    said(lambda: sum(1 for _ in read_files([file], ["text"]))),
]))
"""


def watched(file):
    """What is said of a file by a fresh process, and the MiB that each look has added."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(file)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("others", "options"),
    [
        ([], {"use_dictionary": False}),
        ([], {}),
        (["b"] * 5000, {"use_dictionary": False}),
    ],
    ids=["alone", "in-a-dictionary", "among-others"],
)
def test_a_small_file_with_a_huge_cell_is_refused_unopened(tmp_path, others, options):
    """Ten KB that would take 300 MB, and as much again as a Python object."""
    file = tmp_path / "data.parquet"
    cells = ["a" * HUGE, *others]
    pq.write_table(
        pa.table({"text": cells}), file, compression="zstd", write_statistics=False, **options
    )
    assert file.stat().st_size < 40_000

    for reason, megabytes in watched(file):
        assert "column 'text' of the Parquet file has a page that unpacks to 31457" in reason
        assert megabytes < 50


def test_a_cell_that_many_rows_take_is_not_copied_for_all_of_them(tmp_path):
    """One value stands in the file, a hundred thousand rows refer to it."""
    file = tmp_path / "data.parquet"
    text = pa.DictionaryArray.from_arrays(
        pa.array([0] * 100_000, pa.int32()), ["x" * (12 << 20)]
    )
    pq.write_table(
        pa.table({"text": text}), file, compression="zstd", dictionary_pagesize_limit=HUGE
    )

    [upload, rows] = watched(file)

    assert upload[0] == "100000"
    assert "the rows have more than 4294967296 bytes" in rows[0]
    assert upload[1] + rows[1] < 400


@pytest.mark.parametrize(
    "around",
    [
        lambda text: pa.MapArray.from_arrays(
            pa.array(range(len(text) + 1), pa.int32()), pa.array(["k"] * len(text)), text
        ),
        lambda text: pa.FixedSizeListArray.from_arrays(text, 1),
        lambda text: pa.ListArray.from_arrays(
            pa.array(range(len(text) + 1), pa.int32()),
            pa.StructArray.from_arrays([text], ["a"]),
        ),
    ],
    ids=["map", "fixed list", "structs in lists"],
)
def test_a_cell_that_many_rows_take_is_found_inside_others_too(tmp_path, around):
    """Whatever it is nested in, no batch holds it a thousand times."""
    file = tmp_path / "data.parquet"
    text = pa.DictionaryArray.from_arrays(
        pa.array([0] * 2_000, pa.int32()), ["x" * (1 << 20)]
    ).cast(pa.string())
    pq.write_table(
        pa.table({"text": around(text)}),
        file,
        compression="zstd",
        dictionary_pagesize_limit=HUGE,
        write_batch_size=100,
    )

    [upload, rows] = watched(file)

    assert (upload[0], rows[0]) == ("2000", "2000")
    assert upload[1] + rows[1] < 700


@pytest.mark.parametrize(
    "kind",
    [
        pa.map_(pa.string(), pa.string()), pa.list_view(pa.string()), pa.list_(pa.string(), 2),
        pa.large_list(pa.struct([("a", pa.map_(pa.string(), pa.list_(pa.string())))])),
    ],
    ids=str,
)  # fmt: skip
def test_values_nested_in_any_way_are_read(tmp_path, kind):
    """Those of a batch that begins anywhere in them."""
    file = tmp_path / "data.parquet"
    cell: object = [("a", "b"), ("c", None)]
    if not pa.types.is_map(kind):
        cell = [{"a": [("k", ["b"])]}] if pa.types.is_large_list(kind) else ["a", "b"]
    pq.write_table(pa.table({"text": pa.array([cell] * 50, kind)}), file)

    limits = ParquetLimits(batch_bytes=500)

    assert [row["text"] for _, row in read_parquet(file, ["text"], limits)] == [cell] * 50


def test_text_that_is_written_as_a_difference_is_not_unpacked_at_once(tmp_path):
    """Forty rows of eight MiB in less than a kilobyte."""
    file = tmp_path / "data.parquet"
    table = pa.table({"text": ["x" * (8 << 20) + str(i) for i in range(40)]})
    encoding = {"text": "DELTA_BYTE_ARRAY"}
    pq.write_table(
        table, file, use_dictionary=False, column_encoding=encoding, compression="zstd"
    )

    [upload, rows] = watched(file)

    assert (upload[0], rows[0]) == ("40", "40")
    assert upload[1] + rows[1] < 500


def test_a_row_beyond_the_limit_is_named(tmp_path):
    """The same limit that a line of JSONL has."""
    file = tmp_path / "data.parquet"
    cells = ["a", "b" * (MAX_ROW_BYTES + 1), "c"]
    pq.write_table(pa.table({"text": cells}), file, use_dictionary=False)

    with pytest.raises(RowError, match=f"row 2 has {MAX_ROW_BYTES + 1} bytes"):
        list(read_parquet(file, ["text"]))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (ParquetLimits(footer_bytes=100), r"the footer .* has \d+ bytes; at most 100 are read"),
        (ParquetLimits(columns=2), "has 3 columns; at most 2 are read"),
        (ParquetLimits(chunks=5), "has 3 columns in 2 row groups, 6 pieces; at most 5"),
        (ParquetLimits(page_bytes=8), "column 'text' .* a page that unpacks to .* at most 8"),
        (ParquetLimits(pages=1), "the Parquet file has more than 1 pages"),
        (ParquetLimits(value_bytes=5), "the rows have more than 5 bytes"),
    ],
    ids=["footer", "columns", "pieces", "page", "pages", "values"],
)
def test_each_limit_is_named(tmp_path, limits, message):
    """With what the file has and what is allowed."""
    file = tmp_path / "data.parquet"
    table = pa.table({"text": ["a long text"] * 4, "label": [0, 1] * 2, "x": [1] * 4})
    pq.write_table(table, file, row_group_size=2)
    assert [row["text"] for _, row in read_parquet(file, ["text"])] == ["a long text"] * 4

    with pytest.raises(RowError, match=message):
        list(read_parquet(file, ["text"], limits))


@pytest.mark.parametrize("batch_bytes", [1, 100, 10_000])
def test_batches_of_any_size_hold_the_same_rows(tmp_path, batch_bytes):
    """In several row groups and pages, with nulls, repeated and nested values."""
    file = tmp_path / "data.parquet"
    rows = [
        {"text": None if i % 7 == 0 else f"w{i % 5}" * (i % 11), "more": [{"a": "b" * (i % 3)}]}
        for i in range(300)
    ]
    pq.write_table(
        pa.Table.from_pylist(rows),
        file,
        row_group_size=70,
        data_page_size=100,
        write_batch_size=8,
    )
    limits = ParquetLimits(batch_bytes=batch_bytes)

    found = list(read_parquet(file, ["text", "more"], limits))

    assert [row for _, row in found] == rows
    assert [where for where, _ in found] == [f"row {i}" for i in range(1, 301)]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_pages_of_every_kind_are_told_by_their_headers(tmp_path, version, compression):
    """Old and new page headers, with and without statistics."""
    file = tmp_path / "data.parquet"
    table = pa.table({
        "text": [f"w{i}" for i in range(500)],
        "label": pa.array([None, 1] * 250, pa.int8()),
        "empty": pa.nulls(500, pa.string()),
    })  # fmt: skip
    pq.write_table(table, file, data_page_version=version, compression=compression)

    assert survey_upload(file).columns == ("text", "label")
    rows = [row for _, row in read_parquet(file, table.column_names)]
    assert rows == table.to_pylist()


def test_a_wide_file_is_refused_by_its_number_of_columns(tmp_path):
    """Its footer alone would be looked through for minutes."""
    file = tmp_path / "data.parquet"
    pq.write_table(pa.table({f"c{i}": [1] for i in range(10_001)}), file)
    with pytest.raises(RowError, match="has 10001 columns; at most 10000 are read"):
        survey_upload(file)

    pq.write_table(pa.table({f"c{i}": [1] for i in range(2_001)}), file)
    with pytest.raises(RowError, match="there are 2001 columns; at most 2000 are taken"):
        survey_upload(file)


def test_a_name_of_a_million_letters_is_refused_in_few_words(tmp_path):
    """It would be in every message and every record."""
    file = tmp_path / "data.parquet"
    pq.write_table(pa.table({"n" * 1_000_000: [1]}), file)
    jsonl = tmp_path / "data.jsonl"
    jsonl.write_text(json.dumps({"n" * 1_000_000: 1}))

    for path in (file, jsonl):
        with pytest.raises(RowError, match="has 1000000 characters; at most 256") as refused:
            survey_upload(path)
        assert len(str(refused.value)) < 200


def test_too_many_rows_are_refused(tmp_path):
    """However little each of them holds."""
    pq.write_table(pa.table({"text": ["a"] * 5}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 5)

    for name in ("a.parquet", "a.jsonl"):
        assert survey_upload(tmp_path / name, max_rows=5).rows == 5
        with pytest.raises(RowError, match=r"there are \d rows; at most 4 are taken"):
            survey_upload(tmp_path / name, max_rows=4)


class TestShards:
    """Files of one dataset that were not written by one writer."""

    SHARDS = (
        pa.table({"text": ["a"], "label": pa.array([0], pa.int64())}),
        pa.table(
            {"label": pa.array([1], pa.int8()), "text": pa.array(["b"], pa.large_string())}
        ),
        pa.table(
            {"text": pa.array(["c"]).dictionary_encode(), "label": [True], "more": [b"x"]}
        ),
        pa.table({"text": pa.array(["d"], pa.string_view()), "label": pa.array([1.0])}),
        pa.table({"more": [{"y": 1}], "label": pa.array([2], pa.uint32()), "text": ["e"]}),
        pa.table({"text": pa.array([], pa.string())}),
    )

    def write(self, folder, *tables):
        files = [folder / f"{n}.parquet" for n in range(len(tables))]
        for file, table in zip(files, tables, strict=True):
            pq.write_table(table, file)
        return files

    def test_harmless_differences_are_read_alike(self, tmp_path):
        """Columns that nobody uses, in any order, and values of any width."""
        files = self.write(tmp_path, *self.SHARDS)
        check_kinds(files, TextFields(text="text", label="label"))

        rows = [row for _, row in read_files(files, ["text", "label"])]

        assert [(row["text"], row["label"]) for row in rows] == [
            ("a", 0), ("b", 1), ("c", True), ("d", 1.0), ("e", 2),
        ]  # fmt: skip
        assert read_header(files).columns == ("text", "label", "more")

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (
                {"text": [{"x": "b"}], "label": [1]},
                "'text' holds text in 0.parquet and objects",
            ),
            (
                {"text": ["b"], "label": ["one"]},
                "'label' holds numbers in 0.parquet and text in",
            ),
            (
                {"text": [["b"]], "label": [1]},
                "'text' holds text in 0.parquet and lists of text",
            ),
            ({"text": [b"b"], "label": [1]}, "'text' holds text in 0.parquet and binary in"),
        ],
        ids=["objects", "labels", "lists", "bytes"],
    )
    def test_what_is_not_the_same_is_refused_by_name(self, tmp_path, other, message):
        """The footers tell, wherever in the dataset the rows stand."""
        files = self.write(tmp_path, self.SHARDS[0], pa.table(other))

        with pytest.raises(ColumnError, match=message):
            check_kinds(files, TextFields(text="text", label="label"))

    def test_a_file_without_any_column_in_use_is_refused(self, tmp_path):
        """Its rows would silently be none."""
        files = self.write(tmp_path, self.SHARDS[0], pa.table({"body": ["b"]}))

        with pytest.raises(RowError, match=r"1\.parquet has none of the columns"):
            list(read_files(files, ["text", "label"]))

    def test_files_that_declare_different_classes_are_refused(self, tmp_path):
        """The same number would stand for two classes."""
        feature = (
            '{{"info": {{"features": {{"label": {{"_type": "ClassLabel", "names": {}}}}}}}}}'
        )
        tables = [
            pa.table({"label": [0]}).replace_schema_metadata(
                {"huggingface": feature.format(names)}
            )
            for names in ('["x", "y"]', '["y", "x"]')
        ]
        files = self.write(tmp_path, *tables)

        assert read_footer(files[0]).classes == {"label": ("x", "y")}
        with pytest.raises(ColumnError, match="different classes for column 'label'"):
            read_header(files)


@pytest.mark.parametrize(
    "metadata", [b"", b"{", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 3}}}}']
)  # fmt: skip
def test_metadata_that_say_nothing_declare_nothing(tmp_path, metadata):
    """Anybody may write anything there."""
    table = pa.table({"label": [0]}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")

    assert read_footer(tmp_path / "a.parquet").classes == {}


def test_a_file_cut_anywhere_is_refused_and_no_change_raises_anything_else(tmp_path):
    """As damaged, and not by whatever the damage makes of it."""
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["some text"] * 50, "label": [0, 1] * 25}), file)
    content = file.read_bytes()

    for position in range(0, len(content), 7):
        file.write_bytes(content[:position])
        with pytest.raises(RowError):
            survey_upload(file)
        for damaged in (
            content[:position] + b"\xff" + content[position + 1 :],
            content[:position] + bytes(4) + content[position + 4 :],
        ):
            file.write_bytes(damaged)
            with suppress(RowError):
                survey_upload(file)
                list(read_files([file], ["text", "label"]))
