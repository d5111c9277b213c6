"""The laws of allocation with tens of thousands of modules: what is quadratic would not end."""

import numpy as np
import pytest

from fimlora.allocation import allocate
from fimlora.plan import Budget, TargetModule
from fimlora.scores import Scores

N_LAYERS, N_EXPERTS = 40, 256
N_SINGULAR_VALUES = 12


@pytest.fixture(scope="module")
def modules() -> list[TargetModule]:
    """A mixture's, with its experts one by one."""
    found = []
    for layer in range(N_LAYERS):
        found += [
            TargetModule(f"model.layers.{layer}.self_attn.{kind}_proj", 64, 16 + 16 * wide)
            for wide, kind in enumerate("qkvo")
        ]
        found += [
            TargetModule(f"model.layers.{layer}.mlp.experts.{e}.{kind}_proj", 64, 32)
            for e in range(N_EXPERTS)
            for kind in ("gate", "up", "down")
        ]
    return found


def drawn(modules, rule: str) -> Scores:
    """Scores, or spectra."""
    rng = np.random.default_rng(0)
    names = [m.name for m in modules]
    if rule != "spectral":
        return Scores(modules, dict(zip(names, rng.lognormal(0, 2, len(names)), strict=True)))
    values = rng.lognormal(0, 1, (len(names), N_SINGULAR_VALUES))
    return Scores(modules, spectra=dict(zip(names, values, strict=True)), rule=rule)


@pytest.mark.parametrize(
    ("rule", "groups"),
    [("proportional", "lists"), ("spectral", "lists"), ("spectral", "fused")],
)
def test_bounds_groups_and_budget_hold(modules, rule, groups):
    names = [m.name for m in modules]
    tied = groups
    if groups == "lists":
        tied = [names[i : i + 3] for i in range(4, len(names) - 2, 3)]
    budget = Budget("parameters", 5 * sum(m.cost for m in modules))

    plan = allocate(
        drawn(modules, rule), budget, rule=rule, groups=tied, r_min=2, r_max=N_SINGULAR_VALUES
    )

    assert len(plan.ranks) == len(modules) > 30_000
    assert {*plan.ranks.values()} <= {*range(2, N_SINGULAR_VALUES + 1)}
    spent = sum(m.cost * plan.ranks[m.name] for m in modules)
    assert spent <= budget.value
    dearest = 4 * 96 if groups == "lists" else 2 * N_EXPERTS * 96
    assert budget.value - spent < dearest
    if groups == "lists":
        assert all(len({plan.ranks[name] for name in group}) == 1 for group in tied)
    else:
        ranks = {n: r for n, r in plan.ranks.items() if ".experts." in n and "down" in n}
        layers: dict[str, set[int]] = {}
        for name, rank in ranks.items():
            layers.setdefault(name.split(".experts.")[0], set()).add(rank)
        assert all(len(some) == 1 for some in layers.values())


def test_the_steps_worth_most_are_taken(modules):
    """At equal cost and without bounds that bind, no step left is worth more than one taken."""
    same = [m for m in modules if ".experts." in m.name]
    scores = drawn(same, "spectral")
    plan = allocate(scores, 4, rule="spectral", r_min=0, r_max=N_SINGULAR_VALUES)

    falling = np.sort(np.array(list(scores.spectra.values())))[:, ::-1]
    ranks = np.array([plan.ranks[m.name] for m in same])
    is_taken = np.arange(N_SINGULAR_VALUES) < ranks[:, None]
    assert ranks.sum() == 4 * len(same)
    assert falling[is_taken].min() >= falling[~is_taken].max() * (1 - 1e-9)
