"""Put together what a run has recorded and what is said about it, whichever executor ran it."""

from torch import nn

from fimlora.errors import MissingGradient
from fimlora.left_out import UNREACHED
from fimlora.measuring.examples.losses import Loss
from fimlora.measuring.settings import Settings
from fimlora.model.targets import Choice
from fimlora.statistics import Statistics
from fimlora.statistics.options import Execution
from fimlora.statistics.statistics import Groups


def new_statistics(
    model: nn.Module,
    choice: Choice,
    settings: Settings,
    *,
    loss: Loss,
    auxiliary_losses: tuple[str, ...],
    n_examples: int,
    n_batches: int,
    base_parameters: int,
    execution: Execution,
    groups: Groups,
    estimator_reason: str | None = None,
) -> Statistics:
    """Put together what a run has recorded, and what is said about it.

    Args:
        model: The model.
        choice: Its target modules, and what is not one.
        settings: What was measured.
        loss: The loss.
        auxiliary_losses: What the model would add to it in training, which is left out.
        n_examples: Labelled examples that were used.
        n_batches: Batches that hold one.
        base_parameters: Parameters of the base model.
        execution: How the run was carried out.
        groups: What was recorded.
        estimator_reason: Why the estimator is the settings' own, if it was not asked for.

    Returns:
        The statistics; a module that no gradient has reached is not a target after all.

    Raises:
        MissingGradient: None was reached, or one was not that was named by itself.
    """  # noqa: DOC502 - `_reached` raises
    reached = _reached(choice, groups)
    return Statistics(
        modules=reached.modules,
        n_examples=n_examples,
        n_batches=n_batches,
        base_parameters=base_parameters,
        loss=loss.kind.value,
        auxiliary_losses_left_out=auxiliary_losses,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        not_targeted=reached.not_targeted,
        estimator_reason=estimator_reason,
        execution=execution,
        **(settings.provenance() | groups),
    )


def _reached(choice: Choice, groups: Groups) -> Choice:
    """Leave out the modules that nothing was recorded of."""
    recorded = {name for by_module in groups.values() for name in by_module}
    missing = [m.name for m in choice.modules if m.name not in recorded]
    alone = next((name for name in missing if name in choice.named), None)
    if alone is not None:
        raise MissingGradient(
            f"target module {alone!r} cannot be measured: {UNREACHED}; leave it out"
        )
    if not recorded:
        raise MissingGradient(
            f"no target module can be measured; {missing[0]!r}, for one: {UNREACHED}"
        )
    return choice.without(dict.fromkeys(missing, UNREACHED))
