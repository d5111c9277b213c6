"""Uploads and registered datasets, resolved to their content."""

import os
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fimlora_contract.references import LocalDataset
from fimlora_jobs.data_folder import DataFolder
from fimlora_jobs.datasets.columns import ColumnError
from fimlora_jobs.datasets.files import read_header
from fimlora_service.resolve import local_datasets
from fimlora_service.resolve.local_datasets import LocalDatasets
from support.service import ROWS, as_jsonl


class TestUploads:
    @pytest.fixture
    def upload(self, http):
        def post(rows: list[dict[str, Any]]) -> dict[str, str]:
            type_ = {"Content-Type": "application/jsonl"}
            answer = http.post("/datasets", content=as_jsonl(rows), headers=type_)
            return {"source": "upload", "id": answer.json()["id"]}

        return post

    def test_an_upload_is_resolved_to_its_content(self, http, body, upload):
        """Digest, columns by role, and the number of rows are on the job's record."""
        dataset = upload(ROWS)

        job = http.post("/calibrate", json=body | {"dataset": dataset}).json()

        resolved = job["resolved"]["dataset"]
        assert resolved["digest"].startswith(f"sha256:{dataset['id'].removeprefix('ds_')}")
        assert (resolved["fields"]["text"], resolved["fields"]["label"]) == ("text", "label")
        assert resolved["rows"] == 8

    def test_an_unknown_upload_is_named(self, refuse):
        """404: there is no such dataset."""
        assert refuse(dataset="ds_" + "0" * 32)[0] == "dataset_not_found"

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"label": 0}, "line 10: column 'text' must be text, it holds nothing"),
            ({"text": None, "label": 0}, "line 10: column 'text'"),
            ({"text": "a"}, "line 10: column 'label'"),
            ({"text": "a", "label": {}}, "line 10: column 'label'"),
            ({"text": "a", "label": "b"}, "line 10: column 'label' mixes text and numbers"),
        ],
        ids=str,
    )
    def test_every_line_is_checked(self, refuse, upload, row, reason):
        """Not only the first lines: the last one is named."""
        code, detail = refuse(dataset=upload([*ROWS, ROWS[0], row, ROWS[1]]))

        assert code == "dataset_schema"
        assert detail.startswith(reason)

    def test_a_column_that_is_not_there_lists_those_that_are(self, refuse, upload):
        """The message shows what could have been meant."""
        code, detail = refuse(dataset=upload(ROWS) | {"columns": {"text": "txt"}})

        assert code == "dataset_schema"
        assert "['label', 'text']" in detail

    def test_one_class_is_no_classification(self, refuse, upload):
        """Every label is the same: there is nothing to tell apart."""
        code, detail = refuse(dataset=upload([{"text": "a", "label": "x"}] * 3))

        assert (code, "the one label 'x'" in detail) == ("dataset_schema", True)

    def test_labels_are_not_needed_for_a_language_model(self, http, body, upload):
        """The task decides what is checked."""
        dataset = upload([{"text": "a", "label": "x"}] * 3)
        change = {"dataset": dataset, "calibration": {"task": "causal_lm"}}

        assert http.post("/calibrate", json=body | change).status_code == 202

    @pytest.mark.parametrize(
        ("task", "labels", "reason"),
        [
            ("sequence_classification", (0, 0.5), "line 2 holds 0.5: set task regression, or"),
            ("regression", ("a", "b"), "task regression needs numbers"),
            ("auto", (0, ""), "mixes text|text of 0 characters"),
            ("auto", ("x" * 1001, "y"), "holds text of 1001 characters; a label has 1 to 1000"),
            ("auto", (10**30, 1), "which is no label"),
        ],
    )
    def test_labels_that_do_not_fit_the_task_are_refused(
        self, refuse, upload, task, labels, reason
    ):
        """Before the queue, in the words of the worker."""
        dataset = upload([{"text": "a", "label": label} for label in labels])

        code, detail = refuse(dataset=dataset, calibration={"task": task})

        assert code == "dataset_schema"
        assert re.search(reason, detail)

    def test_whole_numbers_may_be_amounts(self, http, body, upload):
        """The task says it, of labels that would be one class."""
        dataset = upload([{"text": "a", "label": 3}] * 2)
        change = {"dataset": dataset, "calibration": {"task": "regression"}}

        assert http.post("/calibrate", json=body | change).status_code == 202

    def test_floats_are_a_regression(self, http, body, upload):
        """Whole and broken numbers together are numbers."""
        dataset = upload([{"text": "a", "label": n} for n in (-1, 0.5, 2)])

        assert http.post("/calibrate", json=body | {"dataset": dataset}).status_code == 202

    def test_what_was_checked_once_is_not_read_again(self, http, body, upload, data_dir):
        """Uploads never change: a second request does not depend on the size of the first."""
        dataset = upload(ROWS)
        http.post("/calibrate", json=body | {"dataset": dataset})
        (data_dir / "uploads" / dataset["id"] / "data.jsonl").unlink()

        assert http.post("/calibrate", json=body | {"dataset": dataset}).status_code == 202


