"""How much of the gradient the examples agree on, and how much is their noise.

Symbols: N examples, ``G[n]`` the weight gradient of example n, M their mean. Over independent
examples ``E ||M||^2 = ||E G||^2 + tr Cov(G) / N``: the mean gradient's energy is part signal, part
noise that more examples take away. Both parts have unbiased estimates in what is recorded:

- signal, the mean of ``<G[n], G[m]>`` over the N (N - 1) pairs of unlike examples,
  ``(N^2 ||M||^2 - sum_n ||G[n]||^2) / (N (N - 1))``; it may come out negative
- noise of one example, ``(sum_n ||G[n]||^2 - N ||M||^2) / (N - 1)``

Where gradients or per-example energies are sketched, both stay unbiased and are less sure.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from fimlora.statistics import Statistics

NOTE = (
    "examples whose summed noise is as large as the gradient they agree on: much smaller batches "
    "are mostly noise, much larger ones save few steps (McCandlish et al. 2018); it is that of "
    "the model before training and promises no best batch size"
)


class Parts(NamedTuple):
    """Signal and noise of a module's gradient, as energies.

    Attributes:
        signal: Estimate of ``||E G||_F^2``.
        noise: Estimate of ``tr Cov(G)``, of one example.
    """

    signal: float
    noise: float


def can_part(statistics: Statistics) -> bool:
    """Say whether signal and noise can be told apart.

    Args:
        statistics: What `fimlora.measure` returned.

    Returns:
        Whether there are two examples, the energy of each, and that of their mean.
    """
    recorded = statistics.example_energies and statistics.mean_energies
    return statistics.n_examples > 1 and bool(recorded)


def part_gradients(statistics: Statistics) -> dict[str, Parts]:
    """Part every module's gradient into signal and noise.

    Args:
        statistics: What `fimlora.measure` returned, if one `can_part` it.

    Returns:
        The parts per module name, in the order of the modules.
    """
    n, found = statistics.n_examples, {}
    for module in statistics.modules:
        total = float(statistics.example_energies[module.name].sum())
        mean = statistics.mean_energies[module.name].item()
        signal, noise = (n * mean - total / n) / (n - 1), (total - n * mean) / (n - 1)
        found[module.name] = Parts(signal, noise)
    return found


def gradient_noise_scale(statistics: Statistics) -> dict[str, Any]:
    """Say by how much noise outweighs signal, over all modules and over those of each kind.

    Args:
        statistics: What `fimlora.measure` returned, if one `can_part` it.

    Returns:
        ``tr Cov(G) / ||E G||^2`` as plain data, with what it means in a sentence; ``None`` where
        these examples show no signal.
    """
    parts, kinds = part_gradients(statistics), defaultdict(list)
    for module in statistics.modules:
        kinds[module.kind].append(parts[module.name])
    return {
        "all": _ratio(parts.values()),
        "by_kind": {kind: _ratio(some) for kind, some in sorted(kinds.items())},
        "note": NOTE,
    }


def _ratio(parts: Iterable[Parts]) -> float | None:
    signals, noises = zip(*parts, strict=True)
    signal = sum(signals)
    return sum(noises) / signal if signal > 0 else None
