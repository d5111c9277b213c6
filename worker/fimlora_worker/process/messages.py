"""What parent and child say to each other: one JSON line each, over a pair of pipes."""

import json
from dataclasses import asdict, dataclass
from typing import Any

LONGEST_LINE = 4096  # a write to a pipe is atomic up to here


@dataclass(frozen=True, slots=True)
class Order:
    """Parent to child: run this RQ job."""

    worker_key: str
    job_id: str
    queue: str
    execution_id: str


@dataclass(frozen=True, slots=True)
class Reply:
    """Child to parent: the execution has ended, or (``code`` is null) it is alive.

    Attributes:
        execution_id: The execution it speaks of.
        code: 0 when RQ has recorded the end, 1 when it could not.
        retiring: The child exits after this reply and wants to be replaced.
    """

    execution_id: str
    code: int | None
    retiring: bool = False


def encode(message: Order | Reply) -> bytes:
    """A message as it goes through a pipe."""
    line = json.dumps(asdict(message)).encode() + b"\n"
    if len(line) > LONGEST_LINE:
        raise ValueError(f"a message of {len(line)} bytes is over {LONGEST_LINE}: {message}")
    return line


def decode_order(line: bytes) -> Order:
    """Read what the parent wrote."""
    fields: dict[str, Any] = json.loads(line)
    return Order(**fields)


def decode_reply(line: bytes) -> Reply:
    """Read what the child wrote."""
    fields: dict[str, Any] = json.loads(line)
    return Reply(**fields)