class TestLocalDatasets:
    def test_classes_may_come_late_in_a_long_file(self, data_dir):
        """The first rows of a sorted file have one label; the worker sees the rest."""
        (data_dir / "datasets").mkdir(exist_ok=True)
        rows = [{"text": "a", "label": n // 6} for n in range(12)]
        (data_dir / "datasets" / "sorted.jsonl").write_bytes(as_jsonl(rows))
        reference = LocalDataset(name="sorted.jsonl")

        first = LocalDatasets(DataFolder(data_dir), rows_checked=5)
        assert first.resolve(reference, task="auto")["rows"] is None
        every = LocalDatasets(DataFolder(data_dir), rows_checked=13)
        assert every.resolve(reference, task="auto")["rows"] == 12

    def test_a_dataset_is_checked_anew_only_when_it_has_changed(self, data_dir, monkeypatch):
        """Its first rows take long to read; a change is seen where its time was set back, too."""
        (data_dir / "datasets").mkdir(exist_ok=True)
        file = data_dir / "datasets" / "kept.jsonl"
        file.write_bytes(as_jsonl([{"text": "a"}, {"text": "b"}]))
        before, datasets = file.stat(), LocalDatasets(DataFolder(data_dir))
        reference, read = LocalDataset(name="kept.jsonl"), []
        monkeypatch.setattr(
            local_datasets,
            "read_header",
            lambda files: read.append(files) or read_header(files),
        )

        first = datasets.resolve(reference, task="auto")
        assert datasets.resolve(reference, task="auto") == first
        assert len(read) == 1

        file.write_bytes(as_jsonl([{"tixt": "a"}, {"tixt": "b"}]))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(ColumnError, match="tixt"):
            datasets.resolve(reference, task="auto")

    @pytest.mark.parametrize("task", ["auto", "sequence_classification"])
    def test_a_column_need_not_be_in_the_first_row(self, http, body, data_dir, task):
        """As in an upload."""
        (data_dir / "datasets").mkdir(exist_ok=True)
        late = [{"note": "x", **ROWS[0]}, *ROWS[1:]]
        for row in late:
            row["tag"] = row.get("tag")
        (data_dir / "datasets" / "late.jsonl").write_bytes(as_jsonl(late))
        change = {"dataset": "local:late.jsonl", "calibration": {"task": task}}

        job = http.post("/calibrate", json=body | change).json()

        assert job["resolved"]["dataset"]["fields"]["label"] == "label"

    def test_shards_of_two_kinds_are_refused_before_the_queue(self, refuse, data_dir):
        """Far behind the rows that are looked at."""
        folder = data_dir / "datasets" / "reviews"
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "a.parquet")
        pq.write_table(pa.table({"text": [{"x": 1}], "label": [0]}), folder / "b.parquet")

        code, detail = refuse(dataset="local:reviews")

        assert code == "dataset_schema"
        assert detail == "column 'text' holds text in a.parquet and objects in b.parquet"

    def test_a_registered_parquet_file_is_resolved(self, http, body, data_dir):
        """Only the columns in use are read."""
        folder = data_dir / "datasets" / "reviews"
        folder.mkdir(parents=True)
        for part in ("a", "b"):
            table = pa.Table.from_pylist([row | {"other": b"\xff"} for row in ROWS])
            pq.write_table(table, folder / f"{part}.parquet")

        answer = http.post("/calibrate", json=body | {"dataset": "local:reviews"})

        assert answer.status_code == 202, answer.text
        assert answer.json()["resolved"]["dataset"]["rows"] == 16

    def test_a_wrong_row_names_its_file(self, refuse, data_dir):
        """With several files the line alone would not lead there."""
        folder = data_dir / "datasets" / "reviews"
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_bytes(as_jsonl(ROWS))
        (folder / "b.jsonl").write_bytes(as_jsonl([*ROWS, {"text": 5, "label": 0}]))

        code, detail = refuse(dataset="local:reviews")

        assert code == "dataset_schema"
        assert detail.startswith("b.jsonl line 9: column 'text'")

    @pytest.mark.parametrize(
        ("files", "code"),
        [
            (None, "dataset_not_found"),
            ({}, "dataset_schema"),
            ({"a.jsonl": b""}, "dataset_empty"),
            ({"a.parquet": b"PAR1"}, "dataset_schema"),
        ],
        ids=["missing", "no-files", "empty", "damaged"],
    )
    def test_a_registered_dataset_without_rows_is_refused(self, refuse, data_dir, files, code):
        """Each reason has its code."""
        if files is not None:
            (data_dir / "datasets" / "reviews").mkdir(parents=True)
        for name, content in (files or {}).items():
            (data_dir / "datasets" / "reviews" / name).write_bytes(content)

        assert refuse(dataset="local:reviews")[0] == code
