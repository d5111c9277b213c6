"""From a live PEFT model and a few batches to the ranks it should have, in one call."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from fractions import Fraction
from typing import Any

from torch import nn

from fimlora.adapter.live import LiveAdapter, acting_alone, live_adapter, resize_adapter
from fimlora.allocation import allocate
from fimlora.confidence.evidence import with_confidence
from fimlora.confidence.signal import source_if_any, with_signal
from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.measuring.examples.losses import LossFn
from fimlora.measuring.resident import measure_resident
from fimlora.measuring.settings import Settings
from fimlora.methods.registry import (
    estimator_for,
    find_method,
    needs_null,
    records_needed,
)
from fimlora.methods.score import score
from fimlora.model.compiled import running_uncompiled
from fimlora.model.exclusive import exclusive
from fimlora.model.peft_trial import unadaptable_by_peft
from fimlora.model.saved_whole import facts_of_saved, saved_on
from fimlora.model.targets import Choice, choose_targets, facts_of_ties, ties_among
from fimlora.plan import Budget, RankPlan


def apply_fim_ranks(
    model: nn.Module,
    dataloader: Iterable[Mapping[str, Any]],
    n_batches: int = 8,
    r_min: int | None = None,
    r_max: int | None = None,
    *,
    estimator: str = "auto",
    aggregation: str = "mean",
    method: str = "fim",
    budget: int | float | Budget | None = None,
    multiple_of: int = 1,
    adapter_name: str = "default",
    seed: int = 0,
    micro_batch_size: int | None = None,
    train_mode: bool = False,
    loss_fn: LossFn | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    signal: bool = False,
) -> RankPlan:
    """Measure a few batches, plan a rank for every adapted module, and resize in place.

    The adapter keeps the ranks it has in sum, unless a budget is given; only where they go
    changes. A layer that no row reaches, such as one of a vision tower under text, keeps its own
    and is listed in the plan. Other adapters that the model carries do not act while it is measured, and stay as
    they are. A classification head that was drawn at random drowns the task: `fimlora.fit_head`
    it first. Afterwards the model trains, saves and loads like any PEFT model. When anything
    raises, the model is as it was.

    Args:
        model: A model with a LoRA adapter, as `peft.get_peft_model` returns it.
        dataloader: Batches with labels, as the model takes them.
        n_batches: Batches to measure at most.
        r_min: Lowest rank, at least 1; half the mean rank by default.
        r_max: Highest rank; twice the mean rank by default.
        estimator: ``auto``, ``exact``, ``sketched``, or ``sampled`` as in the published code; see
            `fimlora.statistics.options.Estimator`.
        aggregation: ``mean``, ``max`` or ``l2``.
        method: What goes into the ranks, see `fimlora.score`; ``uniform`` and ``random`` are
            controls, ``spectral`` is experimental.
        budget: A mean rank or a `Budget`; by default the ranks the adapter has.
        multiple_of: Every rank is a multiple of this.
        adapter_name: The adapter's name; it need not be the active one.
        seed: Seed of all that is drawn.
        micro_batch_size: Examples per forward pass, to save memory; changes no result.
        train_mode: Leave dropout on while measuring, as the published code does.
        loss_fn: Maps the model's outputs and the batch to one loss per example.
        on_batch: Called with (batches done, batches expected) after each batch.
        signal: Measure also how much of the plan follows from the labels: its ``signal``.

    Returns:
        The plan that the adapter now has.

    Raises:
        InvalidOption: An argument is outside what is allowed.
    """
    if r_min is not None and r_min < 1:
        raise InvalidOption(f"r_min={r_min}: a layer of a live adapter has at least rank 1")
    if find_method(method).rule == "layers":
        raise InvalidOption(
            f"method {method!r} gives some layers rank 0, and a layer of a live adapter has at "
            "least rank 1: measure the base model, and write_adapter makes an adapter of its plan"
        )
    with exclusive(model):
        adapter = live_adapter(model, adapter_name, experts=True)
        scale = common_scale(adapter)
        ranks = adapter.ranks
        with acting_alone(model, adapter_name):
            settings = Settings(
                choice=carriers_of(model, ranks),
                n_batches=n_batches,
                estimator=estimator_for(method, estimator),
                rank=round(sum(ranks.values()) / len(ranks)),
                seed=seed,
                scale=scale,
                record=records_needed(method),
                micro_batch_size=micro_batch_size,
                train_mode=train_mode,
                loss_fn=loss_fn,
                on_batch=on_batch,
                null=signal or needs_null(method),
                halves=signal,
            )
            statistics = measure_resident(model, dataloader, settings)
        names = [module.name for module in statistics.modules]
        saved = tuple(saved_on(model, adapter_name))
        plan = allocate(
            score(statistics, method, aggregation=aggregation),
            _mean_rank([ranks[name] for name in names]) if budget is None else budget,
            r_min=r_min,
            r_max=r_max,
            multiple_of=multiple_of,
            groups=ties_among(model, names),
            scale=scale,
            seed=seed,
            provenance=facts_of_saved(saved)
            | facts_of_ties(model, names, saved=[each.name for each in saved]),
        )
        source = source_if_any(statistics, method, scale=scale, aggregation=aggregation)
        plan = with_signal(plan, source)
        resize_adapter(model, plan, adapter_name, seed=seed)
    return with_confidence(statistics, plan)


def carriers_of(model: nn.Module, names: Collection[str]) -> Choice:
    """Choose the modules that carry an adapter.

    Args:
        model: The model.
        names: Names of these modules.

    Returns:
        The choice; it names none by itself: a layer that no row reaches stays as it is.
    """
    with running_uncompiled(model) as plain:
        return choose_targets(plain, names=names, unadaptable=unadaptable_by_peft)


def common_scale(adapter: LiveAdapter) -> int | float:
    """Find the effective scale, which a plan has one of.

    Args:
        adapter: The adapter.

    Returns:
        The scale, as an integer if it is one.

    Raises:
        UnsupportedModule: Modules differ in it, so scores and ranks would not compare.
    """
    scales = adapter.scales
    low, high = (f(scales, key=scales.__getitem__) for f in (min, max))
    if not math.isclose(scales[low], scales[high], rel_tol=1e-9):
        raise UnsupportedModule(
            f"adapter {adapter.name!r} has scale {scales[low]:g} at {low} and "
            f"{scales[high]:g} at {high}; give all modules one alpha / rank"
        )
    scale = scales[low]
    return int(scale) if scale == int(scale) else scale


def _mean_rank(ranks: Collection[int]) -> float:
    """The mean rank, as the nearest float that does not lose a rank of the sum."""
    total = sum(ranks)
    mean = total / len(ranks)
    exact = Fraction(repr(mean)) * len(ranks) >= total
    return mean if exact else math.nextafter(mean, math.inf)
