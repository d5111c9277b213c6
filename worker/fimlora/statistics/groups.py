"""What further quantities a run may record, by the name of their group in statistics.

A quantity that is not one of the sums every run has is listed here once; statistics then save it,
read it, add it up over runs and cut it into halves without knowing what it is.
"""

from dataclasses import dataclass

# Singular vectors kept of each gradient, and rows of the A it is projected by: no initial weights
# made of these have a higher rank.
N_DIRECTIONS = 64


@dataclass(frozen=True, slots=True)
class Group:
    """Arrays of one kind, one for each module.

    Attributes:
        name: What they are called in statistics and in files.
        adds_up: Whether those of two runs are added where runs are merged; runs with others are
            not merged.
        is_square: Whether they are sums of squares, which rounding must not leave below zero
            where a part is taken off.
    """

    name: str
    adds_up: bool = False
    is_square: bool = False


_ALL: tuple[Group, ...] = (
    Group("adapter_gradients", adds_up=True, is_square=True),
    Group("adapter_gates", adds_up=True),
    # The mean gradient's leading singular vectors and values, and how sure these are.
    Group("gradient_left"),
    Group("gradient_values"),
    Group("gradient_right"),
    Group("gradient_errors"),
    # The summed gradient times the transposed A of a seed.
    Group("gradient_projected", adds_up=True),
    Group("expert_tokens", adds_up=True),  # tokens routed to each expert of a parameter (E)
    Group("layer_similarity"),
    Group("parameter_fisher"),
    Group("weight_gradient"),
    Group("whitened_spectra"),
    Group("whitened_energies"),
    Group("whitened_errors"),
    Group("weight_condition"),
    Group("input_components"),  # principal components of the inputs (K' I), one a row
    Group("input_variances"),  # the share of the variance along each of them, then 0 (K)
    # The least cosine of a component with itself before the last update, rows, and updates (3).
    Group("input_convergence"),
)
GROUPS = {group.name: group for group in _ALL}
