"""``fimlora replan``: another plan from what a job has measured, as a result that is kept."""

from typing import Any

import typer

from fimlora_client.blocking.client import Client
from fimlora_client.bodies import CalibrationFields, build_request
from fimlora_client.cli.common import options, request_fields
from fimlora_client.cli.common.constraints import constraints_of, experts_of
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.results.pins import read_pin, say_pinned
from fimlora_client.cli.work.calibrate import keep, show, wait_for
from fimlora_client.errors import ClientError
from fimlora_client.files import check_writable
from fimlora_contract.jobs import Job, JobKind
from fimlora_contract.requests import CalibrationRequest

# Of the earlier request, what is no part of what it asks to be measured.
ITS_OWN = frozenset({"force", "deadline_s", "webhook", "priority"})
# What is said first goes where the other is given now: of either there is one.
IN_PLACE_OF = (
    ("scale", "alpha"),
    ("alpha", "scale"),
    ("rslora", "scale"),
    ("multiple_of", "rank_menu"),
    ("rank_menu", "multiple_of"),
)


class NothingMeasured(ClientError, LookupError):
    """A job has left nothing that another plan could be made from."""

    code = "nothing_measured"


def replan(
    ctx: typer.Context,
    job_id: options.JobId,
    budget: options.Budget = None,
    method: options.Method = None,
    r_min: options.RMin = None,
    r_max: options.RMax = None,
    multiple_of: options.MultipleOf = None,
    layers: options.Layers = None,
    group: options.Group = None,
    rank_menu: options.RankMenu = None,
    per_type: options.PerType = None,
    max_lora_rank: options.MaxLoraRank = None,
    experts: options.Experts = None,
    aggregation: options.Aggregation = None,
    layout: options.Layout = None,
    scale: options.Scale = None,
    alpha: options.Alpha = None,
    rslora: options.RsLora = False,
    weights: options.Weights = False,
    init: options.Init = None,
    output: options.Output = None,
    pin: options.Pin = None,
    timeout: options.Timeout = 3600,
    as_json: options.AsJson = False,
) -> None:
    """Keep another plan of what a job has measured; nothing is measured again.

    The job's own request goes out once more, with what is given here in place of what it
    said, on the very model and rows it had. A worker writes the adapter from the stored
    statistics: a job like any other, with files to fetch and to pin. Where the statistics
    are gone, or would not do, it is refused rather than measured. To look at a
    plan only, [bold]fimlora plan[/bold] answers at once.

    [bold]Examples[/bold]

      fimlora replan job_... --budget 16 --output adapter
      fimlora replan job_... --budget 8M --method spectral --pin my-task:next
    """
    if pin:
        name_tag = read_pin(pin)
    if output:
        check_writable(output)
    client = client_of(ctx)
    request = _request_of(
        client.jobs.retrieve(job_id),
        budget=request_fields.budget_of(budget, None, None, None) if budget else None,
        allocation=request_fields.given(
            method=method, r_min=r_min, r_max=r_max, multiple_of=multiple_of, n_layers=layers,
            aggregation=aggregation, **constraints_of(group, rank_menu, per_type, max_lora_rank), **experts_of(experts),
        ),
        adapter=request_fields.given(
            layout=layout, **request_fields.scaling_of(scale, alpha, rslora), weights=weights or None,
            init=init,
        ),
    )  # fmt: skip
    _check_measured(client, job_id, request)
    handle = client.calibrate(request)
    show(wait_for(handle, timeout=timeout), as_json=as_json)
    if pin:
        client.rank_patterns.pin(*name_tag, job_id=handle.id)
        say_pinned(*name_tag)
    keep(handle, output)


def _request_of(
    job: Job,
    *,
    budget: dict[str, Any] | None,
    allocation: dict[str, Any],
    adapter: dict[str, Any],
) -> CalibrationRequest:
    """The request of a job with other settings, on the very content that it had.

    Raises:
        NothingMeasured: It was no calibration, or its rows are nowhere but in its request.
    """
    if job.kind is not JobKind.CALIBRATION:
        raise NothingMeasured(
            f"{job.id} is no calibration, but a job of kind {job.kind}: it has no plan"
        )
    said = {
        name: job.request[name]
        for name in CalibrationFields.__annotations__.keys() - ITS_OWN
        if name in job.request
    }
    if said["dataset"].get("source") == "inline":
        failure = NothingMeasured(f"{job.id} was sent its rows inline, and they are not kept")
        failure.next_step = "`fimlora plan` shows another plan of it."
        raise failure
    for role in ("base_model", "dataset", "retain"):
        if (said.get(role) or {}).get(
            "source"
        ) == "hub":  # what it meant then, not what it does now
            said[role] |= {"revision": job.resolved[role]["revision"]}
    said["allocation"] = _instead(said["allocation"], allocation)
    said["adapter"] = _instead(said["adapter"], adapter)
    if said["allocation"].get("experts") and said.get("target_parameters"):
        said["adapter"]["weights"] = True  # they alone say which of fused experts train
    return build_request(None, **(said | ({"budget": budget} if budget else {})))


def _instead(said: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What was said, with what is given now; and without what that takes the place of."""
    replaced = {old for old, new in IN_PLACE_OF if new in given}
    return {name: value for name, value in said.items() if name not in replaced} | given


def _check_measured(client: Client, job_id: str, request: CalibrationRequest) -> None:
    """See that nothing would be measured.

    Raises:
        NothingMeasured: It would be.
    """
    if client.estimate(request).outcome == "measured":
        failure = NothingMeasured(
            f"what {job_id} has measured is not kept any more, or does not do for this plan"
        )
        failure.next_step = (
            "`fimlora plan` says what of it can be had; `fimlora calibrate` measures anew."
        )
        raise failure
