"""A budget is refused before anything is measured where no list of reached modules allows it."""

import pytest
from pydantic import ValidationError
from torch import nn

from fimlora import TargetModule, find_targets
from fimlora.errors import InfeasibleBudget, InvalidOption
from fimlora_contract.comparison_requests import ComparisonRequest
from fimlora_contract.evaluations import EvaluationRequest
from fimlora_contract.requests import CalibrationRequest
from fimlora_service.errors import ValidationFailed
from fimlora_service.resolve.initial_checks import check_initial
from fimlora_worker.job.solving import check_feasible


def stack(n, width):
    return nn.ModuleList([nn.ModuleDict({"q": nn.Linear(width, width)}) for _ in range(n)])


def check(model, budget, **allocation):
    request = CalibrationRequest.model_validate({
        "base_model": "local:m", "dataset": "local:d", "budget": budget, "allocation": allocation,
    })  # fmt: skip
    check_feasible(request, model, find_targets(model, "all-linear"))


@pytest.mark.parametrize(("parameters", "fits"), [(2 * 8, True), (2 * 8 - 1, False)])
def test_the_cheapest_stack_must_be_affordable(parameters, fits):
    """Text may leave the other one alone: two maps of 4 x 4 cost 16 parameters at rank 1."""
    model = nn.ModuleDict(
        {"tower": stack(3, 20), "text": stack(2, 4), "pooler": nn.Linear(9, 9)}
    )

    if fits:
        check(model, {"parameters": parameters}, r_min=1)
    else:
        with pytest.raises(InfeasibleBudget):
            check(model, {"parameters": parameters}, r_min=1)


@pytest.mark.parametrize("name", ["{}", "expert_{}"])
def test_experts_may_see_no_token(name):
    """Only what is outside of them must be affordable, whatever they are called."""
    experts = nn.ModuleDict(
        {name.format(i): nn.ModuleDict({"q": nn.Linear(30, 30)}) for i in range(5)}
    )
    blocks = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(4, 4), "experts": experts})])

    check(nn.ModuleDict({"layers": blocks}), {"parameters": 8}, r_min=1)


def test_a_model_of_one_stack_is_refused_as_a_whole():
    """Nothing of it is spared."""
    with pytest.raises(InfeasibleBudget, match=r"16"):
        check(nn.ModuleDict({"layers": stack(2, 4)}), {"parameters": 15}, r_min=1)


def decoder():
    return nn.ModuleDict({
        "layers": nn.ModuleList([
            nn.ModuleDict({"q_proj": nn.Linear(256, 256), "v_proj": nn.Linear(256, 256)})
            for _ in range(4)
        ])
    })  # fmt: skip


DATA = {"base_model": "local:m", "dataset": "local:d"}


@pytest.mark.parametrize(
    ("kind", "methods"),
    [
        (EvaluationRequest, ["fisher-layers"]),
        (ComparisonRequest, ["fim", "fisher-layers"]),
        (ComparisonRequest, None),
    ],
    ids=str,
)
def test_methods_that_choose_no_layers_take_no_notice_of_their_number(kind, methods):
    """Evaluations and comparisons have methods of several rules and one allocation."""
    asked = {"budget": 8, "methods": methods, "allocation": {"n_layers": 2}}
    model = decoder()

    check_feasible(kind.model_validate(DATA | asked), model, find_targets(model, "all-linear"))

    none_by_layers = DATA | asked | {"methods": ["fim", "coherent"]}
    with pytest.raises(ValidationError, match=r"n_layers=2 with method .* chooses layers"):
        kind.model_validate(none_by_layers)


def test_the_methods_that_are_named_are_tried_as_well():
    """In two layers of four, a mean of 8 takes 16 each; an evaluation may leave some unspent."""
    asked = {"budget": 8, "methods": ["fim", "fisher-layers"]}
    asked |= {"allocation": {"n_layers": 2, "r_max": 15}}
    model = decoder()
    modules = find_targets(model, "all-linear")

    with pytest.raises(InfeasibleBudget):
        check_feasible(ComparisonRequest.model_validate(DATA | asked), model, modules)
    unnamed = asked | {"methods": None}
    check_feasible(ComparisonRequest.model_validate(DATA | unnamed), model, modules)
    check_feasible(EvaluationRequest.model_validate(DATA | asked), model, modules)


