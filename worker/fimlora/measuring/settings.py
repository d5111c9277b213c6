"""What a measurement is asked for, checked once, whether it runs resident or streamed."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.model.targets import base_model_of
from fimlora.statistics.options import Estimator, Executor, Record, parse_record


@dataclass(frozen=True)
class Settings:
    """The choices that decide what a measurement's sums are.

    Attributes:
        estimator: What to record of the gradients.
        rank: Rows of the A that a sampled estimate draws.
        seed: Seed of that A, and of the random state while measuring.
        scale: LoRA scale that scores are stated for.
        record: What to record besides.
        spectra_bytes: Memory for the gradients that spectra are taken of.
        n_batches: Batches to use at most.
        micro_batch_size: Examples per forward pass; ``None`` for whole batches.
        train_mode: Whether dropout is on.
    """

    estimator: Estimator
    rank: int
    seed: int
    scale: int | float
    record: frozenset[Record]
    spectra_bytes: int
    n_batches: int
    micro_batch_size: int | None
    train_mode: bool

    @classmethod
    def checked(
        cls, *, estimator: str, record: str | Collection[str], scale: int | float, **rest: Any
    ) -> "Settings":
        """Check what a user asks for.

        Args:
            estimator: Name of the estimator.
            record: Names of what to record besides.
            scale: LoRA scale.
            **rest: The other attributes.

        Returns:
            The settings.

        Raises:
            InvalidOption: One is outside what is allowed, or torch builds no graph here.
        """  # noqa: DOC502 - the helpers raise
        check_at_least_one(**{n: rest[n] for n in ("n_batches", "rank", "micro_batch_size")})
        _check_scale(scale)
        _check_gradients_allowed()
        kind, wanted = _parse_estimator(estimator), parse_record(record)
        return cls(estimator=kind, record=wanted, scale=scale, **rest)

    def identity(self, executor: Executor) -> dict[str, Any]:
        """Name what saved sums depend on.

        Args:
            executor: How they come about.

        Returns:
            Values by the names that users know them by.
        """
        return {**vars(self), "executor": executor, "record": sorted(self.record)}

    def provenance(self) -> dict[str, Any]:
        """Name what statistics say about how they were made.

        Returns:
            Fields of `fimlora.Statistics`.
        """
        is_drawn = self.estimator.has_sampled
        return {
            "estimator": self.estimator,
            "scale": self.scale,
            "train_mode": self.train_mode,
            "rank": self.rank if is_drawn else None,
            "seed": self.seed if is_drawn else None,
        }


def _parse_estimator(estimator: str) -> Estimator:
    if estimator not in set(Estimator):
        allowed = ", ".join(repr(known.value) for known in Estimator)
        raise InvalidOption(f"estimator={estimator!r}; allowed are {allowed}")
    return Estimator(estimator)


def check_at_least_one(**options: int | None) -> None:
    """Refuse a count that is not a whole number or below 1.

    Args:
        **options: Counts by the name of their argument; ``None`` is allowed.

    Raises:
        InvalidOption: One is.
    """
    for name, value in options.items():
        if value is not None and (value is True or not hasattr(value, "__index__")):
            raise InvalidOption(f"{name}={value!r}: it must be an integer of at least 1")
        if value is not None and value < 1:
            raise InvalidOption(f"{name}={value}: it must be at least 1")


def _check_scale(scale: int | float) -> None:
    """Refuse a LoRA scale that no score can be stated for."""
    if not 0 < scale < math.inf:
        raise InvalidOption(f"scale={scale!r}: it must be a number above 0 and finite")


def _check_gradients_allowed() -> None:
    """Refuse to run where torch builds no graph whatever is asked of it."""
    if torch.is_inference_mode_enabled():
        raise InvalidOption(
            "measuring needs gradients, which torch.inference_mode() rules out: call it "
            "outside; torch.no_grad() is allowed"
        )


def check_record(record: frozenset[Record], model: nn.Module) -> None:
    """Refuse to record what would be wrong for a model.

    Args:
        record: What to record.
        model: The model, wrapped by PEFT or not.

    Raises:
        UnsupportedModule: Moments are wanted of an encoder-decoder.
    """
    base = base_model_of(model)
    is_encoder_decoder = getattr(getattr(base, "config", None), "is_encoder_decoder", False)
    if is_encoder_decoder and Record.MOMENTS in record:
        raise UnsupportedModule(
            f"record='moments' leaves out padding by one attention mask, and {type(base).__name__} "
            "has tokens of two kinds; record='spectra' is allowed"
        )


OnBatch = Callable[[int, int], None]
