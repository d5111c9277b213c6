"""Same rows, same plan: whole jobs over one set of rows in every container."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from fimlora_contract.digests import digest_of
from support.jobs import Jobs, write_jsonl

LENGTHS = (60, 9, 7, 3)
NAMES = ["bad", "fair", "good"]


def make_rows(labels: list[Any]) -> list[dict[str, Any]]:
    """Rows long and uneven enough that padding is cut."""
    draw = random.Random(0)
    return [
        {
            "text": " ".join(f"w{draw.randrange(50)}" for _ in range(LENGTHS[i % 4])),
            "label": label,
        }
        for i, label in enumerate(labels)
    ]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["label", "text", "note"])
        writer.writeheader()
        writer.writerows(row | {"note": "a, b"} for row in rows)


def write_everywhere(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Registered datasets of the same rows."""
    write_jsonl(folder / "lines.jsonl", rows)
    write_csv(folder / "cells.csv", rows)
    for n in range(11):
        cut = slice(n * len(rows) // 11, (n + 1) * len(rows) // 11)
        write_jsonl(folder / "line-shards" / f"part-{n}.jsonl", rows[cut])
        write_csv(folder / "cell-shards" / f"part-{n}.csv", rows[cut])
        kinds = (pa.int8(), pa.int64(), pa.float64())
        (folder / "column-shards").mkdir(exist_ok=True)
        pq.write_table(
            pa.table({
                "text": pa.array([r["text"] for r in rows[cut]], pa.large_string()),
                f"only-{n}": list(range(len(rows[cut]))),
                "label": pa.array([r["label"] for r in rows[cut]], kinds[n % 3]),
            }),
            folder / "column-shards" / f"part-{n}.parquet",
        )  # fmt: skip
    features = Features({"text": Value("string"), "label": ClassLabel(names=NAMES)})
    Dataset.from_list(rows, features=features).to_parquet(folder / "declared.parquet")
    return ["lines.jsonl", "cells.csv", "line-shards", "cell-shards", "column-shards",
            "declared.parquet"]  # fmt: skip


@pytest.mark.parametrize(
    "labels", [[0, 1, 2] * 12, [2, -1, 0, 1] * 9], ids=["labelled", "some-not"]
)
def test_same_rows_same_plan(jobs: Jobs, run_queue, labels):
    """Equal scores, ranks and adapter, and equal words on where they came from."""
    rows = make_rows(labels)
    names = write_everywhere(jobs.data_dir / "datasets", rows)
    datasets = [{"source": "local", "name": name} for name in names]
    upload = "ds_" + "0" * 32
    write_csv(jobs.data_dir / "uploads" / upload / "data.csv", rows)
    datasets += [{"source": "inline", "rows": rows}, {"source": "upload", "id": upload}]
    settings = {"n_batches": 4, "batch_size": 4, "max_length": 40}

    ids = [jobs.submit(dataset=dataset, calibration=settings) for dataset in datasets]
    run_queue()

    plans = []
    for id_ in ids:
        job = jobs.get(id_).to_job()
        assert job.result is not None, job.error
        folder = jobs.data_dir / "artifacts" / job.result.digest.replace(":", "-")
        plan = json.loads((folder / "rank_map.json").read_text())
        del plan["provenance"]["dataset"]
        assert plan["provenance"]["problem_type"] == "single_label_classification"
        plans.append(plan)
    assert len({digest_of(plan) for plan in plans}) == 1