@pytest.mark.parametrize(
    ("budget", "allocation", "fits"),
    [
        (16, {"per_type": {"q_proj": {"r_max": 128}}, "max_lora_rank": 64}, True),
        (16, {"per_type": {"q_proj": {"r_max": 65}}}, False),
        (16, {"per_type": {"q_proj": {"r_max": 65}}, "multiple_of": 8}, True),
        (64, {"r_min": 1, "r_max": 64, "per_type": {"q_proj": {"r_min": 100}}}, False),
        (16, {"r_max": 100, "rank_menu": [8, 64, 128]}, True),
        (40, {"per_type": {"q_proj": {"r_max": 64}, "v_proj": {"r_max": 64}}}, True),
    ],
    ids=str,
)
def test_initial_weights_go_up_to_what_modules_may_get(budget, allocation, fits):
    """EVA fills 64 directions; the service, which sees the shapes, says the same."""
    asked = {"budget": budget, "allocation": allocation, "adapter": {"init": "eva"}}
    request = CalibrationRequest.model_validate(DATA | asked)
    model = decoder()
    modules = find_targets(model, "all-linear")
    shapes = {module.name: (module.d_out, module.d_in) for module in modules}

    if fits:
        check_feasible(request, model, modules)
        check_initial(request, shapes)
        return
    with pytest.raises(InvalidOption, match=r"fills ranks up to 64"):
        check_feasible(request, model, modules)
    with pytest.raises(ValidationFailed, match=r"fills ranks up to 64"):
        check_initial(request, shapes)


def mixture(**changes):
    """Two fused parameters of four experts, and a map beside them: 64 and 32 per rank."""
    fused = [TargetModule(f"layers.{i}.mlp.experts.up", 8, 8, n_experts=4) for i in range(2)]
    linear = [TargetModule(f"layers.{i}.attn.q", 16, 16) for i in range(2)]
    return [*fused, *linear]


def own(names, block="layers.0."):
    """Experts that are modules of their own, 16 per rank, and a map of 32 beside them."""
    experts = [TargetModule(f"{block}mlp.experts.{n}.wi", 8, 8) for n in names]
    return [*experts, TargetModule(f"{block}attn.q", 16, 16)]


def check_experts(modules, budget, experts, *, kind=CalibrationRequest, **changes):
    allocation = {"experts": experts, "r_min": 1} | changes.pop("allocation", {})
    asked = DATA | {"budget": budget, "allocation": allocation} | changes
    check_feasible(kind.model_validate(asked), nn.Linear(4, 4), modules)


FUSED = {"target_parameters": "all", "adapter": {"weights": True}}
COVERAGE = {"select": "routed", "coverage": 0.8}


@pytest.mark.parametrize(
    ("parameters", "experts", "fits"),
    [
        (2 * 16 + 2 * 32, COVERAGE, True),  # one expert in each layer may have all tokens
        (2 * 16 + 2 * 32 - 1, COVERAGE, False),
        (2 * 32 + 2 * 32, {"select": "routed", "share": 0.5}, True),
        (2 * 32 + 2 * 32 - 1, {"select": "routed", "share": 0.5}, False),
    ],
    ids=str,
)
def test_the_fewest_experts_that_may_be_selected_must_be_affordable(parameters, experts, fits):
    """Nothing is measured for a budget that no selection meets."""
    if fits:
        check_experts(mixture(), {"parameters": parameters}, experts, **FUSED)
        return
    with pytest.raises(InfeasibleBudget):
        check_experts(mixture(), {"parameters": parameters}, experts, **FUSED)


def test_a_mean_rank_by_coverage_is_refused_where_no_number_of_experts_has_it():
    """Experts of their own are modules: many small ones lower the highest mean there can be."""
    modules = own("abcd", block="")  # in no stack, which rows might not reach
    fisher = {"select": "fisher", "coverage": 0.5}
    check_experts(
        modules, 12, fisher, allocation={"r_max": 16}
    )  # (8 + 16) / 2, with one expert
    with pytest.raises(InfeasibleBudget):
        check_experts(modules, 13, fisher, allocation={"r_max": 16})
    with pytest.raises(InfeasibleBudget):  # (2 * 8 + 16) / 3
        check_experts(modules, 12, {"select": "fisher", "share": 0.5}, allocation={"r_max": 16})


def test_experts_that_may_not_be_selected_may_be_named():
    """As after measuring: what is no target then had been meant to be one."""
    for experts in ({"select": "fisher", "coverage": 0.5}, {"select": "fisher", "share": 0.25}):
        check_experts(own("abcd"), {"parameters": 500}, experts,
                      allocation={"per_type": {"experts.d.wi": {"r_max": 4}}})  # fmt: skip
        with pytest.raises(InvalidOption, match="names no"):
            check_experts(own("abcd"), {"parameters": 500}, experts,
                          allocation={"per_type": {"experts.e.wi": {"r_max": 4}}})  # fmt: skip


def test_what_no_measuring_mends_is_refused_before_it():
    """No experts at all, experts without weights that would say which, rows that are not kept."""
    half = {"select": "routed", "share": 0.5}
    with pytest.raises(InvalidOption, match="no expert is a target"):
        check_experts(mixture()[2:], {"parameters": 500}, half, **FUSED)
    with pytest.raises(InvalidOption, match=r"'layers.0.mlp.experts.up'.*weights=true"):
        check_experts(mixture(), {"parameters": 500}, {"select": "fisher", "share": 0.5})
    with pytest.raises(InvalidOption, match="use aggregation='mean'"):
        check_experts(
            mixture(), {"parameters": 500}, half, allocation={"aggregation": "max"}, **FUSED
        )
    check_experts(own("ab"), {"parameters": 500}, {"select": "random", "share": 0.5})
