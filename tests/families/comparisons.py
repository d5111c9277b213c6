"""Compare what the product says with what it must say; `Wrong` says by how much they differ."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from families.product import Product
from families.reference import Adapted, exact_scores, example_energies
from families.rows import Example, batches
from fimlora import RankPlan, measure, score

FLOAT32 = 1e-5  # largest relative difference of two scores
FLOAT64 = 1e-6  # the same, of a run in float64; some norms compute in float32 even so
SMALL = 1e-6  # a score below this share of the highest is compared with that share
# Where rounding rules, a score may be so many times further off than plain autograd in float32,
# and in half precision; there a median of 2 % is always fine.
ROUNDING_FACTOR, MOST_ROUNDING = 5.0, 1e-4
HALF_FACTOR, HALF_SLACK = 3.0, 0.02


class Wrong(Exception):
    """A check has failed."""


def same_as_autograd(product: Product, model: Any, found: list[Example]) -> None:
    """Every module's score, and every example's energy, are those of plain autograd.

    Where they are not, autograd in float64 tells a fault from rounding.
    """
    names = names_of(product)
    single = example_energies(model, found, names)
    error, where = _off(product, single, model)
    if error <= FLOAT32:
        return
    rounding = Rounding.of(model, found, names, single)
    off = _off(product, rounding.double, model)[0]
    if off <= min(rounding.limit, MOST_ROUNDING):
        return
    if not (off <= rounding.limit and rounding.is_all):
        raise Wrong(f"{error:.1e} at {where}")


@dataclass(frozen=True)
class Rounding:
    """How far plain autograd in float32 is off that in float64.

    Attributes:
        limit: How far off the product may be for rounding alone.
        double: Each example's energy in float64.
        product_off: How far off the product is, run in float64 too.
    """

    limit: float
    double: Mapping[str, torch.Tensor]
    product_off: float

    @classmethod
    def of(
        cls,
        model: Any,
        found: list[Example],
        names: list[str],
        single: Mapping[str, torch.Tensor],
    ) -> "Rounding":
        """Take all of it in float64."""
        wide = copy.deepcopy(model).double()
        double = example_energies(wide, found, names)
        usual = _examples_off({n: e.numpy() for n, e in single.items()}, double)[0]
        # Images and sounds of several examples are not one tensor.
        whole = batches(found, size=len(found)) if _is_text(found) else found
        product = measure(wide, whole, target_modules=names, estimator="exact")
        off = _examples_off(product.example_energies, double)[0]
        return cls(ROUNDING_FACTOR * usual, double, off)

    @property
    def is_all(self) -> bool:
        """Whether in float64 nothing is off: then rounding is all there was."""
        return self.product_off <= FLOAT64


def _is_text(found: list[Example]) -> bool:
    return not any("pixel_values" in e or "input_features" in e for e in found)


def _off(
    product: Product, energies: Mapping[str, torch.Tensor], model: Any
) -> tuple[float, str]:
    """The largest relative difference of a score or of an example's energy, and where."""
    return max(
        worst(scores_of(product), exact_scores(model, energies)),
        _examples_off(product.statistics.example_energies, energies),
    )


def _examples_off(
    found: Mapping[str, NDArray[np.float64]], wanted: Mapping[str, torch.Tensor]
) -> tuple[float, str]:
    """As a share of the largest of their module; in any order."""
    highest = max(float(values.max()) for values in wanted.values())
    errors = {}
    for name, values in wanted.items():
        ours, theirs = np.sort(found[name]), np.sort(values.numpy())
        if ours.shape != theirs.shape:
            raise Wrong(f"{len(ours)} examples of {len(theirs)}")
        # A module that hardly any gradient reaches is all rounding.
        scale = max(float(theirs.max()), SMALL * highest)
        errors[name] = float(np.abs(ours - theirs).max()) / scale
    name = max(errors, key=errors.__getitem__)
    return errors[name], f"an example of {name}"


def no_worse_in_half(half: Product, single: Product, model: Any, found: list[Example]) -> None:
    """No further from float32 than plain autograd in half precision is."""
    plain = exact_scores(model, example_energies(model, found, names_of(single)))
    exact = scores_of(single)
    floor = SMALL * max(exact.values())
    ours, usual = (
        float(np.median([abs(found[n] - w) / max(w, floor) for n, w in exact.items()]))
        for found in (scores_of(half), plain)
    )
    if not ours <= HALF_FACTOR * usual + HALF_SLACK:
        raise Wrong(f"median difference {ours:.1e}, of plain autograd {usual:.1e}")


def same_scores(product: Product, other: Product, *, limit: float = FLOAT32) -> None:
    """Of another run of the same."""
    error, name = worst(scores_of(other), scores_of(product))
    if not error <= limit:
        raise Wrong(f"{error:.1e} at {name}")


def same_but_for_rounding(
    product: Product, other: Product, model: Any, found: list[Example]
) -> None:
    """Of another run of the same, whose passes are of other sizes; both round."""
    try:
        same_scores(product, other, limit=3 * FLOAT32)
    except Wrong:
        names = names_of(product)
        rounding = Rounding.of(model, found, names, example_energies(model, found, names))
        if not rounding.is_all:
            raise
        same_scores(product, other, limit=rounding.limit)


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
