"""What is there for whom: another tenant's job is missing just as one that never was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends, Path, Query

from fimlora_contract.keys import TENANT
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.record import JobRecord
from fimlora_jobs.result_owners import ResultOwners
from fimlora_jobs.store import JobStore
from fimlora_service.errors import Forbidden, NoPattern, ServiceError
from fimlora_service.http.dependencies import StoreDep
from fimlora_service.http.threads import Threads, in_thread
from fimlora_service.keys.principal import Principal, PrincipalDep


def check_job(job_id: str, principal: Principal, store: JobStore) -> str:
    """A job's id, if the job is there for somebody.

    Raises:
        JobMissing: It is not, or is another tenant's.
    """
    if not principal.is_operator and store.owner_of(job_id) != principal.tenant:
        raise JobMissing(f"no job {job_id!r}")
    return job_id


def shown_to(principal: Principal, job_id: str, store: JobStore) -> JobRecord:
    """A job that the body of a request names.

    Raises:
        JobMissing: There is none, or it is another tenant's.
    """
    return store.shown(check_job(job_id, principal, store))


def check_result(digest: str, principal: Principal, store: JobStore) -> str:
    """The content address of a result, if the result is there for somebody.

    Raises:
        NoPattern: It is not: no job of his tenant has made it, and it is not pinned for all.
    """
    if not principal.is_operator and not ResultOwners(store).has(digest, principal.tenant):
        raise NoPattern(f"no result with digest {digest}")
    return digest


@contextmanager
def only_own_jobs(principal: Principal, store: JobStore) -> Iterator[None]:
    """Let a refusal name no jobs but those that are there for somebody.

    Raises:
        ServiceError: What the block raises.
    """
    try:
        yield
    except ServiceError as error:
        named = [entry for entry in error.errors if "job_id" in entry]
        hidden = [e for e in named if job_or_none(e["job_id"], principal, store) is None]
        error.errors = [entry for entry in error.errors if entry not in hidden]
        raise


def job_or_none(job_id: str | None, principal: Principal, store: JobStore) -> str | None:
    """A job's id, or nothing where the job is not there for somebody."""
    try:
        return check_job(job_id, principal, store) if job_id else None
    except JobMissing:
        return None


async def _own_job(
    id: Annotated[str, Path(max_length=64, description="Id of a job.", examples=["job_0"])],
    principal: PrincipalDep,
    store: StoreDep,
) -> str:
    if principal.is_operator:
        return id  # whoever reads the record sees whether it is there
    return await in_thread(Threads.LOOKS, check_job, id, principal, store)


async def _other_job(
    other: Annotated[str, Path(max_length=64, description="Id of a job.", examples=["job_0"])],
    principal: PrincipalDep,
    store: StoreDep,
) -> str:
    return await _own_job(other, principal, store)


JobId = Annotated[str, Depends(_own_job)]
OtherJobId = Annotated[str, Depends(_other_job)]


async def _whose(
    principal: PrincipalDep,
    tenant: Annotated[
        str | None,
        Query(
            pattern=f"{TENANT}|^$",
            description="Of this tenant only; others are the operator's to see.",
        ),
    ] = None,
) -> str | None:
    if principal.is_operator:
        return tenant
    if tenant not in (None, principal.tenant):
        raise Forbidden("only the operator's admin keys list what other tenants have")
    return principal.tenant


# Whose things a list has; None for those of all tenants.
Whose = Annotated[str | None, Depends(_whose)]
