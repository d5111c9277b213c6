"""Which estimator a run takes that was asked to choose: decided once, from shapes alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from fimlora.errors import InvalidOption
from fimlora.measuring.examples.batches import Batch, count_tokens
from fimlora.measuring.recording.arithmetic import added_arithmetic
from fimlora.measuring.settings import Settings
from fimlora.model.targets import all_linear_maps
from fimlora.plan import TargetModule
from fimlora.statistics.options import Estimator


class Decided(NamedTuple):
    """Settings with an estimator that can run.

    Attributes:
        settings: The settings.
        reason: Why it is this estimator, in a sentence; ``None`` where it was asked for.
    """

    settings: Settings
    reason: str | None


def decide_estimator(
    settings: Settings, model: nn.Module, modules: Sequence[TargetModule], batch: Batch
) -> Decided:
    """Take ``exact`` where it adds little to a pass over examples of this length.

    The same for a model in memory and its skeleton, whatever fits at once.

    Args:
        settings: What was asked for.
        model: The model, wrapped by PEFT or not.
        modules: Its target modules.
        batch: The run's first batch, as it was given.

    Returns:
        The settings, with an estimator other than ``auto``.

    Raises:
        InvalidOption: The estimator that was asked for is none for an embedding among them.
    """
    table = next((module.name for module in modules if module.is_embedding), None)
    if table is not None:
        if settings.parsed_estimator not in {Estimator.AUTO, Estimator.EXACT}:
            raise InvalidOption(
                f"estimator={settings.parsed_estimator.value!r} draws a matrix next to the input, and "
                f"of an embedding such as {table!r} the gradient is taken whole: use 'exact' or 'auto'"
            )
        reason = f"auto: {table} is an embedding, whose gradient is taken whole"
        is_told = settings.parsed_estimator is Estimator.EXACT
        exact = replace(settings, estimator=Estimator.EXACT.value)
        return Decided(exact, None if is_told else reason)
    if settings.parsed_estimator is not Estimator.AUTO:
        return Decided(settings, None)
    n_tokens, rank = count_tokens(batch), settings.rank
    # As if each token went through one expert: with more, both sides grow alike.
    maps = [*all_linear_maps(model), *(m for m in modules if m.n_experts is not None)]
    added = added_arithmetic(modules, maps, n_tokens=n_tokens, rank=rank)
    taken = Estimator.EXACT if added.is_exact_worth_it else Estimator.SKETCHED
    reason = (
        f"auto: at {n_tokens} tokens, exact adds {added.exact:.1%} to the arithmetic of a pass "
        f"and sketched {added.sketched:.1%}"
    )
    return Decided(replace(settings, estimator=taken.value), reason)
