"""What is kept of modules is what they say, and plans of kept modules are those of plain ones."""

import copy
import pickle
import random

import numpy as np
import pytest

from fimlora.allocation import RULES, allocate
from fimlora.allocation.listed import Listed
from fimlora.plan import Budget, TargetModule
from fimlora.scores import Scores

MODULES = [
    TargetModule(f"model.layers.{i}.{kind}", 16 + i, 64, n_experts=n, family=family)
    for i in range(6)
    for kind, n, family in [("attn.q", None, None), ("mlp.up", 4, "language"), ("mlp.x", None, "v")]
]  # fmt: skip


def test_it_says_of_modules_what_they_do():
    """Names, costs, sizes and families, in order; it is equal to a tuple, and copied as one."""
    listed = Listed.of(MODULES)

    assert listed == tuple(MODULES)
    assert Listed.of(listed) is listed
    assert listed.names == [m.name for m in MODULES]
    assert listed.costs.tolist() == [m.cost for m in MODULES]
    assert listed.sizes.tolist() == [min(m.d_in, m.d_out) for m in MODULES]
    assert listed.families == {m.name: m.family for m in MODULES if m.family}
    for again in (copy.deepcopy(listed), pickle.loads(pickle.dumps(listed))):
        assert type(again) is Listed
        assert again == listed
        assert vars(again) == {}


@pytest.mark.parametrize("rule", RULES)
def test_one_plan_after_another_is_what_each_is_alone(rule):
    """Whatever is kept from those before: other seeds, budgets and constraints follow."""
    rng = random.Random(0)
    listed = Listed.of(MODULES)
    by_module = {m.name: rng.lognormvariate(0, 2) for m in MODULES}
    spectra = {m.name: np.random.default_rng(1).lognormal(0, 1, 8) for m in MODULES}
    asked = [
        (Budget("rank", 4), {"seed": 0}),
        (Budget("rank", 3), {"seed": 1, "groups": "layer"}),
        (Budget("parameters", 9_000), {"seed": 0}),
        (Budget("rank", 4), {"seed": 1, "per_type": {"up": {"share": 0.3}}}),
        (Budget("rank", 4), {"seed": 0}),
    ]
    if rule in {"layers"}:
        asked = [(b, o) for b, o in asked if "groups" not in o and "per_type" not in o]

    for budget, options in asked:
        plans = [
            allocate(
                Scores(modules, by_module, spectra if rule == "spectral" else {}, rule=rule),
                budget,
                **options,
            )
            for modules in (listed, list(MODULES))
        ]
        assert plans[0] == plans[1]
        assert plans[0].to_json() == plans[1].to_json()
