"""The Trainer callback that stops a training which is not what was planned, before its first step.

The layers of the model are looked at when training begins and ends, and the files of every
checkpoint when it is written.
"""

# ruff: noqa: ARG002 - the signatures are those of transformers

import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from fimlora.adapter.verifying.compare import compare
from fimlora.adapter.verifying.findings import Verification
from fimlora.adapter.verifying.folder import see_folder
from fimlora.adapter.verifying.intended import AnyPlan, read_intended
from fimlora.adapter.verifying.live import see_model
from fimlora.errors import InvalidOption, NotAsPlanned

_CONFIG = "adapter_config.json"


class VerifyPlan(TrainerCallback):
    """Sees that an adapter is trained as planned: modules, ranks, scales, base model.

    Args:
        plan: The plan, or where it is kept: the folder that `fimlora fetch` has filled, its
            ``rank_map.json``, a rank pattern in JSON.
        on_mismatch: ``raise`` stops the training, before its first step where that can be; ``warn``
            only says it.
        adapter_name: The adapter's name.
        base_model: What the base model is called in training, if other than in the plan.

    Attributes:
        reports: What was found each time, the last one last.

    Raises:
        InvalidAdapter: There is no plan.
        InvalidOption: ``on_mismatch`` is neither.
    """

    def __init__(
        self,
        plan: AnyPlan,
        *,
        on_mismatch: str = "raise",
        adapter_name: str = "default",
        base_model: str | None = None,
    ) -> None:
        if on_mismatch not in {"raise", "warn"}:
            raise InvalidOption(f"on_mismatch={on_mismatch!r}; allowed are 'raise', 'warn'")
        self._intended = read_intended(plan)
        self._on_mismatch, self._adapter_name = on_mismatch, adapter_name
        self._base_model = base_model
        self.reports: list[Verification] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Look at the model before the first step.

        Args:
            args: Not looked at.
            state: Not looked at.
            control: Not looked at.
            **kwargs: The model among them.
        """
        self._look_at(kwargs["model"], "the model that is about to train")

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Look at the files of a checkpoint, where it holds an adapter of its own.

        Args:
            args: The Trainer's arguments.
            state: Where the training stands.
            control: Not looked at.
            **kwargs: Not looked at.
        """
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if self._adapter_name != "default":  # PEFT keeps others in folders of their own
            folder /= self._adapter_name
        if state.is_world_process_zero and (folder / _CONFIG).is_file():
            seen = see_folder(folder, self._intended, base_model=self._base_model)
            self._report(compare(self._intended, seen))

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Look at the model after the last step.

        Args:
            args: Not looked at.
            state: Not looked at.
            control: Not looked at.
            **kwargs: The model among them.
        """
        self._look_at(kwargs["model"], "the model that was trained")

    def _look_at(self, model: nn.Module, subject: str) -> None:
        seen = see_model(
            model,
            self._intended,
            adapter_name=self._adapter_name,
            base_model=self._base_model,
            subject=subject,
        )
        self._report(compare(self._intended, seen))

    def _report(self, found: Verification) -> None:
        self.reports.append(found)
        if found.as_planned:
            return
        if self._on_mismatch == "raise":
            raise NotAsPlanned(found.sentence)
        warnings.warn(found.sentence, stacklevel=2)
