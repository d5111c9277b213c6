"""The plans of an evaluation's arms, all at one budget: what uniform ranks spend.

They are made from one set of statistics, measured on the rows to train on. Where the held-out rows
are a dataset of their own, those rows are a calibration's, and so may its statistics be.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fimlora import RankPlan, Scores, allocate, score
from fimlora import __version__ as engine_version
from fimlora.methods.registry import find_method
from fimlora.plan import Budget
from fimlora.whole_names import MODULES_TO_SAVE, UNTIED
from fimlora_contract.jobs import Stage
from fimlora_jobs.record import JobRecord
from fimlora_jobs.results.store import ResultMissing
from fimlora_worker.errors import PlanGone
from fimlora_worker.evaluation.settings import CONTROLS, RANDOM, UNIFORM
from fimlora_worker.job.calibration import AcceptedJob, facts_of, measure
from fimlora_worker.job.evaluation_ground import Ground
from fimlora_worker.job.preparation import prepare
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.reuse import find_measured, sources
from fimlora_worker.job.solving import budget_of
from fimlora_worker.job.worker_process import WorkerProcess

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
    scores = partial(score, statistics, aggregation=aggregation)
    return _arms(ground, given, _solve(ground, scores, facts_of(accepted, prepared, rounds)))


def _arms(
    ground: Ground, given: dict[str, list[Any]], made: dict[str, list[Any]]
) -> dict[str, list[Any]]:
    """Without the controls that each plan would carry along: they are arms of their own."""
    return {
        name: [rank_map | {"controls": {}} for rank_map in (given | made)[name]]
        for name in ground.settings.arms
    }


def _scores_of_none(given: Mapping[str, list[Any]]) -> Callable[[str], Scores]:
    """What the controls need, which look at no score: the modules of a plan."""
    modules = RankPlan.from_json(next(iter(given.values()))[0]).modules
    even = {module.name: 1.0 for module in modules}
    return lambda method: Scores(modules, even, rule=find_method(method).rule, method=method)


def _saved_in(given: Mapping[str, list[Any]]) -> dict[str, Any]:
    """What given plans say trains whole; that all say the same is seen before training."""
    facts = next(iter(given.values()))[0]["provenance"]
    return {key: facts[key] for key in (MODULES_TO_SAVE, UNTIED) if key in facts}


def _sources(ground: Ground) -> dict[str, Any]:
    return {"engine": engine_version, **sources(ground.resolved)}


def _solve(
    ground: Ground, scores: Callable[[str], Scores], facts: Mapping[str, Any]
) -> dict[str, list[Any]]:
    request = ground.request
    options = request.allocation.model_dump(exclude={"aggregation", "method", "seed"})

    def plan(method: str, budget: Budget, seed: int) -> RankPlan:
        taken = scores(method)
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
    uniform = plan(UNIFORM, budget_of(request), first)
    budget = Budget("parameters", uniform.spent.parameters)
    draws = {RANDOM: N_RANDOM}
    return {
        method: [
            plan(method, budget, first + number).to_json()
            for number in range(draws.get(method, 1))
        ]
        for method in dict.fromkeys([*request.wanted_methods, *CONTROLS])
    }


def _read(digest: str, name: str, process: WorkerProcess) -> dict[str, Any]:
    try:
        path = process.artifacts.local(digest, "rank_map.json")
        rank_map: dict[str, Any] = json.loads(path.read_bytes())
    except (ResultMissing, FileNotFoundError) as error:
        raise PlanGone(
            f"plan {name!r} ({digest}) is not stored any more; make it anew"
        ) from error
    return rank_map
