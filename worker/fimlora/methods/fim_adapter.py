"""The paper's equation 4 at a trained point, where A has a gradient as well as B.

At B = 0 only B has a gradient, and with A drawn at random the score is an expectation over it. A
trained adapter has an A and a B: its score is the mean squared gradient of one of its parameters,

    score = sum_n (||dL_n/dA||_F^2 + ||dL_n/dB||_F^2) / (N r (d_in + d_out)),

with r the rank that the module has. Nothing is drawn.
"""

from fimlora.plan import TargetModule
from fimlora.statistics import Statistics

ADAPTER_GROUP = "adapter_gradients"


def mean_square(statistics: Statistics, module: TargetModule) -> float:
    """Give the mean squared gradient of a parameter of a module's adapter.

    Args:
        statistics: What was measured of a model with an adapter.
        module: One of its target modules.

    Returns:
        The score.
    """
    squares = statistics.quantities[ADAPTER_GROUP][module.name]  # (2 r): of A and of B, by rank
    n_entries = int(squares.shape[1]) * (module.d_in + module.d_out)
    return float(squares.sum()) / float(statistics.n_examples * n_entries)
