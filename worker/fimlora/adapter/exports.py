"""One plan in the words of each tool that reads one: pure functions to text, without torch.

A tool that takes patterns of ranks in its own configuration gets them there; one that does
not starts from an adapter folder with initial weights, which ``write_adapter`` and a job
with ``adapter.weights`` write. Layout C, one padded rank, is for servers that know no
patterns.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pprint import pformat
from typing import Any

import yaml

from fimlora.adapter.adalora_schedule import adalora_schedule
from fimlora.adapter.config import build_adapter_config
from fimlora.adapter.model_classes import MODEL_CLASS
from fimlora.adapter.rank_map import budget_line
from fimlora.errors import InvalidOption
from fimlora.plan import RankPlan

# The modules that Unsloth trains whole, by the only names it takes them by.
UNSLOTH_SAVES = ("embed_tokens", "lm_head")
# The ranks that vLLM allots buffers for (`vllm/config/lora.py`).
SERVER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
FOLDER = "./adapter"  # stands for the folder where nobody says which
UNNAMED = "BASE_MODEL"
FILL_IN = f"put the base model's hub id or path in place of {UNNAMED}: it was not given"
NEEDS_WEIGHTS = (
    "is the adapter folder of a job with adapter.weights=true: this tool takes no patterns of ranks "
    "by itself"
)
SCALES_DIFFER = (
    "one alpha for all modules: each has a scale of its own, by its rank, which only readers of "
    "rank_pattern and alpha_pattern apply"
)
HAS_EXPERTS = (
    "target_parameters are fused experts: PEFT 0.17 or newer, a dropout of 0, and no DoRA"
)
VLLM_EXPERTS = (
    "all experts of a projection have one rank, which vLLM asks for; that it reads the tensors of "
    "target_parameters was not tried here"
)
EXPERTS_IN_WEIGHTS = (
    "some experts train, and the weights of the folder alone say which: begin from these"
)
SAVED_IN_FOLDER = "modules that train whole are those of the folder's adapter_config.json: {}"
LANGUAGE_MODELS = (
    "{tool} trains language models, and this plan is of task_type {task}: take the adapter folder, or "
    "format peft, and the Trainer of transformers"
)
NEEDS_ANCHORS = "keys that begin with ^ need PEFT 0.15 or newer"

JSON, YAML, PYTHON, TEXT = "application/json", "application/yaml", "text/x-python", "text/plain"


@dataclass(frozen=True, slots=True)
class Export:
    """A plan as one tool reads it.

    Attributes:
        text: The content.
        media_type: Its kind.
        filename: What to call it.
    """

    text: str
    media_type: str
    filename: str


@dataclass(frozen=True, slots=True)
class _Adapter:
    """A plan with its adapter config in layout B."""

    plan: RankPlan
    config: Mapping[str, Any]
    steps: int | None = None
    accumulation_steps: int = 1
    folder: str | None = None

    @property
    def place(self) -> str:
        """The adapter's folder, or what stands for it."""
        return self.folder or FOLDER

    def place_comments(self, meaning: str) -> list[str]:
        """What the folder is, and that it is to be named where nobody has."""
        found = [f"{self.place} {meaning}"]
        return found if self.folder else [*found, f"put your own folder in place of {FOLDER}"]

    @property
    def lora(self) -> dict[str, Any]:
        """The arguments of PEFT's ``LoraConfig`` that the plan decides."""
        names = ["r", "lora_alpha", "lora_dropout", "target_modules"]
        if self.config["fan_in_fan_out"]:  # PEFT sets it by itself, but warns
            names.append("fan_in_fan_out")
        if self.config["modules_to_save"]:
            names.append("modules_to_save")
        if self.config["use_rslora"]:
            names.append("use_rslora")
        if self.has_experts:
            names.append("target_parameters")
        return {name: self.config[name] for name in (*names, "rank_pattern", "alpha_pattern")}

    @property
    def saved(self) -> list[str]:
        """Names of the modules that train whole."""
        return list(self.config["modules_to_save"] or ())

    @property
    def saved_comments(self) -> list[str]:
        """Where a tool that begins from the folder has these from."""
        return [SAVED_IN_FOLDER.format(", ".join(self.saved))] if self.saved else []

    @property
    def has_experts(self) -> bool:
        """Whether fused experts are among the targets."""
        return "target_parameters" in self.config

    @property
    def has_selection(self) -> bool:
        """Whether some experts train, and others do not."""
        plan = self.plan
        return any(m.experts is not None and plan.ranks[m.name] for m in plan.modules)

    @property
    def comments(self) -> list[str]:
        """What to know before using any of the exports."""
        is_anchored = any(key.startswith("^") for key in self.config["rank_pattern"])
        notes = [NEEDS_ANCHORS] if is_anchored else []
        notes += [] if self.plan.scaling == "constant" else [SCALES_DIFFER]
        notes += [HAS_EXPERTS] if self.has_experts else []
        notes += [EXPERTS_IN_WEIGHTS] if self.has_selection else []
        return [budget_line(self.plan), *notes]

    def task_comments(self, tool: str) -> list[str]:
        """That a trainer of language models is none for this plan, where it is of another task."""
        task = self.config["task_type"]
        if task in (None, "CAUSAL_LM"):
            return []
        return [LANGUAGE_MODELS.format(tool=tool, task=task)]

    @property
    def base_model(self) -> str:
        """Hub id or path of the base model, or a word that stands for it."""
        return self.config["base_model_name_or_path"] or UNNAMED

    @property
    def base_model_comments(self) -> list[str]:
        """The comments, where the base model is named."""
        return [*([FILL_IN] if self.base_model == UNNAMED else []), *self.comments]


