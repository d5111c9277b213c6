"""The linear fit against scikit-learn, and what it makes of rows that are hardly any."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, r2_score

from fimlora.errors import EmptyCalibration, NumericalFailure
from fimlora.measuring.examples.losses import LossKind
from fimlora.measuring.head.linear_fit import MIDDLE_STRENGTH, STRENGTHS, fit_linear

N_CLASSES = 3
SINGLE, MULTI = LossKind.SINGLE_LABEL, LossKind.MULTI_LABEL
# More rows than features, and fewer: the fit then goes another way.
SHAPES = pytest.mark.parametrize("shape", [(150, 7), (40, 90)], ids=["tall", "wide"])
BIAS = pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])


def rows(n, d, kind, *, noise=1.0, seed=0):
    """Features of very unequal size, and labels that follow from some of them."""
    draw = torch.Generator().manual_seed(seed)
    plain = torch.randn(n, d, generator=draw)
    truth = torch.randn(d, N_CLASSES, generator=draw)
    numbers = plain @ truth + noise * torch.randn(n, N_CLASSES, generator=draw)
    features = plain * torch.logspace(-2, 2, d) + 1
    if kind is SINGLE:
        return features, numbers.argmax(dim=1)
    return features, (numbers > 0.5).float() if kind is MULTI else numbers + 50


def standard(x, *, has_bias):
    x = x.double().numpy()
    shift = x.mean(axis=0) if has_bias else np.zeros(x.shape[1])
    scale = np.sqrt(np.square(x - shift).mean(axis=0))
    return (x - shift) / scale, shift, scale


def reference(x, y, kind, strength, *, has_bias):
    """Weight and bias as scikit-learn finds them."""
    z, shift, scale = standard(x, has_bias=has_bias)
    if kind is LossKind.REGRESSION:
        ridge = Ridge(alpha=1 / strength, fit_intercept=has_bias).fit(z, y.double().numpy())
        weight, bias = ridge.coef_ / scale, ridge.intercept_
    else:
        z = np.hstack([z, np.ones((len(z), int(has_bias)))])
        solver = {"C": strength, "fit_intercept": False, "tol": 1e-10, "max_iter": 10_000}
        if kind is SINGLE:
            found = LogisticRegression(**solver).fit(z, y.numpy()).coef_
        else:
            found = np.vstack(
                [LogisticRegression(**solver).fit(z, c).coef_ for c in y.T.numpy()]
            )
        weight = found[:, : x.shape[1]] / scale
        bias = found[:, -1] if has_bias else 0
    return weight, bias - weight @ shift


@SHAPES
@BIAS
@pytest.mark.parametrize("kind", [SINGLE, MULTI, LossKind.REGRESSION])
def test_it_is_what_scikit_learn_finds(kind, has_bias, shape):
    x, y = rows(*shape, kind)

    fit = fit_linear(x, y, kind, n_outputs=N_CLASSES, has_bias=has_bias)

    weight, bias = reference(x, y, kind, fit.facts["strength"], has_bias=has_bias)
    scale = standard(x, has_bias=has_bias)[2]
    np.testing.assert_allclose(fit.weight.numpy() * scale, weight * scale, atol=1e-5)
    if has_bias:
        np.testing.assert_allclose(fit.bias.numpy(), bias, atol=1e-4)
    else:
        assert fit.bias is None


@SHAPES
@pytest.mark.parametrize("noise", [0.1, 1.0, 30.0])
def test_the_strength_is_the_one_that_does_best_on_every_fifth_row(noise, shape):
    """And the figures are those of scikit-learn's fit on the others."""
    x, y = rows(*shape, SINGLE, noise=noise)
    held = np.arange(len(x)) % 5 == 4
    losses, accuracies = [], []
    for strength in STRENGTHS:
        weight, bias = reference(x[~held], y[~held], SINGLE, strength, has_bias=True)
        logits = x[held].double().numpy() @ weight.T + bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        losses.append(log_loss(y[held], shares, labels=range(N_CLASSES)))
        accuracies.append(np.mean(logits.argmax(axis=1) == y[held].numpy()))
    best = int(np.argmin(losses))

    facts = fit_linear(x, y, SINGLE, n_outputs=N_CLASSES, has_bias=True).facts

    assert facts["strength"] == STRENGTHS[best]
    assert facts["held_out"]["loss"] == pytest.approx(losses[best], abs=1e-5)
    assert facts["held_out"]["accuracy"] == pytest.approx(accuracies[best], abs=1e-6)
    most = np.bincount(y[~held], minlength=N_CLASSES).argmax()
    constant = np.mean(y[held].numpy() == most)
    assert facts["constant"]["accuracy"] == pytest.approx(constant, abs=1e-6)
    assert (facts["rows"], facts["held_out_rows"]) == (len(x), held.sum())


