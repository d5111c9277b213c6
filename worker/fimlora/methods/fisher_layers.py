"""The layers with the most Fisher information, after Lodha et al. (2023, arXiv 2310.17041).

The empirical Fisher information of a weight's entry p is ``F[p] = sum_n G[n, p]^2 / N``, and the
score of a layer is its trace over the weights of the layer's target modules: with the energies
of the weight gradients' rows that is exact, and no array as large as a weight is held. The sum
over tensors of ``||F||_F``, which the paper takes, is another number: `fisher-layers-frobenius`
has it, from an array as large as each weight.

Other departures, each a defect of the published code: every example is seen once (its loader
starts anew in each step), the loss is the log-likelihood of the label (not its logit), padding
takes no part, and a new classifier head is fitted before anything is measured.
"""

from fimlora.scores import Scores
from fimlora.statistics import Statistics
from fimlora.statistics.options import Record


def score_trace(
    statistics: Statistics,
    aggregation: str,  # noqa: ARG001 - a trace is a sum
    estimator: str | None,  # noqa: ARG001
) -> Scores:
    """Score every target module by its part of its layer's trace.

    Args:
        statistics: What `fimlora.measure` returned.
        aggregation: Not looked at.
        estimator: Not looked at.

    Returns:
        Scores that add up to those of the layers. Their unit is that of a squared gradient of
        the weights, whatever the LoRA scale.
    """
    traces = {
        module.name: float(statistics.row_energies[module.name].sum()) / statistics.n_examples
        for module in statistics.modules
    }
    return Scores(
        statistics.modules,
        traces,
        base_parameters=statistics.base_parameters,
        provenance={"layer_score": "trace"},
    )


def score_norm(
    statistics: Statistics,
    aggregation: str,  # noqa: ARG001
    estimator: str | None,  # noqa: ARG001
) -> Scores:
    """Score every target module by the Frobenius norm of its weight's Fisher information.

    Args:
        statistics: What `fimlora.measure` returned.
        aggregation: Not looked at.
        estimator: Not looked at.

    Returns:
        Scores that add up to those of the layers.
    """
    norms = statistics.quantities[Record.PARAMETER_FISHER.value]
    return Scores(
        statistics.modules,
        {module.name: norms[module.name].item() for module in statistics.modules},
        base_parameters=statistics.base_parameters,
        provenance={"layer_score": "sum of Frobenius norms"},
    )
