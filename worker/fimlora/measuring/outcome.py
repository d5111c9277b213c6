"""Put together what a run has recorded and what is said about it, whichever executor ran it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from fimlora.errors import InvalidOption, MissingGradient
from fimlora.left_out import UNREACHED
from fimlora.measuring.examples.losses import Loss
from fimlora.measuring.examples.null_labels import NullLabels
from fimlora.measuring.settings import Settings
from fimlora.model.targets import Choice
from fimlora.numerics.kernel_alignment import FEWEST
from fimlora.statistics import Statistics
from fimlora.statistics.options import Execution, Record
from fimlora.statistics.statistics import HALVES, NO_LOSS, NULL, Groups, as_fields

# Of the largest number of a kind, what may differ between equal passes on some devices.
_ROUNDING = 1e-6


def new_statistics(
    model: nn.Module,
    choice: Choice,
    settings: Settings,
    *,
    loss: Loss | None,
    auxiliary_losses: tuple[str, ...] = (),
    batch_sizes: Sequence[int],
    null_labels: NullLabels | None = None,
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
        loss: The loss; ``None`` where no example was read.
        auxiliary_losses: What the model would add to it in training, which is left out.
        batch_sizes: Labelled examples of each batch that holds one.
        null_labels: What the labels of the null were drawn by, if there is one.
        base_parameters: Parameters of the base model.
        execution: How the run was carried out.
        groups: What was recorded, also of the null and of the halves.
        estimator_reason: Why the estimator is the settings' own, if it was not asked for.

    Returns:
        The statistics; a module that no gradient has reached is not a target after all.

    Raises:
        InvalidOption: All that was asked for compares more examples than there are.
        MissingGradient: None was reached, or one was not that was named by itself.
    """  # noqa: DOC502 - the helpers raise
    apart = {p: _groups_of(p, groups) for p in (NULL, *HALVES) if _groups_of(p, groups)}
    groups = {group: arrays for group, arrays in groups.items() if "." not in group}
    _check_enough(settings, groups, n_examples=sum(batch_sizes))
    reached = _reached(choice, groups)
    whole = Statistics(
        modules=reached.modules,
        n_examples=sum(batch_sizes),
        n_batches=len(batch_sizes),
        batch_sizes=tuple(batch_sizes),
        base_parameters=base_parameters,
        loss=NO_LOSS if loss is None else loss.kind.value,
        auxiliary_losses_left_out=auxiliary_losses,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        not_targeted=reached.not_targeted,
        estimator_reason=estimator_reason,
        execution=execution,
        **(settings.provenance() | as_fields(groups)),
    )
    counts: dict[str, dict[str, Any]] = {
        prefix: {
            "n_examples": sum(sizes),
            "n_batches": len(sizes),
            "batch_sizes": tuple(sizes),
        }
        for prefix, sizes in zip(HALVES, (batch_sizes[::2], batch_sizes[1::2]), strict=True)
    }
    counts[NULL] = {"batch_sizes": tuple(batch_sizes)}
    if null_labels is not None:
        counts[NULL]["null_targets"] = null_labels.counts
    null = apart.get(NULL, {})
    if settings.null and (reason := _no_null(settings, null_labels, loss, groups, null)):
        apart.pop(NULL, None)
        whole = replace(whole, no_null=reason)
    return _with_parts(whole, apart, counts)


def _with_parts(
    whole: Statistics, apart: Mapping[str, Groups], counts: Mapping[str, Mapping[str, Any]]
) -> Statistics:
    """Put the null and the halves beside a run, as far as they were recorded."""
    return whole.with_parts(
        {prefix: whole.part(found, **counts[prefix]) for prefix, found in apart.items()}
    )


def _no_null(
    settings: Settings,
    null_labels: NullLabels | None,
    loss: Loss | None,
    run: Groups,
    null: Groups,
) -> str | None:
    """Say why what was measured under other labels is no null, if so."""
    if not settings.has_null:
        return "no gradient was measured, and no label moves anything else"
    if null_labels is None or loss is None:
        return "the batches hold no labels that could be exchanged"
    is_own = loss.loss_fn is not None  # all others are known to read labels
    if is_own and null_labels.counts[1] and _are_alike(run, null):
        return (
            "the losses of loss_fn are the same under labels of other examples, so that it does "
            "not seem to read batch['labels']"
        )
    return None


def _are_alike(run: Groups, null: Groups) -> bool:
    """Whether two backward passes of one forward pass differ by no more than rounding."""
    return all(
        np.allclose(values, run[group][name], rtol=0, atol=_ROUNDING * np.abs(values).max())
        for group, by_name in null.items()
        for name, values in by_name.items()
        if values.size
    )


def _groups_of(prefix: str, groups: Groups) -> Groups:
    """What was recorded of a part, under its plain names."""
    return {g.removeprefix(prefix): a for g, a in groups.items() if g.startswith(prefix)}


def _check_enough(settings: Settings, groups: Groups, *, n_examples: int) -> None:
    """Say that nothing was recorded for want of examples, where that is why."""
    compares = Record.LAYER_SIMILARITY in settings.parsed_record and n_examples < FEWEST
    if compares and not any(groups.values()):
        there = "is one" if n_examples == 1 else f"are {n_examples}"
        raise InvalidOption(
            f"record={Record.LAYER_SIMILARITY.value!r} compares examples, and there {there}; "
            f"measure at least {FEWEST}"
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
