"""Fit a linear map to labels: regularised, in float64, and the same on every run.

Symbols: N rows, D features, C outputs. Features are standardised (only scaled where the map has
no bias), so one *strength* means the same for any of them: what is minimised is
``strength * sum_n loss_n + ||W||^2 / 2``, W the weights of standardised features and of a constant
one that stands for the bias. The penalty on that one keeps the fit finite where a class has no
row. The strength is the one of `STRENGTHS` with the smallest loss on every fifth row, fitted on
the others; the map itself is then fitted on all rows. Below 25 rows none is held out and the
strength is `MIDDLE_STRENGTH`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fimlora.errors import EmptyCalibration, NumericalFailure
from fimlora.measuring.examples.losses import LossKind
from fimlora.shapes import Float

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MIDDLE_STRENGTH = 1e-2
_HOLD_OUT, _FEWEST_HELD_OUT = 5, 5
# A feature that varies less, as a share of its size, is rounding and is not used.
_SMALLEST_SPREAD = 1e-6
_MAX_STEPS = 1000


@dataclass(frozen=True)
class LinearFit:
    """A linear map, and how well it does.

    Attributes:
        weight: (C D).
        bias: (C); ``None`` for a map without.
        facts: Plain data: rows, strength, loss and accuracy (R2 of a regression) on the rows
            that were fitted, on those held out, and of the best constant prediction there.
    """

    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, " C"] | None
    facts: dict[str, Any]


def fit_linear(
    features: Float[Tensor, "N D"],
    labels: Tensor,
    kind: LossKind,
    *,
    n_outputs: int,
    has_bias: bool,
) -> LinearFit:
    """Fit the map from features to logits.

    Args:
        features: Features of each row.
        labels: Classes (N), or for the other kinds numbers (N) or (N C).
        kind: How logits become a loss: of a classification or a regression.
        n_outputs: C.
        has_bias: Whether the map has a bias.

    Returns:
        The map in float64 on the CPU.

    Raises:
        EmptyCalibration: All rows have one label, or the same features.
        NumericalFailure: A feature or a label is NaN or infinite.
    """  # noqa: DOC502 - the helper raises
    x, y = features.detach().cpu().double(), _targets(labels, kind, n_outputs)
    _check_rows(feature=x, label=y)
    strength, facts = _choose_strength(x, y, kind, has_bias=has_bias)
    weight, bias = _fit(x, y, kind, strength, has_bias=has_bias)
    facts |= {"strength": strength, "fitted": _judge(_logits(x, weight, bias), y, kind)}
    return LinearFit(weight, bias if has_bias else None, facts)


# What rows alike in it come from, and what to give in their place.
_TELL_NOTHING = {
    "feature": (
        ", as rows have whose texts are equal or blank",
        "give rows whose texts differ",
    ),
    "label": ("", "give rows of which some have another label"),
}


def _check_rows(**columns: Tensor) -> None:
    """Refuse rows that nothing can be fitted to."""
    for name, values in columns.items():
        if not values.isfinite().all():
            raise NumericalFailure(
                f"a {name} of the head's rows is NaN or infinite, so the head cannot be fitted: "
                "run in a wider dtype, leave such rows out, or keep the head as drawn "
                "(head='fresh')"
            )
        if (values == values[0]).all():
            # The best map would be constant, and no gradient would go through it.
            why, give = _TELL_NOTHING[name]
            raise EmptyCalibration(
                f"all {len(values)} rows of the head have the same {name}s{why}, so it cannot be "
                f"fitted: {give}, or keep the head as drawn (head='fresh')"
            )


def _choose_strength(
    x: Tensor, y: Tensor, kind: LossKind, *, has_bias: bool
) -> tuple[float, dict[str, Any]]:
    """The strength that does best on held-out rows, and what is said of these."""
    held = torch.arange(len(x)) % _HOLD_OUT == _HOLD_OUT - 1
    if held.sum() < _FEWEST_HELD_OUT:
        return MIDDLE_STRENGTH, {"rows": len(x), "held_out_rows": 0}
    facts: dict[str, Any] = {"rows": len(x), "held_out_rows": int(held.sum())}
    best: dict[str, float] = {"loss": math.inf}
    chosen = STRENGTHS[0]
    for strength in STRENGTHS:
        weight, bias = _fit(x[~held], y[~held], kind, strength, has_bias=has_bias)
        found = _judge(_logits(x[held], weight, bias), y[held], kind)
        if found["loss"] < best["loss"]:
            best, chosen = found, strength
    constant = _constant_logits(y[~held], kind).expand(int(held.sum()), -1)
    return chosen, facts | {"held_out": best, "constant": _judge(constant, y[held], kind)}


def _fit(
    x: Tensor, y: Tensor, kind: LossKind, strength: float, *, has_bias: bool
) -> tuple[Tensor, Tensor]:
    """The map for one strength; a map without bias has one of zeros."""
    shift, scale = _standard(x, centred=has_bias)
    standard = (x - shift) / scale
    if kind is LossKind.REGRESSION:
        middle = y.mean(dim=0) if has_bias else torch.zeros_like(y[0])
        weight, constant = _ridge(standard, y - middle, strength), middle
    else:
        columns = torch.cat([standard, torch.ones(len(x), int(has_bias)).double()], dim=1)
        found = _logistic(columns, y, kind, strength)
        weight = found[:, : x.shape[1]]
        constant = found[:, -1] if has_bias else torch.zeros(y.shape[1]).double()
    weight = weight / scale
    return weight, constant - weight @ shift


def _standard(x: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Shift and scale that make features comparable; one that does not vary counts nothing."""
    shift = x.mean(dim=0) if centred else torch.zeros_like(x[0])
    size = x.abs().amax(dim=0)
    unit = torch.where(size > 0, size, 1.0)  # squares of huge features would be infinite
    spread = ((x - shift) / unit).square().mean(dim=0).sqrt()
    return shift, torch.where(spread > _SMALLEST_SPREAD, spread * unit, math.inf)


