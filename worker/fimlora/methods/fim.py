"""One number per target module from its statistics: the paper's equation 4, three ways.

Symbols: O and I output and input features, R rank, N examples, T batches, s LoRA scale,
``G[n]`` (O I) the weight gradient of example n. F is the diagonal Fisher information of
LoRA-B, an O x R matrix. With A drawn at random, ``F[o, k]`` has for every column k the
expectation ``f[o] = s^2 sum_n ||G[n, o, :]||^2 / (3 I N)``, which is what ``exact`` uses, and
``sketched`` with row energies that are estimates; ``sampled`` has one F of its own, ``s^2 sum_b D[b]^2 / T``. Its expectation over A is ``batch``:
``s^2 sum_b ||H[b, o, :]||^2 / (3 I T)`` for every column, with ``H[b]`` (O I) batch b's gradient.
Of fused experts F is that of all their B; what is recorded of it is one row per expert, the sum over
the expert's O. ``adapter`` is of a trained adapter's own A and B, see `fimlora.methods.fim_adapter`.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from fimlora.errors import InvalidOption
from fimlora.methods.fim_adapter import ADAPTER_GROUP, mean_square
from fimlora.plan import TargetModule
from fimlora.scores import Scores
from fimlora.statistics import Statistics
from fimlora.statistics.options import Estimator

ADAPTER = "adapter"
Entries = Callable[[Statistics, TargetModule], NDArray[np.float64]]


class Aggregation(StrEnum):
    """How the entries of F become one number."""

    MEAN = "mean"
    """Their mean, as in the paper: comparable between matrices of unlike size."""
    MAX = "max"
    """The largest."""
    L2 = "l2"
    """The Euclidean norm of a column, as a root mean square over the columns."""


def score_fisher(
    statistics: Statistics, aggregation: str = "mean", estimator: str | None = None
) -> Scores:
    """Score every target module by the Fisher information of its LoRA-B.

    Args:
        statistics: What `fimlora.measure` returned.
        aggregation: As for `module_scores`.
        estimator: As for `module_scores`.

    Returns:
        The scores; their provenance says how they were made, where that was chosen.
    """
    taken = _chosen(statistics, estimator)
    is_said = estimator is not None or taken == ADAPTER
    chosen = {"estimator": taken} if is_said else {}
    return Scores(
        statistics.modules,
        module_scores(statistics, aggregation=aggregation, estimator=estimator),
        base_parameters=statistics.base_parameters,
        provenance={"aggregation": aggregation, **chosen},
    )


def check_options(statistics: Statistics, *, aggregation: str, estimator: str | None) -> None:
    """Refuse what these statistics cannot be scored by.

    Args:
        statistics: What `fimlora.measure` returned.
        aggregation: As for `module_scores`.
        estimator: As for `module_scores`.

    Raises:
        InvalidOption: The aggregation is unknown, or the estimator was not recorded.
    """
    if aggregation not in set(Aggregation):
        allowed = ", ".join(repr(known.value) for known in Aggregation)
        raise InvalidOption(f"aggregation={aggregation!r}; allowed are {allowed}")
    if estimator is None and not has_fisher(statistics):
        return  # nothing is taken from it
    entries = _recorded_entries(statistics)
    if (wanted := _chosen(statistics, estimator)) == ADAPTER and aggregation != "mean":
        raise InvalidOption(
            f"aggregation={aggregation!r}: of a trained adapter's gradients sums by rank are "
            "recorded, which give a mean; use aggregation='mean'"
        )
    check_of_experts(statistics.modules, aggregation)
    if wanted not in entries:
        recorded = ", ".join(map(repr, entries))
        raise InvalidOption(f"estimator={wanted!r} has no scores here; recorded: {recorded}")


def check_of_experts(modules: Iterable[TargetModule], aggregation: str) -> None:
    """Refuse an aggregation by single rows of B, which are not recorded of fused experts.

    Args:
        modules: The target modules; nothing need be measured of them yet.
        aggregation: As for `module_scores`.

    Raises:
        InvalidOption: Fused experts are among them.
    """
    fused = next((m.name for m in modules if m.n_experts is not None), None)
    if fused is not None and aggregation != "mean":
        raise InvalidOption(
            f"aggregation={aggregation!r} looks at single rows of B, and of fused experts such as "
            f"{fused!r} one sum per expert is recorded; use aggregation='mean'"
        )


def module_scores(
    statistics: Statistics, *, aggregation: str = "mean", estimator: str | None = None
) -> dict[str, float]:
    """Score every target module.

    For ``exact`` and ``batch``, mean, max and L2 are taken of the expected Fisher information; of
    a random A's and of a sketch, only the mean has the same expectation.

    Args:
        statistics: What `fimlora.measure` returned.
        aggregation: ``mean``, ``max`` or ``l2``.
        estimator: ``exact``, ``sketched``, ``sampled``, ``batch`` (where ``batch_energies``
            were recorded) or ``adapter`` (where ``adapter_gradients`` were); by default the last
            where it can be, else the estimator of the run, and ``exact`` if it was both.

    Returns:
        Score per module name, in the order of the modules.

    Raises:
        InvalidOption: The aggregation is unknown, or the estimator was not recorded.
    """  # noqa: DOC502 - `check_options` raises
    check_options(statistics, aggregation=aggregation, estimator=estimator)
    entries = _recorded_entries(statistics)[_chosen(statistics, estimator)]
    kind = Aggregation(aggregation)
    return {
        module.name: _aggregate(entries(statistics, module), kind)
        for module in statistics.modules
    }


def fisher_of_experts(
    statistics: Statistics, module: TargetModule, estimator: str | None = None
) -> NDArray[np.float64]:
    """Say how much of the Fisher information of a rank each expert has.

    Args:
        statistics: What `fimlora.measure` returned.
        module: Fused experts.
        estimator: As for `module_scores`.

    Returns:
        The sum over an expert's B, a column each, by expert.

    Raises:
        InvalidOption: It was not measured.
    """
    if estimator is None and not has_fisher(statistics):
        raise InvalidOption(
            "no Fisher information was measured: select at random with a share, or calibrate with "
            "method 'fim'"
        )
    check_options(statistics, aggregation="mean", estimator=estimator)
    entries = _recorded_entries(statistics)[_chosen(statistics, estimator)]
    F: NDArray[np.float64] = entries(statistics, module).mean(axis=1) * module.d_out
    return F


def has_fisher(statistics: Statistics) -> bool:
    """Say whether modules can be scored where no estimator is named.

    Args:
        statistics: What `fimlora.measure` returned.

    Returns:
        Whether anything was estimated, or a trained adapter's gradients recorded.
    """
    return _chosen(statistics, None) != Estimator.NONE.value


def _chosen(statistics: Statistics, estimator: str | None) -> str:
    if estimator is not None:
        return estimator
    if statistics.quantities.get(ADAPTER_GROUP):
        return ADAPTER
    return "exact" if statistics.estimator is Estimator.BOTH else statistics.estimator.value


def _recorded_entries(statistics: Statistics) -> dict[str, Entries]:
    """How to get at F for every estimator that was recorded, by its name."""
    found: dict[str, Entries] = {}
    if statistics.estimator.has_examples:
        is_sketched = statistics.estimator is Estimator.SKETCHED
        found["sketched" if is_sketched else "exact"] = _expected_entries
    if statistics.estimator.has_sampled:
        found["sampled"] = _sampled_entries
    if statistics.batch_energies:
        found["batch"] = _expected_batch_entries
    if statistics.quantities.get(ADAPTER_GROUP):
        found[ADAPTER] = _mean_of_adapter
    return found


def _expected_entries(statistics: Statistics, module: TargetModule) -> NDArray[np.float64]:
    """Expected F, O x 1: all its columns are equal."""
    F = statistics.scale**2 * _rows(statistics.row_energies, module)[:, None]
    F /= 3 * module.d_in * statistics.n_examples * _entries_of_row(module)  # in place
    return F


def _expected_batch_entries(
    statistics: Statistics, module: TargetModule
) -> NDArray[np.float64]:
    """What F of the sampled A is in expectation, O x 1."""
    F = statistics.scale**2 * _rows(statistics.batch_energies, module)[:, None]
    F /= 3 * module.d_in * statistics.n_batches * _entries_of_row(module)  # in place
    return F


def _sampled_entries(statistics: Statistics, module: TargetModule) -> NDArray[np.float64]:
    """F of the sampled A, O x R."""
    F = statistics.scale**2 * _rows(statistics.squared_gradients, module)
    F /= statistics.n_batches * _entries_of_row(module)
    return F


def _rows(
    recorded: Mapping[str, NDArray[np.float64]], module: TargetModule
) -> NDArray[np.float64]:
    """A row per output; of fused experts one per expert that trains."""
    rows = recorded[module.name]
    return rows if module.experts is None else rows[list(module.experts)]


def _entries_of_row(module: TargetModule) -> int:
    """How many of B's entries a row is the sum of: of fused experts, all outputs of an expert."""
    return module.d_out if module.n_experts is not None else 1


def _mean_of_adapter(statistics: Statistics, module: TargetModule) -> NDArray[np.float64]:
    """The mean over A and B, 1 x 1."""
    return np.array([[mean_square(statistics, module)]])


def _aggregate(F: NDArray[np.float64], aggregation: Aggregation) -> float:
    if aggregation is Aggregation.MAX:
        return float(F.max())
    if aggregation is Aggregation.L2:
        return float(np.sqrt(np.square(F).sum() / F.shape[1]))
    return float(F.mean())
