"""The plans of an evaluation's arms, all at one budget: what uniform ranks spend.

They are made from one set of statistics, measured on the rows to train on. Where the held-out rows
are a dataset of their own, those rows are a calibration's, and so may its statistics be.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fimlora import RankPlan, Scores, allocate, score
from fimlora import __version__ as engine_version
from fimlora.errors import InfeasibleBudget
from fimlora.methods.expert_choice import ExpertChoice, with_experts
from fimlora.methods.registry import find_method
from fimlora.plan import Budget
from fimlora.whole_names import MODULES_TO_SAVE, UNTIED
from fimlora_contract.jobs import Stage
from fimlora_jobs.record import JobRecord
from fimlora_jobs.results.store import ResultMissing
from fimlora_worker.errors import PlanGone
from fimlora_worker.evaluation.settings import CONTROLS, RANDOM, RANDOM_EXPERTS, UNIFORM
from fimlora_worker.job.calibration import AcceptedJob, facts_of, measure
from fimlora_worker.job.evaluation_ground import Ground
from fimlora_worker.job.preparation import prepare
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.reuse import find_measured, sources
from fimlora_worker.job.solving import all_experts_cost_more, budget_of, experts_of
from fimlora_worker.job.worker_process import WorkerProcess

# Of a method, and of the experts that train.
ScoresOf = Callable[[str, ExpertChoice | None], Scores]
N_RANDOM = 5  # one draw would say more about itself than about random ranks


def make_plans(
    record: JobRecord,
    ground: Ground,
    process: WorkerProcess,
    reporter: Reporter,
    folder: Path,
) -> dict[str, list[Any]]:
    """Rank maps of each arm by its name; several of the random control.

    Raises:
        PlanGone: A plan that was given is not stored any more.
    """
    given = {
        name: [_read(digest, name, process)]
        for name, digest in ground.resolved.get("plans", {}).items()
    }
    needs_model = ground.request.budget.unit == "fraction"  # which is a share of it
    if given and not (ground.request.wanted_methods or needs_model):
        reporter.enter(Stage.ALLOCATING)
        facts = {**_sources(ground), **_saved_in(given)}
        return _arms(ground, given, _solve(ground, _scores_of_none(given), facts))
    measured = find_measured(record, process)
    reporter.enter(Stage.LOADING)
    prepared = prepare(
        ground.request,
        ground.resolved,
        folder=ground.folder,
        rows=ground.split.train,
        process=process,
        fits_head=measured is None,
        on_example=reporter.keep_alive,
    )
    accepted = AcceptedJob(ground.request, ground.resolved, measured, record.memory_kills)
    statistics, rounds = (
        (measured.statistics, measured.rounds)
        if measured
        else measure(accepted, prepared, process, reporter, folder)
    )
    reporter.enter(Stage.ALLOCATING)
    aggregation = ground.request.allocation.aggregation

    def scores(method: str, experts: ExpertChoice | None) -> Scores:
        return score(with_experts(statistics, experts), method, aggregation=aggregation)

    facts = facts_of(accepted, prepared, rounds, statistics.modules)
    return _arms(ground, given, _solve(ground, scores, facts))


def _arms(
    ground: Ground, given: dict[str, list[Any]], made: dict[str, list[Any]]
) -> dict[str, list[Any]]:
    """Without the controls that each plan would carry along: they are arms of their own."""
    return {
        name: [rank_map | {"controls": {}} for rank_map in (given | made)[name]]
        for name in ground.settings.arms
    }


def _scores_of_none(given: Mapping[str, list[Any]]) -> ScoresOf:
    """What the controls need, which look at no score: the modules of a plan."""
    modules = RankPlan.from_json(next(iter(given.values()))[0]).modules
    even = {module.name: 1.0 for module in modules}
    return lambda method, _: Scores(modules, even, rule=find_method(method).rule, method=method)


def _saved_in(given: Mapping[str, list[Any]]) -> dict[str, Any]:
    """What given plans say trains whole; that all say the same is seen before training."""
    facts = next(iter(given.values()))[0]["provenance"]
    return {key: facts[key] for key in (MODULES_TO_SAVE, UNTIED) if key in facts}


def _sources(ground: Ground) -> dict[str, Any]:
    return {"engine": engine_version, **sources(ground.resolved)}


def _solve(ground: Ground, scores: ScoresOf, facts: Mapping[str, Any]) -> dict[str, list[Any]]:
    request = ground.request
    options = request.allocation.model_dump(
        exclude={"aggregation", "method", "seed", "experts"}
    )
    selected = experts_of(request)

    def plan(
        method: str, budget: Budget, seed: int, experts: ExpertChoice | None = None
    ) -> RankPlan:
        taken = scores(method, experts)
        own = options if taken.rule == "layers" else options | {"n_layers": None}
        return allocate(
            taken,
            budget,
            scale=request.adapter.scale,
            provenance=facts,
            seed=seed,
            **own,
        )

    first = request.allocation.seed
    # Ranks cost what their modules cost: only in parameters do two plans spend the same.
    uniform = plan(UNIFORM, budget_of(request), first, selected)
    budget = Budget("parameters", uniform.spent.parameters)
    draws = {RANDOM: N_RANDOM}
    if selected is not None:
        _check_all_experts(plan, budget, first)
    made = {
        method: [
            plan(method, budget, first + number, None if method == UNIFORM else selected)
            for number in range(draws.get(method, 1))
        ]
        for method in dict.fromkeys([*request.wanted_methods, *CONTROLS])
    }
    if selected is not None and selected.control is not None:
        leading = next(name for name in request.wanted_methods if name not in CONTROLS)
        made[RANDOM_EXPERTS] = [
            plan(leading, budget, first, replace(selected.control, seed=first + number))
            for number in range(N_RANDOM)
        ]
    return {name: [each.to_json() for each in plans] for name, plans in made.items()}


def _check_all_experts(plan: Callable[..., RankPlan], budget: Budget, seed: int) -> None:
    """See that uniform ranks of all experts can spend what the selected ones do.

    Raises:
        InfeasibleBudget: They cannot: fewer experts cover what was asked for than that takes.
    """
    try:
        plan(UNIFORM, budget, seed)
    except InfeasibleBudget as error:
        raise all_experts_cost_more(error) from error


def _read(digest: str, name: str, process: WorkerProcess) -> dict[str, Any]:
    try:
        path = process.artifacts.local(digest, "rank_map.json")
        rank_map: dict[str, Any] = json.loads(path.read_bytes())
    except (ResultMissing, FileNotFoundError) as error:
        raise PlanGone(
            f"plan {name!r} ({digest}) is not stored any more; make it anew"
        ) from error
    return rank_map
