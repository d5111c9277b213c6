"""Components from parts of the rows are those of scikit-learn's incremental PCA, and of all rows."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA, IncrementalPCA

from fimlora.numerics.principal_components import joined, with_rows


def rows_of(n: int, n_features: int, seed: int) -> torch.Tensor:
    """Rows far from the origin whose directions have unlike variances."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, n_features + 1).pow(-0.7)
    mixing = torch.linalg.qr(torch.randn(n_features, n_features, generator=generator)).Q
    return torch.randn(n, n_features, generator=generator) * spread @ mixing + 5


def fitted(parts: list[torch.Tensor], k: int):
    found = None
    for part in parts:
        found = with_rows(found, part, k)
    return found


@pytest.mark.parametrize("sizes", [(40, 31, 50), (90, 90, 90)], ids=["wide", "tall"])
@pytest.mark.parametrize("k", [4, 12])
def test_components_are_those_of_incremental_pca(sizes, k):
    """Kept to fewer directions than there are, after every part; up to the sign of each."""
    parts = [rows_of(n, 48, seed) for seed, n in enumerate(sizes)]
    theirs = IncrementalPCA(n_components=k)

    ours = None
    for part in parts:
        ours = with_rows(ours, part, k)
        theirs.partial_fit(part.double().numpy())

        assert ours.values.numpy() == pytest.approx(theirs.singular_values_, rel=1e-6)
        assert ours.ratios.numpy() == pytest.approx(theirs.explained_variance_ratio_, rel=1e-6)
        cosines = (ours.vectors.double().numpy() * theirs.components_).sum(axis=1)
        assert np.abs(cosines) == pytest.approx(1, abs=1e-6)
    assert ours.n_rows == sum(sizes)
    assert ours.mean.numpy() == pytest.approx(theirs.mean_, rel=1e-9)


def test_nothing_is_lost_where_all_directions_are_kept():
    """In whatever parts, and joined from sets of parts in any order: those of all rows at once."""
    parts = [rows_of(n, 20, seed) for seed, n in enumerate((7, 30, 1, 12))]
    whole = PCA().fit(torch.cat(parts).double().numpy())

    in_turn = fitted(parts, 20)
    first, second = fitted(parts[:2], 20), fitted(parts[2:], 20)

    for found in (in_turn, joined([first, second], 20), joined([second, first], 20)):
        assert found.values.numpy() == pytest.approx(whole.singular_values_, rel=1e-5)
        assert found.ratios.sum().item() == pytest.approx(1, abs=1e-6)
        cosines = (found.vectors.double().numpy() * whole.components_).sum(axis=1)
        assert np.abs(cosines) == pytest.approx(1, abs=1e-6)
        assert (found.n_rows, found.n_parts) == (50, 4)


def test_directions_in_which_rows_do_not_differ_are_no_components():
    """Fewer rows than components, equal rows, and one row: what is there is given."""
    few, equal, one = rows_of(5, 30, 0), rows_of(1, 30, 0).expand(9, 30), rows_of(1, 30, 0)

    assert len(with_rows(None, few, 16).vectors) == 4  # centred
    for rows in (equal, one):
        found = with_rows(None, rows, 16)
        assert found.ratios.sum() == 0
    grown = with_rows(with_rows(None, one, 16), few, 16)
    assert len(grown.vectors) == 5
    assert grown.vectors.norm(dim=1).numpy() == pytest.approx(1, abs=1e-6)


def test_similarity_says_how_far_components_have_turned():
    """One where they stay, none at first or while directions are added."""
    rows = rows_of(200, 24, 0)
    first = with_rows(None, rows, 3)
    same, other = with_rows(first, rows, 3), with_rows(first, rows_of(200, 24, 9), 3)
    fewer = with_rows(None, rows[:3], 8)

    assert first.similarity == 0
    assert same.similarity == pytest.approx(1, abs=1e-6)
    wanted = (first.vectors * other.vectors).sum(dim=1).min()
    assert other.similarity == pytest.approx(wanted.item(), abs=1e-6)
    assert wanted < 0.9
    assert with_rows(fewer, rows[3:], 8).similarity == 0


def test_rows_that_are_not_finite_give_components_of_nan():
    """So that whoever looks at them can name the module; no solver fails."""
    rows = rows_of(10, 8, 0)
    rows[3, 2] = torch.inf

    found = with_rows(None, rows, 4)

    assert found.values.isnan().all()
    assert found.vectors.isnan().all()


def test_rows_are_left_as_they_were():
    """Whatever their dtype: others may wait on them."""
    rows = rows_of(10, 8, 0).double()
    before = rows.clone()

    with_rows(None, rows, 4)

    assert torch.equal(rows, before)
