"""What was found when an adapter was held against its plan. Nothing here imports torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# A stable word per kind of fault: what to do about it. The first that was found counts.
NEXT_STEPS = {
    "base_model": "Train on the planned base model, or say that this one is meant: --base-model "
    "NAME, VerifyPlan(base_model=NAME).",
    "shape": "Train on the planned base model: this one has layers of other sizes.",
    "no_adapter": "Give the model the planned adapter before training: "
    "get_peft_model(model, LoraConfig.from_pretrained(FOLDER)).",
    "other_kind": "Train plain LoRA: leave out what the message names.",
    "renamed": "Calibrate the class that is trained (its modules have these names), or save the "
    "unwrapped model: accelerator.unwrap_model(model).save_pretrained(FOLDER).",
    "fused": "Train the class whose modules the plan names, or calibrate the one that is trained.",
    "missing": "Take target_modules from the planned adapter_config.json as it stands, and put "
    "none of these modules into modules_to_save or exclude_modules.",
    "extra": "Take target_modules from the planned adapter_config.json as it stands.",
    "pattern_unmatched": "Name modules as the base model does, without base_model.model. and "
    "without a wrapper's parts: take rank_pattern and alpha_pattern from the planned "
    "adapter_config.json as they stand.",
    "default_rank": "Give the trainer rank_pattern and alpha_pattern of the planned "
    "adapter_config.json; one that has no option for them starts from the planned folder.",
    "padding": "Start from the planned folder with its initial weights (layout C), with an "
    "element-wise optimizer: ranks that are drawn anew train.",
    "rank": "Give the trainer r, rank_pattern and alpha_pattern of the planned adapter_config.json.",
    "rslora": "Set use_rslora as the planned adapter_config.json does.",
    "alpha_lost": "Give the trainer alpha_pattern beside rank_pattern: without it each rank gets "
    "another scale.",
    "scale": "Set lora_alpha and alpha_pattern as the planned adapter_config.json does.",
    "experts": "Begin from the planned folder with its weights, PeftModel.from_pretrained(base_model, "
    "FOLDER, is_trainable=True): from adapter_config.json alone all experts train.",
    "config": "Let the config say what the layers are (fimlora resizes both): what is cloned or "
    "loaded from this config is another adapter.",
    "tensors": "Save the adapter with PEFT's save_pretrained.",
    "saved": "Set modules_to_save as the planned adapter_config.json does.",
    "frozen": "Load the adapter with is_trainable=True, or set inference_mode to false.",
    "trains_besides": "Freeze the base model; name in modules_to_save what is to be trained in "
    "full, and calibrate with it.",
    "merged": "Call unmerge_adapter() before training.",
    "parameters": "Take the planned adapter_config.json as it stands.",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """Where an adapter is not what was planned.

    Attributes:
        code: Its kind, a key of `NEXT_STEPS`.
        module: The module, in the words of the plan; empty where all of the adapter is meant.
        planned: What was planned.
        found: What there is instead.
        message: A sentence.
    """

    code: str
    module: str
    planned: str
    found: str
    message: str


@dataclass(frozen=True, slots=True)
class Totals:
    """How much is adapted, as planned or as found."""

    modules: int
    ranks: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether an adapter is what was planned.

    Attributes:
        subject: What was looked at, in words.
        planned: How much the plan adapts; padded ranks of layout C count as planned.
        found: How much the adapter does.
        faults: Where it is not as planned, what weighs most first.
        notes: What could not be compared, or is to be minded.
    """

    subject: str
    planned: Totals
    found: Totals
    faults: tuple[Fault, ...]
    notes: tuple[str, ...] = ()

    @property
    def as_planned(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    @property
    def next_step(self) -> str:
        """What to do about the first fault; empty where there is none."""
        return NEXT_STEPS[self.faults[0].code] if self.faults else ""

    @property
    def sentence(self) -> str:
        """What was found, in a sentence or two."""
        if self.as_planned:
            return (
                f"{self.subject} is as planned: {self.found.modules} modules, "
                f"{self.found.parameters:,} parameters."
            )
        first = self.faults[0]
        more = len(self.faults) - 1
        others = f" ({more} more {'faults' if more > 1 else 'fault'})" if more else ""
        return f"{self.subject} is not as planned: {first.message}{others}. {self.next_step}"

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "as_planned": self.as_planned,
            "sentence": self.sentence,
            "subject": self.subject,
            "planned": asdict(self.planned),
            "found": asdict(self.found),
            "next_step": self.next_step,
            "faults": [asdict(fault) for fault in self.faults],
            "notes": list(self.notes),
        }


def weightiest_first(faults: Mapping[tuple[str, str], Fault]) -> tuple[Fault, ...]:
    """Order faults as `NEXT_STEPS` does, and within a kind by module.

    Args:
        faults: The faults by kind and module.

    Returns:
        The faults.
    """
    weights = {code: i for i, code in enumerate(NEXT_STEPS)}
    return tuple(faults[key] for key in sorted(faults, key=lambda k: (weights[k[0]], k[1])))
