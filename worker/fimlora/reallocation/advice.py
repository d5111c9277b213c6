"""Which ranks of a trained adapter to prune, and which modules to grow with what that frees.

Advice in the manner of ALoRA, and not ALoRA, which trains in between: every rank has a gate that is
one, its importance says what the adapter would lose without it, the least important are pruned over
all modules, and modules that lost none grow by as many.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fimlora.adapter.live import LiveAdapter, acting_alone, live_adapter
from fimlora.apply import carriers_of
from fimlora.errors import InvalidOption
from fimlora.measuring.examples.losses import LossFn
from fimlora.measuring.resident import measure_resident
from fimlora.measuring.settings import Settings
from fimlora.model.exclusive import exclusive
from fimlora.reallocation.ablation import ablated_importance
from fimlora.statistics import Statistics
from fimlora.statistics.options import Record

Importance = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class PruneAndGrow:
    """Advice for a trained adapter.

    Attributes:
        importance: Of every rank by module: what the mean loss would rise by without it.
        pruned: The ranks to prune by module, counted from 0, of modules that lose one.
        grown: How many ranks a module gains, of modules that gain one.
        ranks: Rank by module after both; their sum is as before.
        method: ``first-order`` or ``ablation``.
    """

    importance: Importance
    pruned: Mapping[str, tuple[int, ...]]
    grown: Mapping[str, int]
    ranks: Mapping[str, int]
    method: str


def advise_prune_and_grow(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    n: int,
    *,
    exact: bool = False,
    n_batches: int = 8,
    adapter_name: str = "default",
    micro_batch_size: int | None = None,
    loss_fn: LossFn | None = None,
) -> PruneAndGrow:
    """Say which n ranks of a trained adapter to prune, and where as many would be added.

    By default importance is first order, for all ranks from one forward and backward pass: with gates
    a = 1, ``-dL/da = -s sum_t (g_t . b)(a . x_t)``, the mean over examples. Exactly, it is ALoRA's
    ``S(M) - S(M without i) + S(M with only i)`` with S = -loss, two forward passes per rank. Nothing
    is changed or trained, and nothing shows that following it helps.

    Args:
        model: A model that carries a trained LoRA adapter.
        batches: Batches with labels, as the model takes them.
        n: Ranks to prune in all.
        exact: Ablate every rank in turn.
        n_batches: Batches to use at most.
        adapter_name: The adapter's name.
        micro_batch_size: Examples per forward pass, to save memory.
        loss_fn: Maps the model's outputs and a batch to one loss per example.

    Returns:
        The advice. Modules keep one rank; those that lost none grow, the most important first.

    Raises:
        InvalidOption: There are not as many ranks to prune, or the modules left cannot grow by as many.
    """  # noqa: DOC502 - `prune_and_grow` raises
    with exclusive(model):
        adapter = live_adapter(model, adapter_name)
        with acting_alone(model, adapter_name):
            settings = Settings(
                choice=carriers_of(model, adapter.ranks),
                estimator="none",
                record=Record.ADAPTER_GRADIENTS,
                n_batches=n_batches,
                micro_batch_size=micro_batch_size,
                loss_fn=loss_fn,
            )
            if exact:
                importance = ablated_importance(model, batches, settings, adapter)
            else:
                importance = first_order_importance(measure_resident(model, batches, settings))
    return prune_and_grow(
        importance,
        n,
        method="ablation" if exact else "first-order",
        highest={name: _smaller_side(adapter, name) for name in importance},
    )


def first_order_importance(statistics: Statistics) -> dict[str, NDArray[np.float64]]:
    """Take the importance of every rank from gradients of its gate.

    Args:
        statistics: What was measured with ``record="adapter_gradients"``.

    Returns:
        Importance by module (r): what the mean loss would rise by without a rank, to first order.

    Raises:
        InvalidOption: They hold no gates.
    """
    gates = statistics.quantities.get("adapter_gates")
    if not gates:
        raise InvalidOption(
            "these statistics hold no adapter_gradients; measure a model with a trained adapter and "
            "record='adapter_gradients'"
        )
    return {name: -sums / statistics.n_examples for name, sums in gates.items()}


def _smaller_side(adapter: LiveAdapter, name: str) -> int:
    """The highest rank that an update of a module can have."""
    A, B = adapter.matrices(name)
    return min(A.in_features, B.out_features)


def prune_and_grow(
    importance: Importance, n: int, *, method: str, highest: Mapping[str, int]
) -> PruneAndGrow:
    """Prune the n least important ranks, and let modules that lost none grow by as many.

    Args:
        importance: Of every rank by module.
        n: Ranks to prune; every module keeps one.
        method: What the importance was taken by.
        highest: The rank that no module grows beyond, by module: its smaller side.

    Returns:
        The advice.

    Raises:
        InvalidOption: There are not as many ranks to prune, or the modules left cannot grow by as many.
    """
    ranks = {name: len(values) for name, values in importance.items()}
    most = sum(ranks.values()) - len(ranks)
    if not 1 <= n <= most:
        raise InvalidOption(
            f"n={n}: from 1 to {most} ranks can be pruned, as each of {len(ranks)} modules keeps one"
        )
    pruned: dict[str, list[int]] = {}
    by_rank = sorted(
        (v, name, k) for name, values in importance.items() for k, v in enumerate(values)
    )
    for _, name, k in by_rank:
        if sum(map(len, pruned.values())) < n and len(pruned.get(name, ())) < ranks[name] - 1:
            pruned.setdefault(name, []).append(k)
    whole = [name for name in ranks if name not in pruned]
    grown = _grown(importance, n, {name: highest[name] - ranks[name] for name in whole})
    return PruneAndGrow(
        importance,
        {name: tuple(sorted(of_module)) for name, of_module in pruned.items()},
        grown,
        {name: r - len(pruned.get(name, ())) + grown.get(name, 0) for name, r in ranks.items()},
        method,
    )


def _grown(importance: Importance, n: int, room: Mapping[str, int]) -> dict[str, int]:
    """Share n ranks over modules that lost none, one each in turn, the most important first.

    Args:
        importance: Of every rank by module.
        n: Ranks to share.
        room: How many more ranks each of these modules can have.

    Returns:
        Ranks gained by module.

    Raises:
        InvalidOption: There is none, or they cannot have as many.
    """
    if not room:
        raise InvalidOption(
            f"n={n}: every module would lose a rank, so that none is left to grow; prune fewer"
        )
    order = sorted(room, key=lambda name: (-float(importance[name].mean()), name))
    turns = sorted((turn, i) for i, name in enumerate(order) for turn in range(room[name]))[:n]
    if len(turns) < n:
        raise InvalidOption(
            f"n={n}: the modules that would lose no rank can grow by {len(turns)} in all, as no "
            "rank goes beyond the smaller side of its module; prune fewer"
        )
    gained = Counter(order[i] for _, i in turns)
    return {name: gained[name] for name in order if gained[name]}
