"""AdaLoRA, a training-time method that calibration cannot run: its config, legal by construction.

PEFT accepts schedules that crash when the first rank is taken away, or that never take one. The
Trainer calls nothing of AdaLoRA by itself: `fimlora.AdaLoraReallocation` does.
"""

from collections.abc import Sequence
from typing import Any

from peft import AdaLoraConfig

from fimlora.adapter.adalora_schedule import adalora_schedule
from fimlora.errors import InvalidOption


def adalora_config(
    target_modules: str | Sequence[str],
    *,
    total_steps: int,
    target_r: int,
    accumulation_steps: int = 1,
    scale: int | float = 2,
    init_r: int | None = None,
    tinit: int | None = None,
    tfinal: int | None = None,
    delta_t: int | None = None,
    orth_reg_weight: int | float = 0.5,
    **options: Any,
) -> AdaLoraConfig:
    """Make a config of AdaLoRA whose ranks fall to the target within the training.

    Args:
        target_modules: As for PEFT.
        total_steps: Optimizer steps of the training: ``trainer.state.max_steps``.
        target_r: Mean rank at the end; the budget is this times the number of modules.
        accumulation_steps: Micro-batches per optimizer step whose losses are added undivided, as
            the Trainer does with models of transformers; the weight of the orthogonality term is
            divided by it. A loop that divides the loss by itself leaves it at 1.
        scale: Effective LoRA scale at the beginning, ``alpha / init_r``.
        init_r: Rank of every module at the beginning; 1.5 times the target by default.
        tinit: Steps before ranks fall; about a fifth of all by default.
        tfinal: Steps after that; about a tenth of all by default.
        delta_t: Steps between two allocations; it divides the steps in which ranks fall.
        orth_reg_weight: Weight of the orthogonality term in the loss of one optimizer step.
        **options: What else ``AdaLoraConfig`` takes, such as ``task_type``.

    Returns:
        The config. Ranks only fall where `fimlora.AdaLoraReallocation` is among the Trainer's
        callbacks.

    Raises:
        InvalidOption: A value would crash later or be ignored; the message has the interval.
    """
    ours = {"r", "lora_alpha", "total_step", "deltaT", "rank_pattern", "alpha_pattern"}
    if odd := sorted(ours & options.keys()):
        raise InvalidOption(
            f"{odd[0]} is not for AdaLoRA or follows from others; give target_r, init_r, scale, "
            "total_steps, delta_t"
        )
    if not 0 < scale < float("inf"):
        raise InvalidOption(f"scale={scale!r}; it must be above 0 and finite")
    schedule = adalora_schedule(
        total_steps,
        target_r=target_r,
        accumulation_steps=accumulation_steps,
        init_r=init_r,
        tinit=tinit,
        tfinal=tfinal,
        delta_t=delta_t,
        orth_reg_weight=orth_reg_weight,
        beta1=options.pop("beta1", 0.85),
        beta2=options.pop("beta2", 0.85),
    )
    names = target_modules if isinstance(target_modules, str) else list(target_modules)
    alpha: Any = scale * schedule.init_r
    return AdaLoraConfig(
        target_modules=names,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        **schedule.settings,
        **options,
    )
