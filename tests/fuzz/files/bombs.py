"""What small files that unpack to gigabytes cost service and worker: `make fuzz-files`.

python tests/fuzz/files/bombs.py              # each in a process of its own; a table
python tests/fuzz/files/bombs.py cell-zstd    # one of them

Each is uploaded to the app, asked about, and read as a worker reads it. The exit code tells
whether any took more than a gigabyte, or more than two minutes.
"""

import argparse
import io
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT / place) for place in ("tests", "clients/python", "service", "worker")]
# By the name of their folder and not of this one, where a file of Python's may be hidden.
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != HERE]

import httpx2  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from fimlora_jobs.datasets.folders import FolderDigests  # noqa: E402
from fuzz.files.watched import watched  # noqa: E402
from support.service import make_model  # noqa: E402
from support.valkey import running_valkey  # noqa: E402

GIB, MIB = 1 << 30, 1 << 20
MOST_GROWTH, LONGEST_S = GIB, 120.0
PARQUET, CSV, JSONL = "application/vnd.apache.parquet", "text/csv", "application/x-ndjson"
Make = Callable[[Path], None]


def cell(compression: str, **options: Any) -> Make:
    """One cell of a gigabyte."""

    def make(file: Path) -> None:
        table = pa.table({"text": pa.array(["a" * GIB], pa.large_string())})
        pq.write_table(table, file, compression=compression, write_statistics=False, **options)

    return make


def repeats(file: Path) -> None:
    """A billion rows of one text, which stands in the file once for each ten million."""
    n = 10_000_000
    text = pa.DictionaryArray.from_arrays(pa.array(bytes(n), pa.int8()), ["w1 w2"])
    table = pa.table({"text": text})
    with pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
        for _ in range(100):
            writer.write_table(table, row_group_size=n)


def long_in_dictionary(around: Callable[[Any], Any]) -> Make:
    """A text of twelve megabytes that a hundred thousand rows refer to."""

    def make(file: Path) -> None:
        text = pa.DictionaryArray.from_arrays(
            pa.array([0] * 100_000, pa.int32()), ["x" * (12 * MIB)]
        )
        pq.write_table(
            pa.table({"text": around(text)}),
            file,
            compression="zstd",
            dictionary_pagesize_limit=GIB,
        )

    return make


def long_list(file: Path) -> None:
    """One row that is a list of two hundred million numbers."""
    numbers = pa.array(bytes(200_000_000), pa.int8())
    lists = pa.ListArray.from_arrays(pa.array([0, len(numbers)], pa.int32()), numbers)
    pq.write_table(pa.table({"text": ["w1"], "more": lists}), file, compression="zstd")


def many_columns(file: Path) -> None:
    """As many columns as are read, in many row groups."""
    table = pa.table({f"c{n}": [n] for n in range(1_999)})
    with pq.ParquetWriter(file, table.schema) as writer:
        for _ in range(99):
            writer.write_table(table)