def export(
    plan: RankPlan,
    config: Mapping[str, Any],
    format: str,
    *,
    steps: int | None = None,
    accumulation_steps: int | None = None,
    folder: str | None = None,
) -> Export:
    """Write a plan in a tool's own words.

    Args:
        plan: The plan.
        config: An adapter config of this plan, in any layout: base model, task and names
            of the target modules are taken from it.
        format: One of `FORMATS`.
        steps: For ``adalora``, and only there: optimizer steps of the training.
        accumulation_steps: For ``adalora``: as for `fimlora.adalora_config`.
        folder: The adapter's folder, for tools that are told of it; to be filled in if left out.

    Returns:
        The text and what it is.

    Raises:
        InvalidOption: The format is unknown, or the tool cannot take this plan.
    """
    if format not in FORMATS:
        raise InvalidOption(f"format={format!r}; allowed are {', '.join(FORMATS)}")
    if format != "adalora" and (steps, accumulation_steps) != (None, None):
        raise InvalidOption("steps and accumulation are for format=adalora only")
    write, media_type, filename = FORMATS[format]
    written = _config(plan, config, layout="B")
    adapter = _Adapter(plan, written, steps, accumulation_steps or 1, folder)
    if format in _WITHOUT_WEIGHTS and adapter.has_selection:
        raise InvalidOption(
            f"format={format!r} is a config without weights, from which all experts train, and this "
            "plan trains some: load the adapter folder of a job with adapter.weights=true "
            "(PeftModel.from_pretrained with is_trainable=True), or take format ms-swift or "
            "llama-factory, which begin from it"
        )
    text = write(adapter)
    return Export(text, media_type, filename)


def as_yaml(data: Mapping[str, Any], comments: list[str] | None = None) -> str:
    """Plain data as YAML, in its own order.

    Returns:
        The text, with the comments first.
    """
    text: str = yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=96)
    return _commented(comments or []) + text


def _config(plan: RankPlan, known: Mapping[str, Any], *, layout: str) -> dict[str, Any]:
    return build_adapter_config(
        plan,
        base_model=known["base_model_name_or_path"],
        task_type=known["task_type"],
        layout=layout,
        target_modules=known["target_modules"],
        modules_to_save=known.get("modules_to_save"),
    )


def _peft(adapter: _Adapter) -> str:
    return json.dumps(adapter.config, indent=2, sort_keys=True) + "\n"


