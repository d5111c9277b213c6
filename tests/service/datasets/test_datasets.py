"""Datasets: upload, list, look at, delete."""

import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fimlora_jobs.data_folder import DataFolder
from fimlora_jobs.datasets.rows import BYTE_ORDER_MARK
from fimlora_service.datasets.local import data_files, list_local_datasets
from fimlora_service.datasets.uploads import delete_upload
from fimlora_service.errors import DatasetInUse, DatasetUnreachable
from fimlora_service.keys.principal import EVERYBODY
from support.ordinary_user import as_ordinary_user, open_folder
from support.service import ROWS, as_jsonl

JSONL = {"Content-Type": "application/x-ndjson"}
CSV = {"Content-Type": "text/csv; charset=utf-8"}
PARQUET = {"Content-Type": "application/vnd.apache.parquet"}


def as_parquet(rows) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def as_csv(rows) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, [*rows[0]])
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def as_bomb() -> bytes:
    """Ten KB with a cell of 300 MB."""
    buffer = io.BytesIO()
    table = pa.table({"text": ["a" * (300 << 20)], "label": [0]})
    pq.write_table(table, buffer, compression="zstd", write_statistics=False)
    return buffer.getvalue()


def left_behind(data_dir) -> list[str]:
    """Everything in the folders an upload passes through."""
    return [str(p) for room in ("tmp", "uploads") for p in (data_dir / room).iterdir()]


