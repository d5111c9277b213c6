"""Shares of the variance of a module's inputs: what EVA redistributes ranks by.

EVA pools the explained variance ratios of all modules and gives a rank to each of the n r
largest. The rule ``spectral`` does that where all ranks cost the same, as it takes the largest
squares first: the roots of the ratios stand in place of singular values. At unequal costs it
takes the largest ratio per parameter.
"""

import numpy as np

from fimlora.scores import Scores
from fimlora.statistics import Statistics

# From what cosine on a component counts as the one that it was before.
TAU = 0.99


def take_variances(
    statistics: Statistics,
    aggregation: str,  # noqa: ARG001 - shares have neither
    estimator: str | None,  # noqa: ARG001
) -> Scores:
    """Take shares of the variance in place of scores.

    Args:
        statistics: What `fimlora.measure` returned, with input components.
        aggregation: Not looked at.
        estimator: Not looked at.

    Returns:
        Scores without a number per module; their provenance names the modules whose components
        have not converged.
    """
    shares = statistics.quantities["input_variances"]
    return Scores(
        statistics.modules,
        spectra={m.name: np.sqrt(shares[m.name]) for m in statistics.modules},
        base_parameters=statistics.base_parameters,
        provenance=convergence(statistics),
    )


def convergence(statistics: Statistics) -> dict[str, object]:
    """Say how the components of a run came about.

    Args:
        statistics: What was measured, with input components.

    Returns:
        Plain data: what rows they are of, and which modules' still turned at the last update.
    """
    told = statistics.quantities["input_convergence"]
    by_token = statistics.loss in {"causal_lm", "seq2seq_lm"}
    return {
        "input_components": {
            "rows": "tokens with a label" if by_token else "all tokens but padding",
            "tau": TAU,
            "not_converged": [m.name for m in statistics.modules if told[m.name][0] < TAU],
        }
    }
