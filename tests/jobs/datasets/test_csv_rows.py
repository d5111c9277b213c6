"""CSV files: text under the names of the first line, each row by the number of its line."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fimlora_jobs.datasets.checks import survey_upload
from fimlora_jobs.datasets.csv_rows import read_csv
from fimlora_jobs.datasets.rows import BYTE_ORDER_MARK, MAX_ROW_BYTES, RowError
from fimlora_jobs.datasets.table import rows_of_files

MAX_LINE = MAX_ROW_BYTES // 16
READABLE = {
    "plain": (b"text,label\na,0\nb,1\n", [("line 2", "a", "0"), ("line 3", "b", "1")]),
    "no-last-newline": (b"text,label\na,0", [("line 2", "a", "0")]),
    "windows": (b"text,label\r\na,0\r\n\r\nb,1\r\n", [("line 2", "a", "0"), ("line 4", "b", "1")]),
    "byte-order-mark": (BYTE_ORDER_MARK + b'"text",label\na,0\n', [("line 2", "a", "0")]),
    "quotes": (b'text,label\n"a ""b"", c",0\n', [("line 2", 'a "b", c', "0")]),
    "newlines": (b'text,label\n"a\n\nb",0\nc,1\n', [("line 2", "a\n\nb", "0"), ("line 5", "c", "1")]),
    "numbered": (b",text,label\n0,a,0\n1,b,1\n", [("line 2", "a", "0"), ("line 3", "b", "1")]),
    "spaces": (b" text , label \na,0\n", [("line 2", "a", "0")]),
    "long": (b"text,label\n" + b"x" * 200_000 + b",0\n", [("line 2", "x" * 200_000, "0")]),
    "null-words": (b"text,label\nNA,null\n", [("line 2", "NA", "null")]),
}  # fmt: skip
UNREADABLE = {
    "more-cells": (
        b"text,label\na,0\nb,1,2\n",
        "line 3 has 3 cells, but the first line names 2",
    ),
    "fewer-cells": (
        b"text,label\na,0\n\nb\n",
        "line 4 has 1 cells, but the first line names 2",
    ),
    "open-quote": (b'text,label\na,0\n"b,1\n', "line 3 is not CSV: unexpected end of data"),
    "text-after-quote": (b'text,label\n"a"b,0\n', "line 2 is not CSV: ',' expected after '\"'"),
    "latin-1": (b"text,label\n\xe9,0\n", "line 2 is not UTF-8"),
    "utf-16": ("text,label\na,0\n".encode("utf-16"), "line 1 is not UTF-8"),
    "same-name": (b"text,text\na,b\n", "line 1 names the column 'text' more than once"),
    "no-names": (b",\na,b\n", "line 1 names no column"),
    "semicolons": (b"text;label\na;0\n", "line 1 is separated by ';'; a CSV file needs commas"),
    "tabs": (b"text\tlabel\na\t0\n", r"line 1 is separated by '\\t'"),
    "too-long": (
        b'text\n"' + (b"x" * MAX_LINE + b"\n") * 17 + b'"\n',
        "the row that ends in line",
    ),
    "old-mac": (b"text,label\ra,0\rb,1\r", "line 1 is not CSV: new-line character"),
}


@pytest.mark.parametrize(("content", "expected"), READABLE.values(), ids=READABLE)
def test_rows_are_text_with_the_line_they_start_on(tmp_path, content, expected):
    """Read one after the other, and picked by number."""
    file = tmp_path / "data.csv"
    file.write_bytes(content)
    rows = [(where, {"text": text, "label": label}) for where, text, label in expected]

    assert list(read_csv(file)) == rows
    picked = rows_of_files([file])
    assert picked.names == ("text", "label")
    numbers = range(len(rows))[::-1]
    assert picked.read(numbers, ["text"]) == rows[::-1]


@pytest.mark.parametrize(("content", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_row_that_cannot_be_read_is_named(tmp_path, content, message):
    """By its line, as an editor counts."""
    file = tmp_path / "data.csv"
    file.write_bytes(content)

    with pytest.raises(RowError, match=message):
        survey_upload(file)


def test_another_separator_is_put_right_by_another_file_and_not_by_names_of_columns(tmp_path):
    """The next step is a line that does it; it says what it is separated by."""
    file = tmp_path / "data.csv"
    file.write_bytes(b"text\tlabel\na\t0\n")

    with pytest.raises(RowError) as refused:
        survey_upload(file)

    assert r"read_csv(FILE, sep='\t').to_csv(FILE, index=False)" in refused.value.next_step


@given(
    st.lists(st.tuples(st.text(), st.text()).map(lambda c: [x.replace("\r", "") for x in c]))
)
def test_what_python_writes_is_read_as_it_was(tmp_path_factory, cells):
    """Whatever the text: separators, quotes, newlines, other scripts."""
    file = tmp_path_factory.mktemp("csv") / "data.csv"
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerows([["a", "b"], *cells])
    file.write_bytes(buffer.getvalue().encode(errors="replace"))
    kept = [[c.encode(errors="replace").decode() for c in row] for row in cells]

    assert [list(row.values()) for _, row in read_csv(file)] == kept
    rows = rows_of_files([file])
    assert [list(r.values()) for _, r in rows.read(range(rows.n_rows), ())] == kept


@pytest.mark.parametrize("content", [b"", b"\n\n", BYTE_ORDER_MARK, b"text,label\n"])
def test_no_rows_are_no_rows(tmp_path, content):
    """An empty file is not a broken one."""
    file = tmp_path / "data.csv"
    file.write_bytes(content)

    assert survey_upload(file).rows == 0


def test_a_million_names_are_refused_at_once(tmp_path):
    """Comparing each with each would take days."""
    file = tmp_path / "data.csv"
    names = ",".join(f"c{n}" for n in range(400_000))
    file.write_text(f"{names}\n{',' * 399_999}\n")

    with pytest.raises(RowError, match="there are 400000 columns; at most 2000 are taken"):
        survey_upload(file)


@pytest.mark.parametrize("line", [b"," * 600_000, b'"a",' * 600_000], ids=["empty", "quoted"])
def test_half_a_million_cells_are_refused_unread(tmp_path, line):
    """Each would be an object; commas inside quotes are text."""
    file = tmp_path / "data.csv"
    file.write_bytes(b"text\n" + line + b"\n")
    with pytest.raises(RowError, match="line 2 has more than 500,000 cells"):
        survey_upload(file)

    file.write_bytes(b'text\n"' + b"a,[{" * 600_000 + b'"\n')
    assert survey_upload(file).rows == 1
