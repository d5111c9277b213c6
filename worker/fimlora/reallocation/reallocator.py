"""The Trainer callback that moves ranks while an adapter trains, under the budget it began with.

Every so many optimizer steps a few batches are measured at the point that training has reached, ranks
are planned anew from the gradients of the adapter's own A and B, and the adapter is resized with the
state of its optimizer. Nothing shows that this beats training with the ranks one has.
"""

# ruff: noqa: ARG002 - the signatures are those of transformers

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from fimlora.adapter.live import LiveAdapter, acting_alone, live_adapter
from fimlora.allocation import allocate
from fimlora.apply import carriers_of, common_scale
from fimlora.errors import InvalidOption
from fimlora.measuring.examples.losses import LossFn
from fimlora.measuring.resident import measure_resident
from fimlora.measuring.settings import Settings
from fimlora.methods.score import score
from fimlora.model.exclusive import exclusive
from fimlora.plan import Budget, RankPlan
from fimlora.reallocation.resize import Moved, resize_with_state
from fimlora.statistics.options import Record

STATE_FILE = "fimlora_reallocation.json"
Reallocated = Callable[[int, RankPlan, Moved], None]


class FimLoraReallocator(TrainerCallback):
    """Measures, plans and resizes every so many optimizer steps.

    Args:
        batches: What is measured each time, as the model takes it, with labels: a list, or a loader
            that draws nothing. Not the training loader itself, whose order would change.
        every: Optimizer steps between two reallocations.
        until: The last step that may end with one; by default three quarters of the training, so
            that what is new has steps to train in.
        n_batches: Batches to measure at most.
        budget: A mean rank or a `fimlora.Budget`; by default the parameters that the adapter has when
            training begins.
        r_min: Lowest rank; half the mean rank by default.
        r_max: Highest rank; twice the mean rank by default.
        adapter_name: The adapter's name.
        seed: Seed of new rows of A.
        micro_batch_size: Examples per forward pass while measuring, to save memory.
        loss_fn: Maps the model's outputs and a batch to one loss per example.
        on_reallocation: Called with the step, the plan and what changed.
        resume_from: The checkpoint that training resumes from, where it is not
            ``output_dir/checkpoint-STEP``.

    Raises:
        InvalidOption: A number is outside what is allowed.
    """

    def __init__(
        self,
        batches: Iterable[Mapping[str, Any]],
        *,
        every: int,
        until: int | None = None,
        n_batches: int = 4,
        budget: int | float | Budget | None = None,
        r_min: int | None = None,
        r_max: int | None = None,
        adapter_name: str = "default",
        seed: int = 0,
        micro_batch_size: int | None = None,
        loss_fn: LossFn | None = None,
        on_reallocation: Reallocated | None = None,
        resume_from: str | Path | None = None,
    ) -> None:
        if every < 1:
            raise InvalidOption(f"every={every}: it must be at least 1 optimizer step")
        if r_min is not None and r_min < 1:
            raise InvalidOption(f"r_min={r_min}: a layer of a live adapter has at least rank 1")
        if iter(batches) is batches:
            raise InvalidOption(
                "batches is an iterator, which is empty after the first reallocation; give a list"
            )
        self._batches, self._every, self._until = batches, every, until
        self._budget, self._r_min, self._r_max = budget, r_min, r_max
        self._settings = Settings(
            estimator="none",
            record=Record.ADAPTER_GRADIENTS,
            n_batches=n_batches,
            micro_batch_size=micro_batch_size,
            loss_fn=loss_fn,
        )
        self._adapter_name, self._seed = adapter_name, seed
        self._on_reallocation, self._resume_from = on_reallocation, resume_from
        self._limit = 0  # parameters

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Take the budget, or that of the run that is resumed.

        Args:
            args: The Trainer's arguments.
            state: Where the training stands.
            control: Not looked at.
            **kwargs: The model among them.

        Raises:
            InvalidOption: The adapter is spread over processes, the Trainer is to load another
                step's at the end, or a checkpoint has no budget.
        """
        if args.world_size > 1 or args.n_gpu > 1 or args.deepspeed or args.fsdp:
            raise InvalidOption(
                "ranks are moved in one process on one device: others would hold parameters of "
                "another shape"
            )
        if args.load_best_model_at_end:
            raise InvalidOption(
                "load_best_model_at_end=True: the best step may have had other ranks than the last, "
                "which the Trainer cannot load into it; leave it off and load that checkpoint"
            )
        adapter = live_adapter(kwargs["model"], self._adapter_name)
        common_scale(adapter)
        self._limit = sum(_parameters(adapter).values())
        if state.global_step:
            self._limit = self._restored(args, state)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Move ranks, if it is time to.

        Args:
            args: Not looked at.
            state: Where the training stands, the step that was just taken counted.
            control: Not looked at.
            **kwargs: The model and the optimizer among them.
        """
        until = 3 * state.max_steps // 4 if self._until is None else self._until
        if state.global_step % self._every == 0 and state.global_step <= until:
            plan, moved = self.reallocate(
                kwargs["model"], kwargs["optimizer"], state.global_step
            )
            if self._on_reallocation is not None:
                self._on_reallocation(state.global_step, plan, moved)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Keep the budget beside a checkpoint: a plan may have spent a little less.

        Args:
            args: The Trainer's arguments.
            state: Where the training stands.
            control: Not looked at.
            **kwargs: Not looked at.
        """
        path = _checkpoint(args, state) / STATE_FILE
        path.write_text(json.dumps({"parameters": self._limit}) + "\n", encoding="utf-8")

    def reallocate(
        self, model: nn.Module, optimizer: Optimizer, step: int
    ) -> tuple[RankPlan, Moved]:
        """Measure, plan and resize now, between two optimizer steps.

        Args:
            model: The model.
            optimizer: Its optimizer.
            step: The optimizer step, from which new rows are drawn.

        Returns:
            The plan that the adapter now has, and what changed.
        """
        with exclusive(model):
            adapter = live_adapter(model, self._adapter_name)
            plan = self._plan(model, adapter)
            moved = resize_with_state(
                model, optimizer, plan, self._adapter_name, seed=self._seed + step
            )
        return plan, moved

    def _plan(self, model: nn.Module, adapter: LiveAdapter) -> RankPlan:
        """Plan ranks from the gradients of the adapter as it is now."""
        with acting_alone(model, adapter.name):
            settings = replace(self._settings, choice=carriers_of(model, adapter.ranks))
            statistics = measure_resident(model, self._batches, settings)
        spent = _parameters(adapter)
        # A layer that no row of these batches reaches keeps what it has.
        kept = sum(spent[name] for name in spent.keys() & statistics.not_targeted.keys())
        budget = self._budget or Budget(
            "parameters", (self._limit or sum(spent.values())) - kept
        )
        return allocate(
            score(statistics),
            budget,
            r_min=self._r_min,
            r_max=self._r_max,
            scale=common_scale(adapter),
        )

    def _restored(self, args: TrainingArguments, state: TrainerState) -> int:
        """The budget of the run that is resumed."""
        path = Path(self._resume_from or _checkpoint(args, state)) / STATE_FILE
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["parameters"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidOption(
                f"training resumes at step {state.global_step}, and its checkpoint has no readable "
                f"{STATE_FILE}: it was not written with FimLoraReallocator, or give resume_from="
            ) from error


def _parameters(adapter: LiveAdapter) -> dict[str, int]:
    """Parameters of the adapter by module."""
    return {
        name: sum(linear.weight.numel() for linear in adapter.matrices(name))
        for name in adapter.layers
    }


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
