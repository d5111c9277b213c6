"""Adapters of tiny models with ranks the test chooses, and what stock PEFT makes of them."""

import json

from peft import LoraConfig, get_peft_model

from fimlora import find_targets, write_adapter
from fimlora.model.targets import head_tensors
from support.models import TINY_MODELS, tiny
from support.plans import plan_of

RANKS = [3, 8, 1, 5]
# All that a written config says.
MINIMAL_FIELDS = {
    *("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha"),
    *("target_modules", "lora_dropout", "bias", "rank_pattern", "alpha_pattern"),
    *("inference_mode", "init_lora_weights", "use_rslora", "fan_in_fan_out"),
    "modules_to_save",
}


def task_of(name):
    return "CAUSAL_LM" if TINY_MODELS[name].is_causal_lm else "SEQ_CLS"


def write(name, folder, *, ranks=RANKS, scale=2, **options):
    """Write a plan for a tiny model; returns the model and the plan."""
    model, targets = tiny(name)
    plan = plan_of(find_targets(model, targets), ranks, scale=scale)
    names = [n for n, _ in model.named_modules()]
    head = head_tensors(model)
    options = {"task_type": task_of(name), "module_names": names, "head": head} | options
    write_adapter(plan, folder, base_model="org/model", **options)
    return model, plan


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def attach(model, folder):
    """A trainable adapter from the config alone."""
    config = LoraConfig.from_pretrained(folder)
    model.name_or_path = config.base_model_name_or_path  # as a downloaded model has it
    return get_peft_model(model, config)