def _layout_c(adapter: _Adapter) -> str:
    config = _config(adapter.plan, adapter.config, layout="C")
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _adalora(adapter: _Adapter) -> str:
    """PEFT's config of AdaLoRA on the plan's targets, at the plan's mean rank or just below.

    Returns:
        The text.

    Raises:
        InvalidOption: The training's length is not given, or AdaLoRA cannot spend the budget.
    """
    _refuse_experts(adapter, tool="AdaLoRA")
    if adapter.steps is None:
        raise InvalidOption(
            "AdaLoRA's ranks fall by a schedule: give steps, the optimizer steps of the training"
        )
    plan = adapter.plan
    targets = [m for m in plan.modules if plan.ranks[m.name] > 0]
    schedule = adalora_schedule(
        adapter.steps,
        target_r=sum(plan.ranks.values()) // len(targets),
        accumulation_steps=adapter.accumulation_steps,
    )
    narrowest = min(targets, key=lambda m: min(m.d_in, m.d_out))
    if schedule.init_r > min(narrowest.d_in, narrowest.d_out):
        raise InvalidOption(
            f"AdaLoRA begins with rank {schedule.init_r} everywhere, and {narrowest.name} has only "
            f"{min(narrowest.d_in, narrowest.d_out)}; plan a lower budget"
        )
    names = (
        "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights",
        "lora_dropout", "modules_to_save", "target_modules", "task_type",
    )  # fmt: skip
    alpha = plan.scale * schedule.init_r
    config = {name: adapter.config[name] for name in names} | schedule.settings
    config |= {
        "peft_type": "ADALORA",
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
    }
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _axolotl(adapter: _Adapter) -> str:
    _require_whole_alphas(adapter, tool="Axolotl")
    _refuse_experts(adapter, tool="Axolotl's configuration")
    lora = adapter.lora
    settings = {
        "base_model": adapter.base_model,
        "adapter": "lora",
        "lora_r": lora["r"],
        "lora_alpha": lora["lora_alpha"],
        "lora_dropout": lora["lora_dropout"],
        "lora_target_modules": lora["target_modules"],
        **({"lora_fan_in_fan_out": True} if "fan_in_fan_out" in lora else {}),
        **({"lora_modules_to_save": saved} if (saved := lora.get("modules_to_save")) else {}),
        "lora_rank_pattern": lora["rank_pattern"],
        "lora_alpha_pattern": lora["alpha_pattern"],
        **({"peft_use_rslora": True} if "use_rslora" in lora else {}),
    }
    return as_yaml(
        settings,
        [
            "Axolotl 0.18.0 or newer",
            *adapter.task_comments("Axolotl"),
            *adapter.base_model_comments,
        ],
    )


def _unsloth(adapter: _Adapter) -> str:
    _refuse_experts(adapter, tool="Unsloth")
    if dotted := [name for name in adapter.lora["target_modules"] if "." in name]:
        raise InvalidOption(
            f"Unsloth takes leaf names as target modules, and {dotted[0]!r} is none; "
            "load the adapter folder instead"
        )
    loader = _unsloth_loader(adapter)
    lines = [
        f"from unsloth import {loader}",
        "",
        f"lora = {pformat(adapter.lora | _unsloth_saves(adapter), width=92, sort_dicts=False)}",
        f"# model, tokenizer = {loader}.from_pretrained(...)",
        f"model = {loader}.get_peft_model(model, **lora)",
    ]
    notes = [*adapter.task_comments("Unsloth"), *adapter.comments]
    return _commented(notes) + "\n".join(lines) + "\n"


def _unsloth_loader(adapter: _Adapter) -> str:
    """The class by which Unsloth loads the model that was measured.

    What sees or hears, which transformers calls so, is loaded with its towers by `FastVisionModel`;
    by the other it would be the text model alone, in which names are others (Unsloth's
    ``models/loader.py``).

    Returns:
        Its name.
    """
    model_class = adapter.plan.provenance.get(MODEL_CLASS)
    is_decoder = adapter.config["task_type"] != "SEQ_2_SEQ_LM"
    sees = is_decoder and str(model_class).endswith("ForConditionalGeneration")
    return "FastVisionModel" if sees else "FastLanguageModel"


def _unsloth_saves(adapter: _Adapter) -> dict[str, list[str]]:
    """The modules that train whole, by the names that Unsloth takes.

    Returns:
        The argument; none where nothing trains whole.

    Raises:
        InvalidOption: It takes one of them by no name.
    """
    leaves = {name: name.rpartition(".")[2] for name in adapter.saved}
    for name, leaf in leaves.items():
        if leaf not in UNSLOTH_SAVES:
            raise InvalidOption(
                f"Unsloth trains {' and '.join(UNSLOTH_SAVES)} whole and nothing else, and this plan's "
                f"modules_to_save have {name!r}; load the adapter folder in PEFT"
            )
    return {"modules_to_save": sorted(leaves.values())} if leaves else {}


def _trl(adapter: _Adapter) -> str:
    settings = adapter.lora | {"task_type": adapter.config["task_type"]}
    other_task = adapter.task_comments("SFTTrainer")
    lines = [
        "from peft import LoraConfig",
        "",
        f"lora = {pformat(settings, width=92, sort_dicts=False)}",
        "peft_config = LoraConfig(**lora)",
        "# model = get_peft_model(model, peft_config)"
        if other_task
        else "# trainer = SFTTrainer(model=..., train_dataset=..., peft_config=peft_config)",
    ]
    return _commented([*other_task, *adapter.comments]) + "\n".join(lines) + "\n"


