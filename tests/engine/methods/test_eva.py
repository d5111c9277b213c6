"""Plans are those of PEFT's EVA on the same batches, and so are the components behind them."""

import numpy as np
import pytest
from torch import Tensor

from fimlora import Budget, Statistics, allocate, measure, score
from fimlora.confidence.signal import signal_of
from fimlora.methods.score import obstacle
from fimlora.plan import RankPlan
from support.eva import BERT, LLAMA, batches_for, bert, by_peft, by_us, llama
from support.models import PAD


def least_cosine(statistics: Statistics, theirs: dict[str, Tensor]) -> float:
    """Of each row of their A with the component in its place, whatever their signs."""
    components = statistics.quantities["input_components"]
    return min(
        np.abs((A.numpy() * components[name][: len(A)]).sum(axis=1)).min()
        for name, A in theirs.items()
    )


@pytest.mark.parametrize(
    ("build", "targets", "by_token"), [(llama, LLAMA, True), (bert, BERT, False)]
)
@pytest.mark.parametrize(
    ("width", "inner", "r", "least"),
    [(32, 32, 8, 1 - 1e-5), (64, 128, 8, 1 - 1e-3), (64, 128, 4, 1 - 1e-2)],
    ids=["theirs_exact", "theirs_sketched", "theirs_sketched_narrowly"],
)
def test_ranks_and_components_are_those_of_peft(
    build, targets, by_token, width, inner, r, least
):
    """Over padded batches with tokens that carry no label, and modules left out at rank 0.

    PEFT's own decomposition is exact where twice its components are all directions, and else a
    sketch, whose error is theirs.
    """
    model = build(width, inner)
    theirs = by_peft(model, targets, r, by_token=by_token)

    found = by_us(model, targets, r, by_token=by_token)
    plan = allocate(score(found, "eva"), r, r_min=0, r_max=2 * r)

    given = {name: rank for name, rank in plan.ranks.items() if rank}
    assert given == {name: len(A) for name, A in theirs.items()}
    assert least_cosine(found, theirs) >= least
    assert len(set(given.values())) > 2, "an even plan would show nothing"


def plan_of(statistics: Statistics, budget: object, **options: object) -> RankPlan:
    return allocate(score(statistics, "eva"), budget, **options)


def test_what_the_original_cannot_do():
    """Inputs of one vector per example, a floor of 1, a budget of parameters met exactly."""
    model = bert(32, 64)
    found = by_us(model, [*BERT, "pooler.dense"], 16, by_token=False)
    pooler = next(m.name for m in found.modules if "pooler" in m.name)

    plan = plan_of(found, 4, r_min=3, r_max=16)
    by_parameters = plan_of(found, Budget("parameters", 4001), r_min=1, r_max=8)

    # Eleven examples, centred, and no more directions.
    assert found.quantities["input_components"][pooler].shape == (10, 32)
    assert (found.quantities["input_variances"][pooler][10:] == 0).all()
    assert min(plan.ranks.values()) == 3
    assert plan.spent.ranks == 4 * len(found.modules)
    left = 4001 - by_parameters.spent.parameters
    open_steps = [m.cost for m in found.modules if by_parameters.ranks[m.name] < 8]
    assert 0 <= left < min(open_steps)


def test_batches_shorter_than_the_components_are_used():
    """Where the original goes on for ever; which modules still turn is said."""
    model = llama(32, 32)
    short = [
        {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": ids}
        for ids in (batch["input_ids"][:, :6] for batch in batches_for(by_token=True))
    ]

    found = measure(
        model, short, target_modules=LLAMA, estimator="none", record="input_components"
    )

    assert found.n_batches == 3
    facts = score(found, "eva").provenance["input_components"]
    assert facts["not_converged"] == [m.name for m in found.modules]
    assert facts["rows"] == "tokens with a label"


def test_components_that_stay_have_converged():
    """The same batch again and again turns nothing; provenance of a classifier says so."""
    model, batch = bert(32, 32), batches_for(by_token=False)[0]

    found = measure(
        model, 4 * [batch], target_modules=BERT, estimator="none",
        record="input_components", n_components=4,
    )  # fmt: skip

    assert score(found, "eva").provenance["input_components"] == {
        "rows": "all tokens but padding",
        "tau": 0.99,
        "not_converged": [],
    }


def test_a_plan_says_that_no_label_moves_it():
    """Without a null; with halves it says how far other rows do."""
    model, batches = llama(32, 32), batches_for(by_token=True)
    options = {"target_modules": LLAMA, "estimator": "none", "record": "input_components"}

    halved = measure(model, batches, halves=True, null=True, **options)
    alone = measure(model, batches, **options)

    assert halved.null is None
    signal = signal_of(halved, plan_of(halved, 4, r_min=0))
    assert signal.verdict == "none"
    assert signal.sentence.startswith(
        "activations alone: no label moves this plan (other rows "
    )
    assert signal.moved_by_labels == 0
    assert signal.moved_by_rows > 0
    bare = signal_of(alone, plan_of(alone, 4, r_min=0))
    assert bare.sentence == "activations alone: no label moves this plan"
    assert bare.moved_by_rows is None


def test_what_lacks_components_says_so():
    """By the name that measures them."""
    model, batches = llama(32, 32), batches_for(by_token=True)

    found = measure(model, batches[:1], target_modules=["q_proj"], record="moments")

    assert "measure with record='input_components'" in obstacle(found, "eva")
