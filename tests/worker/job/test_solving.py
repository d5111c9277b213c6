"""A budget is refused before anything is measured where no list of reached modules allows it."""

import pytest
from torch import nn

from fimlora import find_targets
from fimlora.errors import InfeasibleBudget
from fimlora_contract.requests import CalibrationRequest
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


def test_experts_may_see_no_token():
    """Only what is outside of them must be affordable."""
    blocks = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(4, 4), "experts": stack(5, 30)})])

    check(nn.ModuleDict({"layers": blocks}), {"parameters": 8}, r_min=1)


def test_a_model_of_one_stack_is_refused_as_a_whole():
    """Nothing of it is spared."""
    with pytest.raises(InfeasibleBudget, match=r"16"):
        check(nn.ModuleDict({"layers": stack(2, 4)}), {"parameters": 15}, r_min=1)
