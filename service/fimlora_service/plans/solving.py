"""Solve a plan from what a job has measured: the engine's arithmetic, no device and no queue.

It brings numpy along, so it is imported when the first plan is asked for, or when there is
nothing better to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fimlora import (
    Budget,
    FimloraError,
    InfeasibleBudget,
    RankPlan,
    Statistics,
    allocate,
    score,
)
from fimlora.adapter.text_files import text_files
from fimlora.allocation.listed import Listed
from fimlora.confidence.evidence import examples_of, with_confidence
from fimlora.confidence.signal import source_if_any, with_signal
from fimlora.errors import InvalidStatistics
from fimlora.methods.expert_choice import ExpertChoice, with_experts
from fimlora.replan import WrittenAdapter, replanned_config
from fimlora_contract.digests import digest_bytes, digest_of
from fimlora_contract.jobs import CalibrationResult
from fimlora_contract.plans import Plan
from fimlora_contract.rank_maps import RankMap
from fimlora_contract.requests import PlanRequest
from fimlora_jobs.results.store import STATISTICS
from fimlora_service import errors
from fimlora_service.plans.score_cache import ScoreCache, ScoredStatistics


def solve_again(
    job_id: str,
    request: PlanRequest,
    result: CalibrationResult,
    *,
    path: Path,
    digest: str,
    score_cache: ScoreCache,
) -> Plan:
    """The plan that POST /calibrate would give with these settings.

    Args:
        job_id: The job that has measured.
        request: The settings.
        result: What that job found.
        path: The file of its statistics.
        digest: Of that file.
        score_cache: What is known of such files.

    Raises:
        ServiceError: The file cannot be read, or the settings do not fit it.
    """
    scored = scored_statistics(
        job_id, request, path=path, digest=digest, score_cache=score_cache
    )
    plan, config = plan_and_config(request, scored, written_adapter(result))
    texts = text_files(plan, config, layout=request.adapter.layout)
    files = {name: digest_bytes(text) for name, text in texts.items()}
    return Plan(
        job_id=job_id,
        digest=digest_of(files | {STATISTICS: scored.digest}),
        adapter_config=config,
        rank_map=RankMap.model_validate_json(texts["rank_map.json"]),
    )


def scored_statistics(
    job_id: str, request: PlanRequest, *, path: Path, digest: str, score_cache: ScoreCache
) -> ScoredStatistics:
    """A job's statistics as a request's plan sees them, as told by whoever asked before.

    Raises:
        ServiceError: The file cannot be read, or the method does not fit it.
    """
    allocation = request.allocation
    key = (
        digest, allocation.method, allocation.aggregation, request.adapter.scale,
        _experts_of(request),
    )  # fmt: skip
    try:
        return score_cache.get(key, lambda: score_file(request, path, digest=digest))
    except InvalidStatistics as error:
        raise errors.ArtifactNotFound(
            f"{STATISTICS} of job {job_id!r} cannot be read"
        ) from error
    except FimloraError as error:
        raise errors.ValidationFailed(str(error)) from error


def score_file(request: PlanRequest, path: Path, *, digest: str) -> ScoredStatistics:
    """Read a statistics file as a request's plan sees it.

    Raises:
        InvalidStatistics: It cannot be read.
    """
    allocation, scale = request.allocation, request.adapter.scale
    with Statistics.opened(path) as stored:
        if stored.scale != scale:  # another scale makes another file, of all its sums
            digest = digest_bytes(Statistics.load(path).rescaled(scale).to_bytes())
        statistics = with_experts(stored, _experts_of(request))
        scores = score(
            statistics, allocation.method, scale=scale, aggregation=allocation.aggregation
        )
        scores = replace(scores, modules=Listed.of(scores.modules))  # of many plans
        signal = source_if_any(
            statistics, allocation.method, scale=scale, aggregation=allocation.aggregation
        )
        examples = examples_of(statistics)
    return ScoredStatistics(scores, digest, examples, signal)


def _experts_of(request: PlanRequest) -> ExpertChoice | None:
    asked = request.allocation.experts
    return ExpertChoice.of(
        None if asked is None else asked.model_dump(), seed=request.allocation.seed
    )


def written_adapter(result: CalibrationResult) -> WrittenAdapter:
    """What a new plan takes from the one that was made when the model was at hand."""
    made = result.rank_map
    modules = [{"name": module.name, "rank": module.rank} for module in made.modules]
    facts = {"provenance": made.provenance, "modules": modules}
    return WrittenAdapter(facts, result.adapter_config)


def plan_and_config(
    request: PlanRequest, scored: ScoredStatistics, written: WrittenAdapter
) -> tuple[RankPlan, dict[str, Any]]:
    """The plan a request asks for, and its adapter config.

    Raises:
        BudgetInfeasible: No plan meets the budget.
        ValidationFailed: An option does not fit these statistics.
    """
    with refusing():
        plan = planned(request, scored, written)
        plan = with_signal(plan, scored.signal)
        plan = with_confidence(scored.examples, plan)
        return plan, replanned_config(plan, written, layout=request.adapter.layout)


def planned(
    request: PlanRequest, scored: ScoredStatistics, written: WrittenAdapter
) -> RankPlan:
    """The plan a request asks for, and nothing about it."""
    budget, adapter, allocation = request.budget, request.adapter, request.allocation
    return allocate(
        scored.scores,
        Budget(budget.unit, budget.value, budget.bytes_per_parameter),
        **adapter.scaling,
        provenance=written.facts_beside(scored.scores),
        **allocation.model_dump(exclude={"aggregation", "method", "experts"}),
    )


@contextmanager
def refusing() -> Iterator[None]:
    """Say what the engine refuses as the API does."""
    try:
        yield
    except InfeasibleBudget as error:
        raise errors.BudgetInfeasible(str(error)) from error
    except FimloraError as error:
        raise errors.ValidationFailed(str(error)) from error
