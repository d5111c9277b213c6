"""One training run: what it is to be, and what came of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fimlora.errors import InvalidOption

Phase = Literal["tuning", "final"]
LOSS = "loss"


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a run trains.

    Attributes:
        arm: Name of the arm.
        learning_rate: The highest rate of its schedule.
        seed: Decides order, start and dropout.
        phase: ``tuning`` or ``final``.
    """

    arm: str
    learning_rate: float
    seed: int
    phase: Phase

    def __post_init__(self) -> None:
        """Refuse an unknown phase."""
        if self.phase not in get_args(Phase):
            raise InvalidOption(f"phase={self.phase!r}; allowed are {get_args(Phase)}")

    @property
    def key(self) -> str:
        """A name that no other run of an evaluation has, the same wherever it is made."""
        return f"{self.phase}:{self.arm}:{float(self.learning_rate)!r}:{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """The run as plain data."""
        return {
            "arm": self.arm,
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "phase": self.phase,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunSpec":
        """Read what `to_json` wrote."""
        return cls(data["arm"], float(data["learning_rate"]), int(data["seed"]), data["phase"])


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to.

    Attributes:
        spec: The run.
        curve: Held-out loss by step.
        metrics: Value by name on the held-out rows at the end, ``loss`` among them; NaN where a
            run that diverged has none.
        adapter_parameters: Trained parameters of the adapter.
        trainable_parameters: These and those of all that is trained whole beside it.
        seconds: Of training and testing, without loading.
        n_steps: Steps that were done; fewer than asked for after a divergence.
    """

    spec: RunSpec
    curve: tuple[tuple[int, float], ...]
    metrics: Mapping[str, float]
    adapter_parameters: int
    trainable_parameters: int
    seconds: float
    n_steps: int

    @property
    def loss(self) -> float:
        """Held-out loss at the end; infinite for a run that diverged, the worst there is."""
        loss = self.metrics.get(LOSS, math.nan)
        return loss if math.isfinite(loss) else math.inf

    @property
    def has_diverged(self) -> bool:
        """Whether there is no loss to speak of."""
        return math.isinf(self.loss)

    def to_json(self) -> dict[str, Any]:
        """The result as plain data; what is no number is null."""
        return {
            "spec": self.spec.to_json(),
            "curve": [[step, _or_null(loss)] for step, loss in self.curve],
            "metrics": {name: _or_null(value) for name, value in self.metrics.items()},
            "adapter_parameters": self.adapter_parameters,
            "trainable_parameters": self.trainable_parameters,
            "seconds": self.seconds,
            "n_steps": self.n_steps,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunResult":
        """Read what `to_json` wrote."""
        return cls(
            spec=RunSpec.from_json(data["spec"]),
            curve=tuple((int(step), _or_nan(loss)) for step, loss in data["curve"]),
            metrics={name: _or_nan(value) for name, value in data["metrics"].items()},
            adapter_parameters=int(data["adapter_parameters"]),
            trainable_parameters=int(data["trainable_parameters"]),
            seconds=float(data["seconds"]),
            n_steps=int(data["n_steps"]),
        )


def _or_null(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
