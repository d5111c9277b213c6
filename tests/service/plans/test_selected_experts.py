"""A plan for some experts, from what a job has measured of all of them."""

from dataclasses import replace

import pytest

from fimlora import Budget, TargetModule, compare, measure
from fimlora.replan import WrittenAdapter, replan
from fimlora.statistics.options import Estimator
from fimlora_contract.comparison_requests import JobComparisonRequest
from fimlora_contract.requests import PlanRequest
from fimlora_service.comparisons.comparing import compare_again
from fimlora_service.errors import ValidationFailed
from fimlora_service.plans.score_cache import ScoreCache
from fimlora_service.plans.solving import plan_and_config, scored_statistics
from support.experts import LINEAR, mixture, mixture_batches
from support.results import make_statistics

CONFIG = {"base_model_name_or_path": None, "task_type": "CAUSAL_LM", "target_modules": []}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Statistics of a mixture, in a file."""
    statistics = measure(
        mixture("mixtral"), mixture_batches(), target_modules=[LINEAR],
        target_parameters="all", estimator="exact",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("stored") / "statistics.safetensors"
    statistics.save(path)
    return statistics, path


def test_a_plan_is_that_of_the_engine_for_each_selection(stored):
    """What one request has selected is not what another one sees, nor is said of it."""
    statistics, path = stored
    cache = ScoreCache()
    written = WrittenAdapter(
        {"provenance": {"expert_selection": "of another plan"}, "modules": []}, CONFIG
    )
    seen = []
    for experts in (
        None,
        {"select": "routed", "share": 0.5},
        {"select": "random", "share": 0.25},
    ):
        asked = {"r_min": 1} | ({"experts": experts} if experts else {})
        request = PlanRequest(budget={"parameters": 6000}, allocation=asked)

        scored = scored_statistics("job", request, path=path, digest="d", score_cache=cache)
        plan, _ = plan_and_config(request, scored, written)

        wanted = replan(
            statistics, written, Budget("parameters", 6000), r_min=1, experts=experts
        )
        assert plan.to_json() == wanted.to_json()
        assert ("expert_selection" in plan.provenance) is (experts is not None)
        seen.append([m.experts for m in plan.modules])
    assert len({*map(str, seen)}) == 3


def test_what_was_not_measured_of_experts_is_refused(stored):
    """Statistics without experts answer a request, not a fault."""
    _, path = stored
    linear = measure(mixture("mixtral"), mixture_batches(), target_modules=[LINEAR])
    other = path.with_name("linear.safetensors")
    linear.save(other)
    request = PlanRequest(budget=4, allocation={"experts": {"select": "fisher", "share": 0.5}})
    with pytest.raises(ValidationFailed, match="no expert is a target"):
        scored_statistics("job", request, path=other, digest="e", score_cache=ScoreCache())


def test_experts_by_fisher_are_refused_where_nothing_was_estimated(stored):
    """Methods that read weights alone leave nothing to select by: an answer, not a fault."""
    _, path = stored
    names = [f"layers.0.experts.{e}.up" for e in range(4)]
    weights = replace(
        make_statistics(),
        modules=tuple(TargetModule(name, 8, 8) for name in names),
        estimator=Estimator.NONE,
        row_energies={},
        example_energies={},
    )
    other = path.with_name("weights.safetensors")
    weights.save(other)
    experts = {"select": "fisher", "share": 0.5}
    request = PlanRequest(budget=4, allocation={"method": "uniform", "experts": experts})
    with pytest.raises(ValidationFailed, match="no Fisher information was measured"):
        scored_statistics("job", request, path=other, digest="w", score_cache=ScoreCache())


def test_a_comparison_has_random_experts_beside_those_selected(stored):
    """As the engine compares; what cannot be selected is an answer, not a fault."""
    statistics, path = stored
    experts = {"select": "routed", "share": 0.5}
    asked = {"r_min": 1, "experts": experts}
    request = JobComparisonRequest(budget={"parameters": 6000}, allocation=asked)

    found = compare_again("job", request, path=path).model_dump(mode="json")

    wanted = compare(statistics, Budget("parameters", 6000), r_min=1, experts=experts)
    assert found["experts"][0]["layers"] == wanted.to_json()["experts"][0]["layers"]
    assert [row["select"] for row in found["experts"]] == ["routed", "random"]
    named = JobComparisonRequest(budget=4, methods=["fim", "spectral"], allocation=asked)
    with pytest.raises(ValidationFailed, match="some of them are selected"):
        compare_again("job", named, path=path)