def test_a_regression_states_r2():
    x, y = rows(150, 7, LossKind.REGRESSION)

    fit = fit_linear(x, y[:, :1], LossKind.REGRESSION, n_outputs=1, has_bias=True)

    found = x.double() @ fit.weight.T + fit.bias
    assert fit.facts["fitted"]["r2"] == pytest.approx(r2_score(y[:, 0], found[:, 0]), abs=1e-5)
    assert fit.facts["constant"]["r2"] < 0.1 < fit.facts["held_out"]["r2"]


def test_labels_that_mean_nothing_give_the_strongest_penalty():
    """So that a head knows nothing rather than something wrong."""
    x, y = rows(200, 60, SINGLE)
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]

    known, unknown = (
        fit_linear(x, labels, SINGLE, n_outputs=N_CLASSES, has_bias=True).facts
        for labels in (y, shuffled)
    )

    assert unknown["strength"] == STRENGTHS[0] < known["strength"]
    assert known["held_out"]["accuracy"] > known["constant"]["accuracy"] + 0.2


@pytest.mark.parametrize("n", [1, 2, 30])
@pytest.mark.parametrize("kind", [SINGLE, MULTI, LossKind.REGRESSION])
def test_rows_that_tell_nothing_are_refused(kind, n):
    """The best map would be constant, and no gradient would go through it."""
    x, y = rows(n, 5, kind)
    one_label = y[:1].expand(y.shape)
    for features, labels, said in (
        (x, one_label, "same labels.* some have another label"),
        (x[:1].expand(n, 5), y, "same features, as rows have .* blank.* whose texts differ"),
    ):
        with pytest.raises(
            EmptyCalibration, match=f"all {n} rows of the head have the ({said}|same features)"
        ):
            fit_linear(features, labels, kind, n_outputs=N_CLASSES, has_bias=True)


@BIAS
@pytest.mark.parametrize("kind", [SINGLE, MULTI])
def test_two_rows_of_three_classes_are_told_apart(kind, has_bias):
    x = rows(2, 5, SINGLE)[0]
    y = torch.tensor([0, 2]) if kind is SINGLE else torch.tensor([[0.0, 1, 0], [1, 1, 0]])

    fit = fit_linear(x, y, kind, n_outputs=N_CLASSES, has_bias=has_bias)

    assert fit.facts["strength"] == MIDDLE_STRENGTH
    assert fit.facts["held_out_rows"] == 0
    assert fit.weight.isfinite().all()
    assert fit.weight.abs().amax() > 1e-6
    assert fit.facts["fitted"]["accuracy"] == 1


def test_a_class_without_rows_is_never_predicted():
    x, y = rows(150, 7, SINGLE)

    fit = fit_linear(x, y, SINGLE, n_outputs=5, has_bias=True)

    logits = x.double() @ fit.weight.T + fit.bias
    assert logits.isfinite().all()
    assert logits.argmax(dim=1).max() < N_CLASSES


@BIAS
def test_features_that_do_not_vary_count_nothing(has_bias):
    """With a bias. Without one, a constant feature is what stands in for it."""
    x, y = rows(60, 7, SINGLE)
    wanted = fit_linear(x, y, SINGLE, n_outputs=N_CLASSES, has_bias=has_bias).weight
    dead = torch.cat([x, torch.zeros(60, 1), torch.full((60, 1), 1e6 / 3)], dim=1)

    found = fit_linear(dead, y, SINGLE, n_outputs=N_CLASSES, has_bias=has_bias).weight

    assert found[:, 7].eq(0).all()
    assert found[:, 8].eq(0).all() == has_bias
    if has_bias:
        torch.testing.assert_close(found[:, :7], wanted)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_features_does_not_matter(size):
    x, y = rows(60, 7, SINGLE)
    wanted = fit_linear(x, y, SINGLE, n_outputs=N_CLASSES, has_bias=True)

    found = fit_linear(x.double() * size, y, SINGLE, n_outputs=N_CLASSES, has_bias=True)

    torch.testing.assert_close(found.weight * size, wanted.weight, rtol=1e-5, atol=1e-8)
    assert found.facts == wanted.facts


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(value):
    x, y = rows(30, 4, LossKind.REGRESSION)
    broken, labels = x.clone(), y.clone()
    broken[3, 2] = labels[5, 1] = value

    with pytest.raises(NumericalFailure, match="a feature"):
        fit_linear(broken, y, LossKind.REGRESSION, n_outputs=3, has_bias=True)
    with pytest.raises(NumericalFailure, match="a label"):
        fit_linear(x, labels, LossKind.REGRESSION, n_outputs=3, has_bias=True)


def test_it_is_the_same_each_time():
    x, y = rows(80, 200, SINGLE)

    first, second = (
        fit_linear(x, y, SINGLE, n_outputs=N_CLASSES, has_bias=True) for _ in range(2)
    )

    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
