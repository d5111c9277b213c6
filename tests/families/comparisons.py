"""Compare what the product says with what it must say; `Wrong` says by how much they differ."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from families.product import Product
from families.reference import Adapted, exact_scores, example_energies
from families.rows import Example
from fimlora import RankPlan, score

FLOAT32 = 1e-5  # largest relative difference of two scores
SMALL = 1e-6  # a score below this share of the highest is compared with that share
# Where rounding rules, a score may be so many times further off than plain autograd in the
# same dtype; in half precision a median of 2 % is always fine.
ROUNDING_FACTOR = 3.0
MOST_ROUNDING = 1e-4
HALF_SLACK = 0.02


class Wrong(Exception):
    """A check has failed."""


def same_as_autograd(product: Product, model: Any, found: list[Example]) -> None:
    """Every module's score, and every example's energy, are those of plain autograd."""
    energies = example_energies(model, found, names_of(product))
    error, name = worst(scores_of(product), exact_scores(model, energies))
    if not error <= FLOAT32:
        if not _is_rounding(product, model, found):
            raise Wrong(f"{error:.1e} at {name}")
        return
    highest = max(float(values.max()) for values in energies.values())
    for name, wanted in energies.items():
        ours, theirs = (
            np.sort(product.statistics.example_energies[name]),
            np.sort(wanted.numpy()),
        )
        if ours.shape != theirs.shape:
            raise Wrong(f"{len(ours)} examples of {len(theirs)}")
        # A module that hardly any gradient reaches is all rounding.
        off = float(np.abs(ours - theirs).max()) / max(float(theirs.max()), SMALL * highest)
        if not off <= FLOAT32:
            raise Wrong(f"{off:.1e} at one example of {name}")


def _is_rounding(product: Product, model: Any, found: list[Example]) -> bool:
    """Whether autograd in float32 is about as far from autograd in float64 as the product."""
    names, wide = names_of(product), copy.deepcopy(model).double()
    single, double = (exact_scores(m, example_energies(m, found, names)) for m in (model, wide))
    ours, usual = (worst(scores, double)[0] for scores in (scores_of(product), single))
    return ours <= ROUNDING_FACTOR * usual <= MOST_ROUNDING


def no_worse_in_half(half: Product, single: Product, model: Any, found: list[Example]) -> None:
    """No further from float32 than plain autograd in half precision is."""
    plain = exact_scores(model, example_energies(model, found, names_of(single)))
    exact = scores_of(single)
    floor = SMALL * max(exact.values())
    ours, usual = (
        float(np.median([abs(found[n] - w) / max(w, floor) for n, w in exact.items()]))
        for found in (scores_of(half), plain)
    )
    if not ours <= ROUNDING_FACTOR * usual + HALF_SLACK:
        raise Wrong(f"median difference {ours:.1e}, of plain autograd {usual:.1e}")


def same_scores(product: Product, other: Product, *, limit: float = FLOAT32) -> None:
    """Of another run of the same."""
    error, name = worst(scores_of(other), scores_of(product))
    if not error <= limit:
        raise Wrong(f"{error:.1e} at {name}")


def same_statistics(product: Product, other: Product) -> None:
    """To the last bit."""
    if product.statistics.to_bytes() == other.statistics.to_bytes():
        return
    if difference := set(names_of(product)) ^ set(names_of(other)):
        raise Wrong(f"other modules: {', '.join(sorted(difference)[:3])}")
    same_scores(product, other)
    raise Wrong("the same scores, but not to the last bit")


def as_planned(adapted: Adapted, plan: RankPlan, logits: torch.Tensor) -> None:
    """Exactly the planned modules, ranks, scales and parameters, and the base's logits."""
    planned = {n: (r, float(plan.scale)) for n, r in plan.ranks.items() if r}
    if extra := sorted(set(adapted.settings) - set(planned)):
        raise Wrong(f"PEFT adapts {len(extra)} modules that are not planned, as {extra[0]}")
    if lacking := sorted(set(planned) - set(adapted.settings)):
        raise Wrong(f"PEFT leaves out {len(lacking)} planned modules, as {lacking[0]}")
    for name, wanted in planned.items():
        if adapted.settings[name] != wanted:
            raise Wrong(f"{name} has (r, scale) {adapted.settings[name]}, planned {wanted}")
    if adapted.n_parameters != plan.spent.parameters:
        raise Wrong(f"{adapted.n_parameters} parameters, planned {plan.spent.parameters}")
    if adapted.missing:
        raise Wrong(f"PEFT misses keys: {adapted.missing[0][:200]}")
    off = (adapted.logits - logits).abs().max().item() / logits.abs().max().item()
    if not off <= FLOAT32:
        raise Wrong(f"logits differ by {off:.1e}")


def worst(found: Mapping[str, float], wanted: Mapping[str, float]) -> tuple[float, str]:
    """The largest relative difference, and where."""
    floor = SMALL * max(wanted.values())
    errors = {n: abs(found[n] - w) / max(w, floor) for n, w in wanted.items()}
    name = max(errors, key=errors.__getitem__)
    return errors[name], name


def names_of(product: Product) -> list[str]:
    """Its target modules."""
    return [module.name for module in product.plan.modules]


def scores_of(product: Product) -> dict[str, float]:
    """Its exact scores."""
    return dict(score(product.statistics).by_module)
