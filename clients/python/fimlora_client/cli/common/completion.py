"""What the shell offers behind a Tab: names of methods and formats, and what the service has.

A shell must not wait, and must not be told of errors: after a second, or without a service,
nothing is offered.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import get_args

import typer

from fimlora_client.blocking.client import Client
from fimlora_client.cli.common.context import Connection
from fimlora_client.context import Context
from fimlora_client.patterns import Format
from fimlora_client.retries import RetryPolicy
from fimlora_contract.methods import MethodName

PATIENCE_S = 1.0
N_JOBS, N_PINS = 50, 100
Offered = tuple[str, str]


def job_ids(ctx: typer.Context, incomplete: str) -> list[Offered]:
    """Ids of the newest jobs, each with what it is."""
    return _from_service(
        ctx,
        incomplete,
        lambda client: (
            (job.id, f"{job.kind.value}, {job.status.value}")
            for job in client.jobs.list(limit=N_JOBS).data
        ),
    )


def models(ctx: typer.Context, incomplete: str) -> list[Offered]:
    """Names of registered models."""
    return _from_service(
        ctx,
        incomplete,
        lambda client: ((m.id, m.architecture or "") for m in client.models.list().data),
    )


def models_and_jobs(ctx: typer.Context, incomplete: str) -> list[Offered]:
    """Jobs, where one has begun to type the id of one; else models."""
    return (
        job_ids(ctx, incomplete) if incomplete.startswith("job_") else models(ctx, incomplete)
    )


def pins(ctx: typer.Context, incomplete: str) -> list[Offered]:
    """Names and tags that stand for a result, each with its digest."""
    return _from_service(
        ctx,
        incomplete,
        lambda client: (
            (f"{pin.name}:{pin.tag}", pin.digest)
            for pin in client.rank_patterns.pins(limit=N_PINS).data
        ),
    )


def pin_names(ctx: typer.Context, incomplete: str) -> list[Offered]:
    """Names of pins, where the tag is another word."""
    found = [(pin.partition(":")[0], "") for pin, _ in pins(ctx, incomplete)]
    return list(dict.fromkeys(found))


def results(ctx: typer.Context, incomplete: str) -> list[Offered]:
    """Jobs, where one has begun to type the id of one; else pins."""
    return job_ids(ctx, incomplete) if incomplete.startswith("job_") else pins(ctx, incomplete)


def datasets(ctx: typer.Context, incomplete: str) -> list[Offered]:
    """Names of registered datasets and ids of uploads; the shell offers files by itself."""
    return _from_service(
        ctx,
        incomplete,
        lambda client: ((d.id, d.source) for d in client.datasets.list().data),
    )


def methods(incomplete: str) -> list[str]:
    """Names of methods; behind a comma, of further ones."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in get_args(MethodName) if name.startswith(last)]


def formats(incomplete: str) -> list[str]:
    """Names of the formats of `fimlora fetch`."""
    return [name for name in get_args(Format) if name.startswith(incomplete)]


def _from_service(
    ctx: typer.Context, incomplete: str, ask: Callable[[Client], Iterable[Offered]]
) -> list[Offered]:
    """What the service has that begins as it should; nothing if it is slow or away."""
    root = ctx.find_root()
    connection = root.obj or Connection(
        url=root.params.get("url"), context=Context(RetryPolicy(max_retries=0))
    )
    answers: queue.SimpleQueue[list[Offered]] = queue.SimpleQueue()

    def work() -> None:
        # Whatever goes wrong, a shell is not told.
        with suppress(Exception), connection.open() as client:
            answers.put(list(ask(client)))

    # It may hang for longer than anybody waits, and ends with the process.
    threading.Thread(target=work, daemon=True).start()
    found: list[Offered] = []
    with suppress(queue.Empty):
        found = answers.get(timeout=PATIENCE_S)
    return list(_beginning(found, incomplete))


def _beginning(found: Iterable[Offered], incomplete: str) -> Iterator[Offered]:
    return (each for each in found if each[0].startswith(incomplete))
