"""What an evaluation trains: the arms, the rates they may choose from, the seeds, the steps.

Words: an *arm* is a rank pattern that is trained; a *run* is one training of one arm at one
learning rate with one seed; the *grid* are the rates that every arm is tuned on; *tuning* runs
choose each arm's rate, *final* runs, with other seeds, are what is compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fimlora.errors import InvalidOption

UNIFORM, RANDOM = "uniform", "random"
CONTROLS = (UNIFORM, RANDOM)
# The control of selected experts: as many random ones in each layer; an arm where some are selected.
RANDOM_EXPERTS = "random-experts"
# Short runs want high rates; classifiers with a new head the highest. Given, not computed: the
# grid is widened where it ends too early.
RATES: Mapping[str, tuple[float, ...]] = {
    "sequence_classification": (2e-3, 4e-3, 8e-3, 16e-3),
    "causal_lm": (1e-4, 2e-4, 4e-4, 8e-4),
}
FIRST_TUNING_SEED = 1_000_000


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What is trained, and on what.

    Attributes:
        arms: Names of the arms, the controls among them.
        learning_rates: The grid, ascending.
        seeds: Of the final runs; a seed decides the order of the rows, the start of the
            adapter and what dropout drops.
        tuning_seeds: Of the runs that choose the rates; none of them is a final one.
        n_steps: Optimiser steps of a run.
        batch_size: Rows per step.
        max_length: Tokens of a row; longer ones are cut.
        n_held_out: Rows to test on, at most.
        held_out_share: What part of the rows that may be, where the dataset has no split.
        split_seed: Decides which rows are held out.
        n_points: Tests during a run, the last one at its end.
        warmup_share: Part of the steps in which the rate rises; then it falls to zero.
    """

    arms: tuple[str, ...]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning_seeds: tuple[int, ...] = (FIRST_TUNING_SEED,)
    n_steps: int = 64
    batch_size: int = 16
    max_length: int = 64
    n_held_out: int = 256
    held_out_share: float = 0.2
    split_seed: int = 0
    n_points: int = 4
    warmup_share: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what makes no evaluation."""
        self._check_arms()
        self._check_rates()
        self._check_seeds()
        for name in ("n_steps", "batch_size", "n_held_out", "n_points"):
            _check(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: at least 1")
        _check(
            0 < self.held_out_share < 1,
            f"held_out_share={self.held_out_share}: between 0 and 1",
        )
        _check(0 <= self.warmup_share < 1, f"warmup_share={self.warmup_share}: 0 to below 1")

    def _check_arms(self) -> None:
        missing = [name for name in CONTROLS if name not in self.arms]
        _check(
            not missing, f"arms={list(self.arms)} lack {missing}: without a control no verdict"
        )
        _check(len(set(self.arms)) == len(self.arms), f"arms={list(self.arms)} name one twice")

    def _check_rates(self) -> None:
        rates = self.learning_rates
        _check(
            len(rates) >= 2 and all(0 < rate < math.inf for rate in rates),
            f"learning_rates={list(rates)}: at least two, above 0 and finite",
        )
        _check(
            list(rates) == sorted(set(rates)),
            f"learning_rates={list(rates)}: give them in ascending order, each once",
        )

    def _check_seeds(self) -> None:
        _check(bool(self.tuning_seeds), "tuning_seeds is empty: no rate could be chosen")
        _check(
            len(self.seeds) >= 2, f"seeds={list(self.seeds)}: one seed has no spread, give two"
        )
        every = [*self.seeds, *self.tuning_seeds]
        _check(
            len(set(every)) == len(every),
            f"seeds={list(self.seeds)} and tuning_seeds={list(self.tuning_seeds)}: no seed twice; "
            "a rate that was chosen on a run must not be judged by it",
        )

    def to_json(self) -> dict[str, Any]:
        """The settings as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EvaluationSettings":
        """Read what `to_json` wrote."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in data.items()
        }
        return cls(**fields)


def default_settings(
    arms: Sequence[str], *, task: str, quick: bool = False, **changes: Any
) -> EvaluationSettings:
    """Settings under which a small encoder on two cores ends within half an hour.

    Args:
        arms: Names of the arms, the controls among them.
        task: ``sequence_classification`` or ``causal_lm``; it decides the grid.
        quick: Fewer rates, seeds and steps, for a first look.
        **changes: Whatever else is to be.
    """
    rates = RATES[task]
    settings = EvaluationSettings(arms=tuple(arms), learning_rates=rates)
    if quick:
        settings = replace(
            settings,
            learning_rates=rates[1:],
            seeds=(0, 1, 2),
            n_steps=32,
            n_held_out=128,
            n_points=2,
        )
    return replace(settings, **changes)


def most_runs(settings: EvaluationSettings) -> int:
    """How many runs there are if the grid is widened at both ends."""
    n_rates = len(settings.learning_rates) + 2
    per_arm = n_rates * len(settings.tuning_seeds) + len(settings.seeds)
    return per_arm * len(settings.arms)


def _check(is_right: bool, message: str) -> None:
    if not is_right:
        raise InvalidOption(message)
