"""Effective ranks from spectra of which all or a part is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fimlora import measure, score
from fimlora.errors import InvalidOption
from fimlora.methods.effective_rank import rank_bounds
from support.models import make_batch, tiny


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_so_many_equal_directions_are_a_rank_of_so_many(n):
    """Whatever their size, and whatever more there are without energy."""
    values = np.concatenate([np.full(n, 3e-9), np.zeros(5)])

    assert rank_bounds(values, np.full(3, n * 9e-18), n_values=n + 5) == pytest.approx((n, n))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("n_known", [1, 5, 20])
def test_bounds_hold_whatever_is_not_known(seed, n_known):
    """Any spectrum, cut off anywhere, has the rank of all of it between the bounds."""
    random = np.random.default_rng(seed)
    values = np.sort(random.lognormal(0, random.uniform(0.1, 3), 40))[::-1]
    energy = np.square(values).sum()
    p = np.square(values) / energy
    rank = math.exp(-(p * np.log(p)).sum())

    least, most = rank_bounds(values[:n_known], np.full(3, energy), n_values=40)

    assert 1 <= least <= rank * (1 + 1e-12)
    assert rank <= most * (1 + 1e-12)
    assert most <= 40 * (1 + 1e-12)


def test_bounds_are_met_by_what_they_think_of():
    """The rest in values of the last known size, or spread evenly."""
    known = np.sqrt([0.4, 0.1])

    least, most = rank_bounds(known, np.ones(3), n_values=102)

    packed = [0.4] + 6 * [0.1]
    even = [0.4, 0.1] + 100 * [0.005]
    for bound, shares in ((least, packed), (most, even)):
        assert bound == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


def test_an_unsure_energy_widens_the_bounds():
    """To both of its ends."""
    known = np.sqrt([0.5, 0.2])
    sure = [rank_bounds(known, np.full(3, e), n_values=30) for e in (0.8, 1.3)]

    least, most = rank_bounds(known, np.array([0.8, 1.0, 1.3]), n_values=30)

    assert (least, most) == (min(b.least for b in sure), max(b.most for b in sure))


@pytest.fixture(scope="module")
def statistics():
    model, targets = tiny("bert_classifier")
    return measure(
        model, [make_batch("bert_classifier", [31, 9, 3])], target_modules=targets,
        record="whitened_spectra",
    )  # fmt: skip


def test_what_is_not_resolved_is_named(statistics):
    """By bounds that are apart, or an error of the leading values; the others are not."""
    first, second, third = (module.name for module in statistics.modules[:3])
    spectra = dict(statistics.quantities["whitened_spectra"])
    spectra[first] = spectra[first][:2]
    errors = {**statistics.quantities["whitened_errors"], second: np.array([0.02])}
    cut = {**statistics.quantities, "whitened_spectra": spectra, "whitened_errors": errors}

    found = score(replace(statistics, quantities=cut), "effective-rank")

    whole = score(statistics, "effective-rank").by_module
    assert found.provenance["unresolved_ranks"] == [first, second]
    [[name, (least, most)]] = found.provenance["effective_rank_bounds"].items()
    assert name == first
    assert least < whole[first] < most
    assert found.by_module[first] == pytest.approx(math.sqrt(least * most))
    assert found.by_module[third] == whole[third]


def test_it_is_asked_for_by_what_it_needs(statistics):
    """The message says what to record."""
    with pytest.raises(
        InvalidOption, match=r"'effective-rank' needs whitened_spectra, .*record="
    ):
        score(replace(statistics, quantities={}), "effective-rank")
