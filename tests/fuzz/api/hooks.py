"""What schemathesis cannot know of the service: what is there, and how long one may wait."""

import json
import os
import zlib
from typing import Any

import schemathesis
from schemathesis import Case, HookContext, SerializationContext
from schemathesis.transport.serialization import Binary

# Values of path parameters and of fields of bodies that stand for something, by their names.
KNOWN: dict[str, list[Any]] = json.loads(os.environ["FIMLORA_FUZZ_KNOWN"])
LONGEST_WAIT_S = 0.1
REQUIRED = ("base_model", "dataset", "budget")


def number_of(*given: Any) -> int:
    """Chooses by values alone, so that a run is the same under the same seed."""
    return zlib.crc32(repr(given).encode())


def chosen(name: str, given: Any) -> Any:
    """What is known by a name in place of a made-up value, in every other case."""
    number, known = number_of(name, given), KNOWN.get(name)
    return known[number // 2 % len(known)] if known and number % 2 else given


@schemathesis.hook
def map_path_parameters(
    context: HookContext, path_parameters: dict[str, Any]
) -> dict[str, Any]:
    """Often ids that are there: behind the others lies nothing."""
    noun = context.operation.path.split("/")[1] if context.operation else ""
    given = path_parameters or {}
    return {name: chosen(f"{noun}.{name}", value) for name, value in given.items()}


@schemathesis.hook
def map_body(context: HookContext, body: Any) -> Any:
    """Often with a model and rows that are there, and little else that could be refused."""
    if not isinstance(body, dict):
        return body
    names, number = sorted(body), number_of(sorted(body.items(), key=repr))
    if number % 2 and all(name in body for name in REQUIRED):
        names = [*REQUIRED, names[number // 2 % len(names)]]
    return {name: chosen(f"body.{name}", body[name]) for name in names}


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Nobody has a minute for each case."""
    wait = (case.query or {}).get("wait")
    if isinstance(wait, int | float) and not isinstance(wait, bool) and wait > LONGEST_WAIT_S:
        case.query["wait"] = min(wait, LONGEST_WAIT_S) if wait <= 60 else wait
    for name in case.headers or {}:
        if name.lower() == "prefer":
            case.headers[name] = "wait=0"


@schemathesis.serializer(
    "application/jsonl",
    "application/vnd.apache.parquet",
    "application/x-ndjson",
    "application/x-tar",
    "text/csv",
)
def as_bytes(_context: SerializationContext, value: Any) -> bytes:
    """What is uploaded, if it is text or bytes, and JSON of anything else."""
    if isinstance(value, Binary):
        return value.data
    return value if isinstance(value, bytes) else json.dumps(value).encode()
