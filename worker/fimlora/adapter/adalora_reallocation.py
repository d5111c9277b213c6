"""The Trainer callback that takes ranks away as AdaLoRA's config says, and goes on after a resume.

PEFT's ``update_and_allocate`` weighs ranks by gradients, which the Trainer has cleared when
``on_step_end`` comes, so it is called at ``on_optimizer_step``. Steps are those of the optimizer.
While training, the config holds no ``rank_pattern``: a checkpoint then has every row, those without
rank with E = 0, and loads into the model that a resumed run builds. The final adapter has one.
"""

# ruff: noqa: ARG002 - the signatures are those of transformers

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from fimlora.adapter.adalora_schedule import schedule_of
from fimlora.errors import InvalidOption, MissingGradient

STATE_FILE = "fimlora_adalora.safetensors"


class AdaLoraReallocation(TrainerCallback):
    """Lets a Trainer's AdaLoRA fall to its target rank.

    Args:
        resume_from: The checkpoint that training resumes from, where it is not
            ``output_dir/checkpoint-STEP``.
    """

    def __init__(self, resume_from: str | Path | None = None) -> None:
        self._resume_from = resume_from
        self._pattern: dict[str, list[bool]] | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """See that ranks will fall to the target in this run, and go on where another one ended.

        Args:
            args: The Trainer's arguments.
            state: Where the training stands.
            control: Not looked at.
            **kwargs: The model among them.

        Raises:
            InvalidOption: The model has no AdaLoRA, its schedule is not this run's, or a
                checkpoint lacks what it weighed.
        """  # noqa: DOC502 - the helpers raise
        tuner = tuner_of(kwargs["model"])
        _check_run(args, state, config_of(tuner))
        if state.global_step:
            folder = self._resume_from or _checkpoint(args, state)
            self._pattern = _restore(tuner, Path(folder) / STATE_FILE, state.global_step)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Weigh ranks by the gradients of the step that was just taken, and cut what is due.

        Args:
            args: Not looked at.
            state: Where the training stands; the step that was taken is not counted yet.
            control: Not looked at.
            **kwargs: The model among them.

        Raises:
            MissingGradient: A matrix of the adapter got none.
        """
        tuner = tuner_of(kwargs["model"])
        config, step = config_of(tuner), state.global_step + 1
        if step < schedule_of(asdict(config)).last_cut:
            for name, parameter in _matrices(tuner):
                if parameter.grad is None:
                    raise MissingGradient(
                        f"{name} got no gradient in optimizer step {step}: AdaLoRA weighs ranks "
                        "by it; leave out of target_modules what the loss does not depend on"
                    )
        config.rank_pattern = self._pattern
        try:
            tuner.update_and_allocate(step)
        finally:
            self._pattern, config.rank_pattern = config.rank_pattern, None

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Keep beside a checkpoint what a resumed run has to know.

        Args:
            args: The Trainer's arguments.
            state: Where the training stands.
            control: Not looked at.
            **kwargs: The model among them.
        """
        if not state.is_world_process_zero:
            return
        allocator = tuner_of(kwargs["model"]).rankallocator
        kept: dict[str, Tensor] = {}
        for kind, of_name in (
            ("sensitivity", allocator.exp_avg_ipt),
            ("uncertainty", allocator.exp_avg_unc),
        ):
            kept |= {f"{kind}/{name}": tensor.contiguous() for name, tensor in of_name.items()}
        for name, is_kept in (self._pattern or {}).items():
            kept[f"pattern/{name}"] = torch.tensor(is_kept)
        save_file(kept, _checkpoint(args, state) / STATE_FILE)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Let the config say which ranks are left, so that only these are saved.

        Args:
            args: Not looked at.
            state: Not looked at.
            control: Not looked at.
            **kwargs: The model among them.
        """
        tuner = tuner_of(kwargs["model"])
        # Not the last cut's pattern: where training was stopped early, steps that followed it
        # may have brought rows back.
        config_of(tuner).rank_pattern = {
            name: (E != 0).flatten().tolist() for name, E in _matrices(tuner, "lora_E.")
        }


def adalora_ranks(model: nn.Module) -> dict[str, int]:
    """Count the ranks that AdaLoRA has left.

    Args:
        model: A model with AdaLoRA, as `peft.get_peft_model` returns it.

    Returns:
        Number of rows with E != 0 by module name.

    Raises:
        InvalidOption: The model has no AdaLoRA.
    """  # noqa: DOC502 - the helper raises
    return {
        name.rpartition(".lora_E.")[0]: int((E != 0).sum())
        for name, E in _matrices(tuner_of(model), "lora_E.")
    }


def tuner_of(model: nn.Module) -> AdaLoraModel:
    """Find AdaLoRA on a model.

    Args:
        model: A model, as `peft.get_peft_model` returns it.

    Returns:
        PEFT's part that carries it.

    Raises:
        InvalidOption: There is none that trains.
    """
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, AdaLoraModel) or not hasattr(tuner, "trainable_adapter_name"):
        raise InvalidOption(
            f"{type(model).__name__} carries no AdaLoRA adapter that trains; make it with "
            "peft.get_peft_model(model, fimlora.adalora_config(...))"
        )
    return tuner


def config_of(tuner: AdaLoraModel) -> AdaLoraConfig:
    """Give the config of the adapter that trains.

    Args:
        tuner: What `tuner_of` has found.

    Returns:
        The config, as the model holds it.
    """
    return cast("AdaLoraConfig", tuner.peft_config[tuner.trainable_adapter_name])


def _matrices(tuner: AdaLoraModel, kind: str = "lora_") -> list[tuple[str, nn.Parameter]]:
    """Parameters of the adapter by the names that PEFT's allocator uses."""
    name = tuner.trainable_adapter_name
    named = tuner.model.named_parameters()
    return [(n, p) for n, p in named if kind in n and n.endswith(f".{name}")]


