"""Comparing statistics: to the last bit, or up to rounding; never by nothing at all."""

from collections.abc import Iterable, Mapping
from dataclasses import fields

import numpy as np

from fimlora import Statistics
from support.reference import relative_error

GROUPS = (
    "row_energies",
    "example_energies",
    "squared_gradients",
    "input_squares",
    "token_counts",
    "batch_energies",
    "spectra",
    "mean_energies",
)  # and `spectrum_errors`, which are rounding alone where all values are kept


def assert_identical(found: Statistics, wanted: Statistics, *, in_order: bool = True) -> None:
    """Equal to the last bit, in all that was recorded and said about it."""
    n_compared = 0
    for field in (field for field in fields(Statistics) if field.compare):
        mine, theirs = getattr(found, field.name), getattr(wanted, field.name)
        if field.name in {"null", "halves", "retain"}:
            assert (mine is None) == (theirs is None), field.name
            continue
        if field.name == "quantities":
            mine, theirs = flat(mine), flat(theirs)
        if not isinstance(theirs, Mapping):
            assert mine == theirs, field.name
            continue
        assert mine.keys() == theirs.keys(), field.name
        assert list(mine) == list(theirs) or not in_order, field.name
        for name in theirs:
            assert np.array_equal(mine[name], theirs[name]), (field.name, name)
            n_compared += 1
    assert n_compared, "nothing was recorded"
    for name, part in wanted.parts.items():
        assert_identical(found.parts[name], part, in_order=in_order)
    assert found.to_bytes() == wanted.to_bytes()


def flat(quantities: Mapping[str, Mapping]) -> dict:
    """Arrays by group and module."""
    return {
        (g, name): array for g, arrays in quantities.items() for name, array in arrays.items()
    }


def assert_close(
    found: Statistics,
    wanted: Statistics,
    rtol: float,
    *,
    groups: Iterable[str] | None = None,
) -> None:
    """Equal up to this relative error of each module's sums.

    In all that was recorded; or in these groups, which must be there.
    """
    errors = {}
    for group in groups or GROUPS:
        mine, theirs = getattr(found, group), getattr(wanted, group)
        assert mine.keys() == theirs.keys(), group
        assert theirs or groups is None, f"no {group} were recorded"
        for name in theirs:
            errors[group, name] = relative_error(mine[name], theirs[name])
    assert errors, "nothing was recorded"
    assert max(errors.values()) <= rtol, errors