def _llama_factory(adapter: _Adapter) -> str:
    settings = {
        "model_name_or_path": adapter.base_model,
        "finetuning_type": "lora",
        "adapter_name_or_path": adapter.place,
        "create_new_adapter": False,
    }
    notes = [*adapter.task_comments("LLaMA-Factory"), *adapter.place_comments(NEEDS_WEIGHTS)]
    notes += adapter.saved_comments
    return as_yaml(settings, [*notes, *adapter.base_model_comments])


def _ms_swift(adapter: _Adapter) -> str:
    model, place = shlex.quote(adapter.base_model), shlex.quote(adapter.place)
    notes = [*adapter.task_comments("ms-swift"), *adapter.place_comments(NEEDS_WEIGHTS)]
    notes += [*adapter.saved_comments, *adapter.base_model_comments]
    return _commented(notes) + f"--model {model} --adapters {place}\n"


def _vllm(adapter: _Adapter) -> str:
    """What a vLLM server must be told.

    Returns:
        The text.

    Raises:
        InvalidOption: The plan has modules that train whole, or a rank above all that it allows.
    """
    if adapter.saved:
        raise InvalidOption(
            f"vLLM serves no adapter with modules_to_save, and this one has {adapter.saved[0]!r}: merge "
            "it into the base model (merge_and_unload) and serve that; a plan of a language model without "
            "modules_to_save needs no merge"
        )
    rank = server_rank(adapter.plan)
    comments = [
        *adapter.place_comments("is the trained adapter"),
        "before vLLM 0.32 patterns are not read; the one scale of all modules keeps it right"
        if adapter.plan.scaling == "constant"
        else "vLLM 0.32 or newer: before, patterns are not read and scales would be wrong",
        *([VLLM_EXPERTS] if adapter.has_experts else []),
        *adapter.comments,
    ]
    arguments = f"--enable-lora --max-lora-rank {rank} --lora-modules "
    arguments += shlex.quote(f"fimlora={adapter.place}")
    return _commented(comments) + arguments + "\n"


def server_rank(plan: RankPlan) -> int:
    """The rank that a vLLM server must allow for a plan.

    Args:
        plan: The plan.

    Returns:
        The smallest ``--max-lora-rank`` that no module exceeds.

    Raises:
        InvalidOption: A module's rank is above all that vLLM allows.
    """
    highest = max(plan.ranks.values())
    for rank in SERVER_RANKS:
        if rank >= highest:
            return rank
    raise InvalidOption(
        f"vLLM serves ranks up to {SERVER_RANKS[-1]}, the plan goes up to {highest}"
    )


def _require_whole_alphas(adapter: _Adapter, *, tool: str) -> None:
    """Refuse a plan with an alpha that a tool would round.

    Raises:
        InvalidOption: An alpha is not an integer.
    """
    for alpha in (adapter.config["lora_alpha"], *adapter.config["alpha_pattern"].values()):
        if alpha != int(alpha):
            raise InvalidOption(
                f"{tool} takes whole alphas only, and one of this plan is {alpha:g}: give a whole "
                "scale or alpha"
            )


def _refuse_experts(adapter: _Adapter, *, tool: str) -> None:
    """Refuse a plan with fused experts to a tool that is not known to take them.

    Raises:
        InvalidOption: It has some.
    """
    if adapter.has_experts:
        raise InvalidOption(
            f"{tool} is not known to take target_parameters, and this plan has fused experts: load "
            "the adapter folder in PEFT, or plan without target_parameters"
        )


def _commented(lines: list[str]) -> str:
    return "".join(f"# {line}\n" for line in lines)


# Tools that make an adapter of their own from these, and know nothing of initial weights.
_WITHOUT_WEIGHTS = frozenset({"peft", "layout-c", "trl"})
_Writer = Callable[[_Adapter], str]

FORMATS: dict[str, tuple[_Writer, str, str]] = {
    "peft": (_peft, JSON, "adapter_config.json"),
    "layout-c": (_layout_c, JSON, "adapter_config.json"),
    "adalora": (_adalora, JSON, "adapter_config.json"),
    "axolotl": (_axolotl, YAML, "axolotl.yaml"),
    "llama-factory": (_llama_factory, YAML, "llama_factory.yaml"),
    "ms-swift": (_ms_swift, TEXT, "ms_swift.txt"),
    "trl": (_trl, PYTHON, "lora_config.py"),
    "unsloth": (_unsloth, PYTHON, "lora_unsloth.py"),
    "vllm": (_vllm, TEXT, "vllm.txt"),
}
