"""A plan together with how sure it is and what is to be said about it.

Measuring, planning anew and the service all ask here, so that equal settings give equal
rank maps wherever they are made. Nothing here imports torch.
"""

from dataclasses import replace
from typing import Any

from fimlora.confidence.bootstrap import confidence_of, obstacle, resamples_for
from fimlora.confidence.warnings import warnings_of
from fimlora.plan import RankPlan
from fimlora.statistics import Statistics

_NOT_EXAMPLES = (
    "row_energies",
    "squared_gradients",
    "input_squares",
    "token_counts",
    "batch_energies",
    "spectra",
    "mean_energies",
    "spectrum_errors",
    "head_weights",
)


def examples_of(statistics: Statistics) -> Statistics:
    """Read of statistics what `with_confidence` looks at, which is small, and nothing else.

    Args:
        statistics: The statistics, maybe in an open file.

    Returns:
        Statistics with the values per example alone, in memory.
    """
    empty: dict[str, Any] = {group: {} for group in _NOT_EXAMPLES}
    empty |= {"null": None, "halves": None, "retain": None}
    return replace(statistics, example_energies=dict(statistics.example_energies), **empty)


def with_confidence(statistics: Statistics, plan: RankPlan) -> RankPlan:
    """Say beside a plan how sure it is, or why that is not known, and what to mind.

    Args:
        statistics: What was measured.
        plan: The plan that was made of it.

    Returns:
        The plan with its ``confidence``, where that is known, and its ``warnings``.
    """
    unknown = obstacle(statistics, plan)
    confidence = None
    if unknown is None:
        confidence = confidence_of(
            statistics,
            plan,
            n_resamples=resamples_for(len(plan.modules), statistics.n_examples),
        ).to_json()
    plan = replace(plan, confidence=confidence)
    return replace(plan, warnings=warnings_of(plan, unknown=unknown))


def expected_move(statistics: Statistics, plan: RankPlan) -> float:
    """Say how much of a plan another draw of as many examples is expected to move.

    Args:
        statistics: What was measured.
        plan: The plan that was made of it.

    Returns:
        The share of its ranks, or of its parameters at a budget in these; all of it where one
        example was measured, as that shows no difference.
    """
    if statistics.n_examples < 2:
        return 1.0
    found = confidence_of(
        statistics,
        plan,
        n_resamples=resamples_for(len(plan.modules), statistics.n_examples),
    )
    return 1 - found.expected_overlap
