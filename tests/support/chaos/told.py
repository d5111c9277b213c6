"""What a receiver of webhooks was told of the ends of jobs, against how they ended."""

import json
from collections import defaultdict
from collections.abc import Mapping

from support.chaos.judging import Finding
from support.receiver import Receiver


def untold(receiver: Receiver, jobs: Mapping[str, str]) -> list[str]:
    """Jobs, given with how they ended, whose end nobody was told."""
    return sorted(jobs.keys() - _ends_told(receiver).keys())


def told_wrongly(receiver: Receiver, jobs: Mapping[str, str]) -> list[Finding]:
    """What was told otherwise than it was, or twice under two names."""
    told = _ends_told(receiver)
    return [
        Finding(job_id, f"ended as {status}, and was told as {sorted(told[job_id])}")
        for job_id, status in jobs.items()
        if job_id in told and {end for _, end in told[job_id]} != {status}
    ] + [
        Finding(job_id, "its end was told under several ids")
        for job_id in jobs.keys() & told.keys()
        if len({id_ for id_, _ in told[job_id]}) > 1
    ]


def _ends_told(receiver: Receiver) -> dict[str, set[tuple[str, str]]]:
    """By job: under which ids it was told that it had ended, and how."""
    told: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for _, headers, body in list(receiver.got):
        job = json.loads(body)["data"]
        told[job["id"]].add((headers["webhook-id"], job["status"]))
    return dict(told)
