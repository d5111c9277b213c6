"""Kinds of files: how a sound one is damaged, and the way it takes through service and worker."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzz.files.bench import MODEL, Bench
from fuzz.files.mutations import damaged_bytes, damaged_json
from fuzz.files.samples import CHAT, TABLES, csv_samples, jsonl_of, odd_parquet, parquet_samples
from support.adapter_files import CONFIG, TAR, WEIGHTS, as_tar, files_of

ROWS = [{"text": f"w{n} w{n + 1}", "label": n % 2} for n in range(4)]
TALKS = [{"messages": CHAT} for _ in range(4)]
# Tries a file that a draw has damaged: whether it was accepted.
Try = Callable[[Random, Bench], bool]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: What the table calls it.
        attempt: Damages one and tries it.
    """

    name: str
    attempt: Try


def _upload(bench: Bench, data: bytes, media_type: str) -> bool:
    kept = bench.send("/datasets", content=data, headers={"Content-Type": media_type})
    if kept is None:
        return False
    return bench.calibrate(dataset={"source": "upload", "id": kept["id"]})


def _jsonl(random: Random, bench: Bench) -> bool:
    rows = random.choice([*TABLES.values()])
    lines = jsonl_of(rows).splitlines(keepends=True)
    number, how = random.randrange(len(rows)), random.random()
    if how < 0.3:  # beside what is read
        more = damaged_json(random, {"a": [1, "b", None], "c": {"d": 0.5}})
        lines[number] = json.dumps(rows[number])[:-1].encode() + b', "z": ' + more + b"}\n"
    elif how < 0.7:
        lines[number] = damaged_json(random, rows[number]) + b"\n"
    data = b"".join(lines)
    data = data if how < 0.7 else damaged_bytes(random, data)
    return _upload(bench, data, "application/x-ndjson")


def _csv(random: Random, bench: Bench) -> bool:
    samples = csv_samples()
    return _upload(
        bench, damaged_bytes(random, random.choice(samples), others=samples), "text/csv"
    )


@cache
def _parquet_samples() -> list[bytes]:
    return parquet_samples()


def _parquet(random: Random, bench: Bench) -> bool:
    samples, how = _parquet_samples(), random.random()
    data = odd_parquet(random) if how < 0.4 else random.choice(samples)
    if how > 0.3:
        data = damaged_bytes(random, data, others=samples)
    return _upload(bench, data, "application/vnd.apache.parquet")


def _model(bench: Bench, *, rows: list[dict[str, Any]] = ROWS) -> bool:
    return bench.calibrate(
        base_model=f"local:{MODEL}", dataset={"source": "inline", "rows": rows}
    )


def _safetensors(random: Random, bench: Bench) -> bool:
    file = bench.lay_out("model.safetensors", of="encoder")
    data = file.read_bytes()
    if random.random() < 0.4:
        file.write_bytes(damaged_bytes(random, data))
        return _model(bench)
    (length,) = struct.unpack("<Q", data[:8])
    header = damaged_json(random, json.loads(data[8 : 8 + length]))
    file.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    return _model(bench)


def _json_of(name: str, *, of: str, rows: list[dict[str, Any]]) -> Try:
    def attempt(random: Random, bench: Bench) -> bool:
        file = bench.lay_out(name, of=of)
        data = file.read_bytes()
        damaged = (
            damaged_json(random, json.loads(data))
            if random.random() < 0.8
            else damaged_bytes(random, data)
        )
        file.write_bytes(damaged)
        return _model(bench, rows=rows)

    return attempt


def _tokenizer(random: Random, bench: Bench) -> bool:
    name = random.choice(("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"))
    if name != "chat_template.jinja":
        return _json_of(name, of="chat", rows=TALKS)(random, bench)
    file = bench.lay_out(name, of="chat")
    file.write_bytes(damaged_bytes(random, file.read_bytes()))
    return _model(bench, rows=TALKS)


def _config(random: Random, bench: Bench) -> bool:
    return _json_of("config.json", of=random.choice(("encoder", "decoder")), rows=ROWS)(
        random, bench
    )


def _adapter(random: Random, bench: Bench) -> bool:
    files = files_of()
    match random.randrange(3):
        case 0:
            files[CONFIG] = damaged_json(random, json.loads(files[CONFIG]))
        case 1:
            files[WEIGHTS] = damaged_bytes(random, files[WEIGHTS])
    tar = as_tar(files)
    data = damaged_bytes(random, tar) if random.random() < 0.4 else tar
    kept = bench.send("/adapters", content=data, headers=TAR)
    if kept is None:
        return False
    return bench.send(f"/adapters/{kept['id']}/audit", json={}) is not None


KINDS = (
    Kind("parquet", _parquet),
    Kind("jsonl", _jsonl),
    Kind("csv", _csv),
    Kind("safetensors", _safetensors),
    Kind("config", _config),
    Kind("tokenizer", _tokenizer),
    Kind("adapter", _adapter),
)


def attempt(kind: Kind, number: int, bench: Bench, *, seed: int) -> bool:
    """Try one file; the same for the same seed and number.

    Returns:
        Whether it was accepted.

    Raises:
        Fault: It was neither accepted nor refused by name.
    """
    return kind.attempt(Random(f"{seed}/{kind.name}/{number}"), bench)


def find_kind(name: str) -> Kind:
    return next(kind for kind in KINDS if kind.name == name)


def folder_for(root: Path, kind: Kind) -> Path:
    folder = root / kind.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
