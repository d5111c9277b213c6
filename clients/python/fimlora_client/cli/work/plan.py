"""``fimlora plan``: other ranks from what was measured."""

import typer

from fimlora_client.cli.common import options, request_fields
from fimlora_client.cli.common.console import out, show_json
from fimlora_client.cli.common.constraints import constraints_of, experts_of
from fimlora_client.cli.common.context import client_of
from fimlora_client.rank_map import rank_map_table


def plan(
    ctx: typer.Context,
    job_id: options.JobId,
    budget: options.Budget = None,
    budget_parameters: options.BudgetParameters = None,
    budget_fraction: options.BudgetFraction = None,
    budget_bytes: options.BudgetBytes = None,
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
    as_json: options.AsJson = False,
) -> None:
    """Show what another budget would give, from what was measured.

    Answers at once: nothing is measured, queued or kept. To keep such a
    plan, ask for it with [bold]fimlora calibrate[/bold], which measures nothing either.

    [bold]Examples[/bold]

      fimlora plan job_... --budget 16
      fimlora plan job_... --budget 2M --method uniform
    """
    found = client_of(ctx).jobs.allocate(
        job_id,
        budget=request_fields.budget_of(budget, budget_parameters, budget_fraction, budget_bytes),
        allocation=request_fields.given(
            method=method, r_min=r_min, r_max=r_max, multiple_of=multiple_of, n_layers=layers,
            aggregation=aggregation, **constraints_of(group, rank_menu, per_type, max_lora_rank), **experts_of(experts),
        ),
        adapter=request_fields.given(layout=layout, **request_fields.scaling_of(scale, alpha, rslora)),
    )  # fmt: skip
    if as_json:
        show_json(found.model_dump(mode="json"))
    else:
        out().print(rank_map_table(found.rank_map))