def _check_run(args: TrainingArguments, state: TrainerState, config: AdaLoraConfig) -> None:
    """Refuse a run in which ranks would not fall to the target.

    Raises:
        InvalidOption: It is one.
    """
    schedule = schedule_of(asdict(config))
    if state.max_steps != schedule.total_step:
        raise InvalidOption(
            f"the config says total_step={schedule.total_step}, this run takes {state.max_steps} "
            f"optimizer steps: make it with adalora_config(..., total_steps={state.max_steps})"
        )
    if args.fp16:
        raise InvalidOption(
            "fp16=True: steps that are skipped leave infinite gradients in the importance of "
            "ranks; train in bf16 or float32"
        )
    if args.load_best_model_at_end:
        raise InvalidOption(
            "load_best_model_at_end=True may bring back a step from before ranks had fallen to "
            f"the target, which they do at {schedule.last_cut}; leave it off"
        )


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _restore(tuner: AdaLoraModel, path: Path, step: int) -> dict[str, list[bool]] | None:
    """Take what a checkpoint knew of the ranks.

    Returns:
        Which rows were kept; ``None`` before the first cut.

    Raises:
        InvalidOption: It says nothing, or of another adapter.
    """
    if not path.is_file():
        raise InvalidOption(
            f"training resumes at step {step}, and its checkpoint has no {STATE_FILE}: it was not "
            "written with AdaLoraReallocation, or give resume_from=; begin anew otherwise"
        )
    kept, named = load_file(path), dict(_matrices(tuner))
    parts = {kind: _part(kept, kind) for kind in ("sensitivity", "uncertainty", "pattern")}
    for of_name in parts.values():
        for name, tensor in of_name.items():
            if name not in named or tensor.numel() not in (
                named[name].numel(),
                len(named[name]),
            ):
                raise InvalidOption(
                    f"{STATE_FILE} of the checkpoint is of another adapter: {name}"
                )
    allocator = tuner.rankallocator
    on_device = {
        kind: {n: t.to(named[n].device) for n, t in parts[kind].items()}
        for kind in ("sensitivity", "uncertainty")
    }
    allocator.exp_avg_ipt, allocator.exp_avg_unc = on_device.values()
    allocator.ipt = {name: torch.zeros_like(t) for name, t in allocator.exp_avg_ipt.items()}
    return {name: t.bool().tolist() for name, t in parts["pattern"].items()} or None


def _part(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {
        n.removeprefix(f"{kind}/"): t for n, t in tensors.items() if n.startswith(f"{kind}/")
    }