def written(*parts: tuple[bytes, int]) -> Make:
    """Pieces, each so many times."""

    def make(file: Path) -> None:
        with file.open("wb") as out:
            for piece, times in parts:
                many = min(times, max(1, MIB // len(piece)))
                for _ in range(times // many):
                    out.write(piece * many)

    return make


def in_map(text: Any) -> Any:
    offsets = pa.array(range(len(text) + 1), pa.int32())
    return pa.MapArray.from_arrays(offsets, pa.array(["k"] * len(text)), text)


BOMBS: dict[str, tuple[str, Make]] = {
    "cell-zstd": (PARQUET, cell("zstd", use_dictionary=False)),
    "cell-dictionary": (PARQUET, cell("zstd")),
    "cell-snappy": (PARQUET, cell("snappy", use_dictionary=False)),
    "cell-gzip": (PARQUET, cell("gzip", use_dictionary=False)),
    "cell-brotli": (PARQUET, cell("brotli", use_dictionary=False)),
    "cell-v2": (PARQUET, cell("zstd", use_dictionary=False, data_page_version="2.0")),
    "repeats-1e9": (PARQUET, repeats),
    "dictionary-12MiB": (PARQUET, long_in_dictionary(lambda text: text)),
    "dictionary-in-map": (PARQUET, long_in_dictionary(in_map)),
    "list-2e8": (PARQUET, long_list),
    "columns-groups": (PARQUET, many_columns),
    "csv-endless-line": (CSV, written((b"text\n", 1), (b"a", 400 * MIB))),
    "csv-endless-quote": (CSV, written((b'text\n"', 1), (b"a\n", 200 * MIB))),
    "csv-commas": (CSV, written((b",", 400 * MIB))),
    "jsonl-endless-line": (JSONL, written((b'{"text": "', 1), (b"a", 400 * MIB))),
    "jsonl-brackets": (JSONL, written((b'{"text": [', 1), (b"[],", 5 * MIB), (b"0]}\n", 1))),
    "jsonl-deep": (JSONL, written((b'{"text": ', 1), (b"[", 400_000))),
    "jsonl-gzip": (JSONL, written((b"\x1f\x8b\x08\x00", 100 * MIB))),
    "jsonl-many-keys": (
        JSONL,
        lambda file: (
            file.write_text(
                json.dumps({f"k{n}": n for n in range(400_000)}) + "\n", encoding="utf-8"
            )
            and None
        ),
    ),
}


def main() -> int:
    """Measure each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {[*BOMBS]}")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        sys.stdout.write(json.dumps(measure(given.names[0])) + "\n")
        return 0
    tell(f"{'bomb':<20} {'file':>10} {'service':>10} {'worker':>10} {'seconds':>8}  said")
    is_wrong = False
    for name in given.names or BOMBS:
        found = _in_process(name)
        is_wrong |= max(found["service"], found["worker"]) > MOST_GROWTH
        is_wrong |= found["seconds"] > LONGEST_S
        tell(
            f"{name:<20} {found['size'] / 1024:>6.0f} KiB {found['service'] >> 20:>6} MiB "
            f"{found['worker'] >> 20:>6} MiB {found['seconds']:>8.1f}  {found['said'][:120]}"
        )
    return is_wrong


def _in_process(name: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "bombs.py"), name, "--child"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        return {
            "size": 0, "service": MOST_GROWTH * 99, "worker": 0, "seconds": 0.0,
            "said": f"the process ended with {done.returncode}: {done.stderr[-300:]}",
        }  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str) -> dict[str, Any]:
    """What a bomb costs, beyond what the process has for a small file of its format."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    media_type = BOMBS[name][0]
    headers = {"Content-Type": media_type}
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-", dir="/tmp") as folder,
        running_valkey() as url,
        running_service(Path(folder) / "data", url) as (http, pid),
    ):
        data_dir = Path(folder) / "data"
        make_model(data_dir / "models" / "tiny")
        file = data_dir / "datasets" / f"bomb.{SUFFIXES[media_type]}"
        _make_elsewhere(name, file)
        body = {"base_model": "local:tiny", "dataset": f"local:{file.name}", "budget": 2}
        http.post("/datasets", content=small(media_type), headers=headers)
        with watched(pid) as in_service:
            answers = [
                http.post("/datasets", content=pieces(file), headers=headers),
                http.post("/estimate", json=body),
            ]
        assert all(answer.status_code < 500 for answer in answers), answers
        with watched() as in_worker:
            read = _read_as_worker(file)
        said = [str(answer.json().get("detail", answer.status_code)) for answer in answers]
        return {
            "size": file.stat().st_size,
            "service": in_service.growth,
            "worker": in_worker.growth,
            "seconds": in_service.seconds + in_worker.seconds,
            "said": " | ".join([*said, read]),
        }


@contextmanager
def running_service(data_dir: Path, url: str) -> Iterator[tuple[httpx2.Client, int]]:
    """The service in a process of its own: a client of it, and its id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path), "REDIS_URL": url,
        "FIMLORA_DATA_DIR": str(data_dir), "FIMLORA_PORT": str(port),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "fimlora_service"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=LONGEST_S * 2) as http:
            _wait_until_up(http)
            yield http, process.pid
    finally:
        process.kill()
        process.wait()


def _wait_until_up(http: httpx2.Client) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(httpx2.HTTPError):
            http.get("/healthz")
            return
        time.sleep(0.1)
    raise RuntimeError("the service did not start within a minute")


SUFFIXES = {PARQUET: "parquet", CSV: "csv", JSONL: "jsonl"}


def _make_elsewhere(name: str, file: Path) -> None:
    """Have another process make the file: what that takes is not to be measured here."""
    code = f"from fuzz.files.bombs import BOMBS; from pathlib import Path; BOMBS[{name!r}][1](Path({str(file)!r}))"
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"], check=True
    )


def small(media_type: str) -> bytes:
    """A sound file, so that libraries are loaded before anything is measured."""
    if media_type == PARQUET:
        buffer = io.BytesIO()
        pq.write_table(pa.table({"text": ["w1"]}), buffer)
        return buffer.getvalue()
    return b"text\nw1\n" if media_type == CSV else b'{"text": "w1"}\n'


def pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(MIB):
            yield piece


def _read_as_worker(file: Path) -> str:
    """Open a registered dataset and read the rows that a job may draw; what comes of it."""
    from fimlora_contract.references import LocalDataset
    from fimlora_worker.inputs.rows import open_rows
    from fimlora_worker.job.failures import code_of
    from fimlora_worker.settings import Settings

    digests = FolderDigests()
    digest = digests.of_files({file.name: file})
    settings = Settings(data_dir=file.parents[1])
    reference = LocalDataset(source="local", name=file.name)
    try:
        rows = open_rows(reference, {"digest": digest}, settings, digests)
        step = max(1, rows.n_rows // 64)
        read = rows.read([*range(0, rows.n_rows, step)][:64], ["text"])
    except Exception as error:
        return f"{code_of(error)}: {error}"
    return f"{len(read)} of {rows.n_rows} rows"


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