@pytest.mark.parametrize(
    ("content", "headers", "format_"),
    [
        (as_jsonl(ROWS), JSONL, "jsonl"),
        (as_jsonl(ROWS), {"Content-Type": "application/jsonl; charset=utf-8"}, "jsonl"),
        (b"\n" + as_jsonl(ROWS).replace(b"\n", b"\r\n\r\n"), JSONL, "jsonl"),
        (BYTE_ORDER_MARK + as_jsonl(ROWS), JSONL, "jsonl"),
        (as_parquet(ROWS), PARQUET, "parquet"),
        (as_csv(ROWS), CSV, "csv"),
        (BYTE_ORDER_MARK + as_csv(ROWS), CSV, "csv"),
    ],
    ids=[
        "jsonl",
        "jsonl-alias",
        "jsonl-blank-lines",
        "jsonl-byte-order-mark",
        "parquet",
        "csv",
        "csv-byte-order-mark",
    ],
)
def test_an_upload_is_kept_under_its_content(http, data_dir, content, headers, format_):
    """The first time 201, then 200 with the same id; the bytes are those that were sent."""
    first = http.post("/datasets", content=content, headers=headers)
    second = http.post("/datasets", content=content, headers=headers)

    dataset = first.json()
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json() == http.get(first.headers["Location"]).json()
    assert (dataset["rows"], dataset["columns"]) == (8, ["text", "label"])
    stored = data_dir / "uploads" / dataset["id"]
    assert (stored / f"data.{format_}").read_bytes() == content
    assert json.loads((stored / "meta.json").read_bytes())["id"] == dataset["id"]
    assert not list((data_dir / "tmp").iterdir())


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b'{"text": "a"}\n\n{"text": \n', "line 3 is not JSON"),
        (b'{"text": "a"}\n["b"]\n', "line 2 is not an object"),
        (b'{"text": "a"}\n{"x": NaN}\n', "line 2 cannot be read: NaN is not a number"),
        (b'{"x": -Infinity}\n', "line 1 cannot be read: -Infinity is not a number"),
        (b'{"x": 1e400}\n', "line 1 cannot be read: a number is too large"),
        (b'{"x": ' + b"9" * 5000 + b"}\n", "line 1 cannot be read: an integer has too many"),
        (b'{"text": "\xff"}\n', "line 1 is not UTF-8"),
        (b'{"text": "\\ud800"}\n', "line 1 holds half a character"),
        (b'{"\\ud800": 1}\n', "line 1 holds half a character"),
        (b'{"x": ' + b"[" * 100_000 + b"\n", "line 1 cannot be read: it is nested too deeply"),
        (b"{}\n\xef\xbb\xbf{}\n", "line 2 is not JSON"),
        (b'{"text": "a"} {"text": "b"}\n', "line 1 is not JSON: Extra data"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_line_that_cannot_be_read_is_named(http, data_dir, content, where):
    """The message starts with its number, and nothing of the upload stays."""
    answer = http.post("/datasets", content=content, headers=JSONL)

    assert (answer.status_code, answer.json()["code"]) == (422, "dataset_schema")
    assert answer.json()["detail"].startswith(where)
    assert left_behind(data_dir) == []


@pytest.mark.parametrize(
    ("content", "headers", "code"),
    [
        (b"", JSONL, "dataset_empty"),
        (b"\n \n", JSONL, "dataset_empty"),
        (as_parquet(ROWS)[:-20], PARQUET, "dataset_schema"),
        (b"PAR1PAR1", PARQUET, "dataset_schema"),
        (as_jsonl(ROWS), PARQUET, "dataset_schema"),
        (as_parquet(ROWS), JSONL, "dataset_schema"),
        (as_parquet(ROWS), CSV, "dataset_schema"),
        (b"text,label\na,0\nb\n", CSV, "dataset_schema"),
        (b"text,label\n", CSV, "dataset_empty"),
        (as_bomb, PARQUET, "dataset_schema"),
        (as_jsonl([{f"c{n}": 1 for n in range(2_001)}]), JSONL, "dataset_schema"),
        (as_jsonl(ROWS), {"Content-Type": "text/plain"}, "unsupported_media_type"),
        (as_jsonl(ROWS), {}, "unsupported_media_type"),
        (as_jsonl(ROWS), JSONL | {"Content-Encoding": "gzip"}, "unsupported_media_type"),
        (b'{"text": "' + b"x" * 500_000, JSONL, "payload_too_large"),
    ],
)
def test_an_upload_that_is_refused_leaves_nothing_behind(
    http, data_dir, content, headers, code
):
    """Empty, damaged, of another type, too large."""
    sent = content() if callable(content) else content  # made where it is sent: it takes 300 MB

    answer = http.post("/datasets", content=sent, headers=headers)

    assert answer.json()["code"] == code, answer.text
    assert left_behind(data_dir) == []


def test_equal_uploads_at_once_are_one_dataset(http, data_dir):
    """One of the racers keeps its files, the others find them there."""

    def post(_: int) -> int:
        return http.post("/datasets", content=as_jsonl(ROWS), headers=JSONL).status_code

    with ThreadPoolExecutor(6) as pool:
        codes = sorted(pool.map(post, range(6)))

    assert codes == [200] * 5 + [201]
    assert len(left_behind(data_dir)) == 1


def test_a_stream_without_a_length_is_cut_at_the_limit(http, data_dir):
    """Chunked bodies declare no length; the limit holds while they are read."""
    chunks = (b"x" * 10_000 for _ in range(1000))

    answer = http.post("/datasets", content=chunks, headers=JSONL)

    assert answer.json()["code"] == "payload_too_large"
    assert left_behind(data_dir) == []


def test_uploaded_and_registered_datasets_are_listed(http, data_dir):
    """A file, a folder and an upload; what holds no data is left out."""
    (data_dir / "datasets" / "file").symlink_to(write(data_dir / "x.jsonl"))
    write(data_dir / "datasets" / "folder" / "a.jsonl")
    write(data_dir / "datasets" / "folder" / "b.jsonl")
    write(data_dir / "datasets" / "junk" / "readme.txt")
    id_ = http.post("/datasets", content=as_jsonl(ROWS), headers=JSONL).json()["id"]

    listed = {d["id"]: d["format"] for d in http.get("/datasets").json()["data"]}

    assert listed == {id_: "jsonl", "file": "jsonl", "folder": "folder"}


def test_a_dataset_that_may_not_be_read_hides_no_other():
    """A folder closed to the service is left out of the list, and refused by its name."""
    with open_folder() as datasets:
        write(datasets / "open" / "a.jsonl")
        closed = write(datasets / "closed" / "a.jsonl").parent
        closed.chmod(0)
        with as_ordinary_user():
            listed = [dataset.id for dataset in list_local_datasets(datasets)]
            with pytest.raises(DatasetUnreachable, match="may not be read"):
                data_files("closed", datasets=datasets)
        closed.chmod(0o755)

    assert listed == ["open"]


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_jsonl(ROWS))
    return path


