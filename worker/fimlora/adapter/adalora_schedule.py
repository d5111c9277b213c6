"""A schedule of AdaLoRA that runs to its end. Nothing here imports torch or PEFT.

Every value that PEFT accepts and then crashes on, or ignores, is refused by name with what is allowed.

AdaLoRA begins with ``init_r`` ranks per module, keeps them for ``tinit`` optimizer steps, lets the
sum fall to ``target_r`` per module in the *window* that follows, and trains the last ``tfinal`` of
``total_step`` steps with what is left.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fimlora.errors import InvalidOption

# Shares of the training before and after the window; steps between two allocations at most, and
# allocations at least, where there are as many steps.
_BEFORE, _AFTER, _APART, _ROUNDS = 0.2, 0.1, 10, 5


@dataclass(frozen=True, slots=True)
class AdaLoraSchedule:
    """When AdaLoRA takes ranks away, and down to what; the names are PEFT's.

    Attributes:
        total_step: Optimizer steps of the whole training.
        target_r: Ranks per module at the end, on average.
        init_r: Ranks of every module at the beginning.
        tinit: Steps before the first rank is taken away.
        tfinal: Steps after the last one is.
        deltaT: Steps between two allocations.
        orth_reg_weight: Weight of the orthogonality term in the loss of one forward pass.
        beta1: Smoothing of the importance.
        beta2: Smoothing of its uncertainty.

    Raises:
        InvalidOption: A value is outside what runs to the end; the message has the interval.
    """

    total_step: int
    target_r: int
    init_r: int
    tinit: int
    tfinal: int
    deltaT: int  # noqa: N815 - PEFT's name
    orth_reg_weight: int | float = 0.5
    beta1: float = 0.85
    beta2: float = 0.85

    def __post_init__(self) -> None:
        _whole("total_step", self.total_step, 2, None, "one step to weigh ranks, one to cut")
        _whole("target_r", self.target_r, 1, None, "mean rank at the end")
        _whole("init_r", self.init_r, self.target_r + 1, None, "above target_r")
        _whole("tinit", self.tinit, 0, self.total_step - 1, "before the window")
        # Importance is weighed on steps before the last cut only: there must be one.
        most = self.total_step - max(self.tinit + 1, 2)
        _whole(
            "tfinal",
            self.tfinal,
            0,
            most,
            f"total_step={self.total_step} and tinit={self.tinit}",
        )
        _whole("deltaT", self.deltaT, 1, self.window, "steps of the window")
        if self.window % self.deltaT:
            fit = [d for d in range(1, self.window + 1) if self.window % d == 0]
            near = sorted(fit, key=lambda d: abs(d - self.deltaT))[:3]
            raise InvalidOption(
                f"deltaT={self.deltaT} does not divide the window of {self.window} steps "
                f"(total_step - tinit - tfinal); near it do: {', '.join(map(str, sorted(near)))}"
            )
        for name in ("beta1", "beta2"):
            if not 0 < (beta := getattr(self, name)) < 1:
                raise InvalidOption(f"{name}={beta!r}; it must be above 0 and below 1")
        if not 0 <= self.orth_reg_weight < math.inf:
            raise InvalidOption(
                f"orth_reg_weight={self.orth_reg_weight!r}; it must be 0 or more, and finite"
            )

    @property
    def window(self) -> int:
        """Steps in which ranks fall."""
        return self.total_step - self.tinit - self.tfinal

    @property
    def last_cut(self) -> int:
        """The step at which ranks have fallen to the target."""
        return self.total_step - self.tfinal

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of PEFT's ``AdaLoraConfig`` that it decides."""
        return {name: getattr(self, name) for name in self.__slots__}


def adalora_schedule(
    total_steps: int,
    *,
    target_r: int,
    accumulation_steps: int = 1,
    init_r: int | None = None,
    tinit: int | None = None,
    tfinal: int | None = None,
    delta_t: int | None = None,
    orth_reg_weight: int | float = 0.5,
    beta1: float = 0.85,
    beta2: float = 0.85,
) -> AdaLoraSchedule:
    """Make a schedule for a training of so many optimizer steps.

    What is left out is chosen: 1.5 times the target at the beginning, about a fifth of the steps
    before the window and a tenth after it, and an allocation at least every 10 steps.

    Args:
        total_steps: Optimizer steps, not batches: ``trainer.state.max_steps``.
        target_r: Mean rank at the end.
        accumulation_steps: How often the orthogonality term is added, undivided, before one
            optimizer step; the weight is divided by it. For the Trainer with models of
            transformers: its ``gradient_accumulation_steps``.
        init_r: Rank of every module at the beginning.
        tinit: Steps before the window.
        tfinal: Steps after it.
        delta_t: Steps between two allocations; it divides the window.
        orth_reg_weight: Weight of the orthogonality term in the loss of one optimizer step.
        beta1: Smoothing of the importance.
        beta2: Smoothing of its uncertainty.

    Returns:
        The schedule.

    Raises:
        InvalidOption: A value is outside what runs to the end; the message has the interval.
    """  # noqa: DOC502 - the class raises
    _whole("total_steps", total_steps, 2, None, "optimizer steps")
    _whole("target_r", target_r, 1, None, "mean rank at the end")
    _whole("accumulation_steps", accumulation_steps, 1, None, "micro-batches per step")
    before = int(total_steps * _BEFORE) if tinit is None else tinit
    after = int(total_steps * _AFTER) if tfinal is None else tfinal
    window = max(1, total_steps - before - after)
    if tfinal is None:  # what makes the window a multiple of the steps between two allocations
        apart = max(1, min(_APART, window // _ROUNDS)) if delta_t is None else delta_t
        after += window % apart if 0 < apart <= window else 0
    elif delta_t is None:
        apart = max(d for d in range(1, min(_APART, window) + 1) if window % d == 0)
    else:
        apart = delta_t
    return AdaLoraSchedule(
        total_step=total_steps,
        target_r=target_r,
        init_r=max(target_r + 1, math.ceil(1.5 * target_r)) if init_r is None else init_r,
        tinit=before,
        tfinal=after,
        deltaT=apart,
        orth_reg_weight=orth_reg_weight / accumulation_steps,
        beta1=beta1,
        beta2=beta2,
    )


def schedule_of(config: Mapping[str, Any]) -> AdaLoraSchedule:
    """Read the schedule of a config that somebody else has made.

    Args:
        config: The fields of an ``AdaLoraConfig``.

    Returns:
        The schedule.

    Raises:
        InvalidOption: It would not run to its end.
    """  # noqa: DOC502 - the class raises
    return AdaLoraSchedule(**{name: config[name] for name in AdaLoraSchedule.__slots__})


def _whole(name: str, value: object, least: int, most: int | None, why: str) -> None:
    """See that a value is a whole number of an interval.

    Raises:
        InvalidOption: It is not.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):  # type: ignore[operator]
        allowed = f"{least} or more" if most is None else f"{least} to {most}"
        raise InvalidOption(f"{name}={value!r}; it must be a whole number, {allowed} ({why})")