def _ridge(x: Tensor, y: Tensor, strength: float) -> Tensor:
    x, back = _in_fewer_columns(x)
    gram = x.T @ x + torch.eye(x.shape[1]).double() / strength
    solved: Tensor = torch.linalg.solve(gram, x.T @ y)
    return solved.T @ back


def _logistic(x: Tensor, y: Tensor, kind: LossKind, strength: float) -> Tensor:
    """Minimise the loss; strictly convex, so there is one minimum whatever the path to it."""
    x, back = _in_fewer_columns(x)
    weight = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight],
        max_iter=_MAX_STEPS,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        penalty = weight.square().sum() / (2 * strength * len(x))
        loss = _sum_of_losses(x @ weight.T, y, kind) / len(x) + penalty
        loss.backward()
        return loss.detach()

    with torch.enable_grad():
        solver.step(closure)
    return weight.detach() @ back


def _in_fewer_columns(x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows in a basis of their own where they are fewer than columns: the fit lies in it."""
    if x.shape[1] <= len(x):
        return x, torch.eye(x.shape[1]).double()
    basis, rows = torch.linalg.qr(x.T)
    return rows.T.contiguous(), basis.T


def _sum_of_losses(logits: Tensor, y: Tensor, kind: LossKind) -> Tensor:
    if kind is LossKind.SINGLE_LABEL:
        return -(y * functional.log_softmax(logits, dim=1)).sum()
    return functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")


def _judge(logits: Tensor, y: Tensor, kind: LossKind) -> dict[str, float]:
    """Mean loss as the model states it, and accuracy or R2; rounded, as figures to be read."""
    if kind is LossKind.REGRESSION:
        loss = functional.mse_loss(logits, y).item()
        spread = (y - y.mean(dim=0)).square().mean().item()
        return {"loss": _rounded(loss), "r2": _rounded(1 - loss / spread if spread else 0.0)}
    loss = _sum_of_losses(logits, y, kind).item() / len(y)
    if kind is LossKind.SINGLE_LABEL:
        right = (logits.argmax(dim=1) == y.argmax(dim=1)).double().mean()
    else:
        loss /= y.shape[1]
        right = ((logits > 0) == (y > 0.5)).double().mean()
    return {"loss": _rounded(loss), "accuracy": _rounded(right.item())}


def _constant_logits(y: Tensor, kind: LossKind) -> Tensor:
    """What predicts best without features; a class without a row counts as half a one."""
    if kind is LossKind.REGRESSION:
        return y.mean(dim=0)
    seen = y.sum(dim=0) + 0.5
    if kind is LossKind.SINGLE_LABEL:
        return seen.log()
    return seen.log() - (len(y) - y.sum(dim=0) + 0.5).log()


def _logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight.T + bias


def _targets(labels: Tensor, kind: LossKind, n_outputs: int) -> Float[Tensor, "N C"]:
    """Labels as numbers per output: 0 and 1 for classes."""
    labels = labels.detach().cpu()
    if kind is LossKind.SINGLE_LABEL:
        return functional.one_hot(labels.flatten().long(), n_outputs).double()
    return labels.double().reshape(len(labels), n_outputs)


def _rounded(value: float) -> float:
    return round(value, 6)