@pytest.fixture
def upload(http) -> str:
    """Id of an uploaded dataset."""
    return http.post("/datasets", content=as_jsonl(ROWS), headers=JSONL).json()["id"]


def test_one_dataset_is_described_as_in_the_list(http, upload, data_dir):
    """Uploaded or registered."""
    (data_dir / "datasets" / "mine.jsonl").write_bytes(as_jsonl(ROWS))

    listed = http.get("/datasets").json()["data"]

    assert [http.get(f"/datasets/{d['id']}").json() for d in listed] == listed
    assert [d["id"] for d in listed] == [upload, "mine.jsonl"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize(
    "id_", ["ds_" + "0" * 32, "none", "%2e%2e", "..%2f", "ds_x", "a%5Cb", ".git"]
)
def test_a_dataset_that_is_not_there_is_not_found(http, data_dir, method, id_):
    """404, and no name is a path."""
    before = sorted(data_dir.rglob("*"))

    answer = http.request(method, f"/datasets/{id_}")

    assert answer.status_code == 404, answer.text
    assert answer.json()["code"] in {"dataset_not_found", "not_found"}
    assert sorted(data_dir.rglob("*")) == before


def test_a_deleted_upload_is_gone(http, body, upload, data_dir):
    """204, then 404; it can be uploaded again, under the same id."""
    answer = http.delete(f"/datasets/{upload}")

    assert (answer.status_code, answer.content) == (204, b"")
    assert left_behind(data_dir) == []
    assert http.delete(f"/datasets/{upload}").status_code == 404
    request = http.post("/calibrate", json=body | {"dataset": upload})
    assert request.json()["code"] == "dataset_not_found"
    again = http.post("/datasets", content=as_jsonl(ROWS), headers=JSONL)
    assert (again.status_code, again.json()["id"]) == (201, upload)


def test_an_upload_that_open_jobs_need_is_kept(http, body, upload, store, data_dir):
    """409 names the jobs, queued and running; once they have ended it may go."""
    ids = [
        http.post("/calibrate", json=body | {"budget": n} | named).json()["id"]
        for n, named in (
            (2, {"dataset": upload}),
            (3, {"dataset": upload}),
            (4, {"retain": upload, "allocation": {"method": "vila"}}),
        )
    ]
    http.post("/calibrate", json=body)
    store.start(ids[0], 1, worker="w")

    refused = http.delete(f"/datasets/{upload}")

    assert (refused.status_code, refused.json()["code"]) == (409, "dataset_in_use")
    assert [error["job_id"] for error in refused.json()["errors"]] == sorted(ids)
    assert (data_dir / "uploads" / upload).is_dir()
    for id_ in ids:
        http.post(f"/jobs/{id_}/cancel")
    assert "by a job that has not ended" in http.delete(f"/datasets/{upload}").json()["detail"]
    store.confirm_cancel(ids[0], 1)
    assert http.delete(f"/datasets/{upload}").status_code == 204


def test_a_job_accepted_in_the_same_moment_keeps_its_dataset(http, upload, data_dir):
    """It is put back as if nothing had happened."""
    answers = iter([[], ["job_1"]])
    folder = DataFolder(data_dir)
    before = sorted(p.read_bytes() for p in (data_dir / "uploads" / upload).iterdir())

    with pytest.raises(DatasetInUse, match="needed by a job"):
        delete_upload(
            upload, data_folder=folder, principal=EVERYBODY, find_users=lambda: next(answers)
        )

    assert sorted(p.read_bytes() for p in (data_dir / "uploads" / upload).iterdir()) == before
    assert not list((data_dir / "tmp").iterdir())


def test_a_registered_dataset_is_the_operators(http, data_dir):
    """404 that says so; the file stays."""
    (data_dir / "datasets" / "mine.jsonl").write_bytes(as_jsonl(ROWS))

    answer = http.delete("/datasets/mine.jsonl")

    assert "registered datasets are the operator's" in answer.json()["detail"]
    assert (data_dir / "datasets" / "mine.jsonl").is_file()
