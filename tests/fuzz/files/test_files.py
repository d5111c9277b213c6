"""Damaged files are accepted or refused by name; `make fuzz-files` tries twenty times as many."""

import pytest

from fuzz.files.bench import open_bench
from fuzz.files.kinds import KINDS, attempt
from fuzz.files.samples import TABLES, csv_samples, jsonl_of, parquet_samples
from fuzz.files.watched import watched
from support.valkey import running_valkey

FILES = 100
# Of what is accepted, so much is also run by a worker; each takes a while.
JOBS = 3
MOST_GROWTH = 1 << 30
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The app, and a worker in this process."""
    folder = tmp_path_factory.mktemp("fuzz")
    with running_valkey() as url, open_bench(folder, url, max_jobs=0) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_damaged_file_is_accepted_or_refused_by_name(bench, kind):
    """By status and code, in bounded time and memory; the job of one ends as well."""
    bench.jobs_left = JOBS if kind.name != "tokenizer" else 1  # which starts a process for each
    with watched() as cost:
        accepted = [attempt(kind, number, bench, seed=1) for number in range(FILES)]

    assert 0 < sum(accepted) < FILES  # or they were all alike
    assert cost.growth < MOST_GROWTH


def test_the_files_are_sound_before_they_are_damaged(bench):
    """What is refused is refused for the damage."""
    samples = {
        "application/x-ndjson": [jsonl_of(rows) for rows in TABLES.values()],
        "text/csv": csv_samples(),
        "application/vnd.apache.parquet": parquet_samples(),
    }
    bench.jobs_left = 0
    for media_type, files in samples.items():
        for data in files:
            headers = {"Content-Type": media_type}
            kept = bench.send("/datasets", content=data, headers=headers)
            assert kept is not None
            task = {"source": "upload", "id": kept["id"]}
            model = "local:chat" if "messages" in kept["columns"] else "local:decoder"
            assert bench.calibrate(base_model=model, dataset=task) is True
