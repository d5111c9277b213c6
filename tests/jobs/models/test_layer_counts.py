"""A checkpoint has as many layers as its configuration says, in every family."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers.core_model_loading import revert_weight_conversion

from families.registry import FAMILIES
from fimlora_jobs.models.layer_counts import LAYERS, OF_HALF, check_layers
from fimlora_jobs.models.refusal import ModelRefused

ALL_COUNTS = {*LAYERS, *OF_HALF["encoder"], *OF_HALF["decoder"]}
# A layer that is stored once, a count that only a list of kinds has, and two that say of one
# layer that it may be ahead.
UNCOUNTED = {"albert", "nemotron_h", "deepseek_v3", "glm4_moe"}
Shapes = dict[str, tuple[int, ...]]


def checkpoint(name: str) -> tuple[dict[str, Any], Shapes]:
    """What a tiny model of a family saves: its configuration, and shapes by name."""
    family = FAMILIES[name]
    with torch.device("meta"):
        config = family.config()
        model = family.pretrained_class(config)
    saved = revert_weight_conversion(model, model.state_dict())
    content = json.loads(config.to_json_string()) | {"model_type": family.model_type}
    return content, {name: tuple(tensor.shape) for name, tensor in saved.items()}


def changed(config: Mapping[str, Any], by: int) -> dict[str, Any]:
    """The same with another number of layers, in whatever part text goes through."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and "vision" not in key and "audio" not in key:
            found[key] = changed(value, by)
        else:
            found[key] = value + by if key in ALL_COUNTS and type(value) is int else value
    return found


@pytest.mark.filterwarnings("ignore")  # those of the models
def test_every_family_is_counted_by_its_own_configuration():
    """As it is it passes; with one layer more or less in the configuration it does not."""
    assert len(FAMILIES) > 150
    uncounted = set()
    for name in FAMILIES:
        config, shapes = checkpoint(name)
        check_layers(config, shapes)
        for by in (-1, 1):
            try:
                check_layers(changed(config, by), shapes)
            except ModelRefused:
                continue
            uncounted.add(config["model_type"])
    assert uncounted == UNCOUNTED


def stack(name: str, n: int, *more: str) -> Shapes:
    """Weights of a stack of layers."""
    inner = more or ("self_attn.q_proj",)
    return {f"{name}.{i}.{part}.weight": (8, 8) for i in range(n) for part in inner}


AHEAD = {f"model.layers.4.{part}.weight": (8, 8) for part in ("eh_proj", "enorm", "mlp.gate")}


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        ({"num_hidden_layers": 4}, stack("model.layers", 4) | AHEAD),
        (
            {"num_hidden_layers": 4, "num_nextn_predict_layers": 1},
            stack("model.layers", 4) | AHEAD,
        ),
        ({"num_hidden_layers": 4, "num_nextn_predict_layers": 2}, stack("model.layers", 6)),
        ({"num_hidden_layers": 4}, stack("model.layers", 4) | stack("mtp.layers", 2)),
        (
            {"num_hidden_layers": 2, "n_routed_experts": 64},
            stack("model.layers", 2, *(f"mlp.experts.{e}.up_proj" for e in range(64))),
        ),
        (
            {"text_config": {"num_hidden_layers": 2}, "vision_config": {"depth": 9}},
            stack("model.language_model.layers", 2) | stack("model.visual.blocks", 9),
        ),
        (
            {"num_hidden_layers": 2, "vision_config": {"depth": 9}},
            stack("model.layers", 2) | stack("visual.blocks", 9),
        ),
        (
            {"vision_config": {"num_hidden_layers": 2}, "text_config": {"model_type": "llama"}},
            stack("language_model.model.layers", 32) | stack("vision_tower.layers", 2),
        ),
        (
            {"num_layers": 3, "num_decoder_layers": 5},
            stack("encoder.block", 3) | stack("decoder.block", 5),
        ),
        ({"num_layers": 3}, stack("encoder.block", 3) | stack("decoder.block", 3)),
        (
            {"encoder_layers": 6, "decoder_layers": 1, "num_hidden_layers": 12},
            stack("model.encoder.layers", 6) | stack("model.decoder.layers", 1),
        ),
        ({"num_hidden_layers": 12}, stack("bert.encoder.layer", 12)),
        ({"num_hidden_layers": 2}, stack("h", 2) | {"conv_layers.7.weight": (4,)}),
        ({"model_type": "albert", "num_hidden_layers": 12}, stack("albert.layers", 1)),
    ],
    ids=[
        "marked-ahead", "said-ahead-and-marked", "said-ahead", "mtp-stack", "experts",
        "vision-language", "flat-vision-language", "text-count-left-out", "encoder-decoder",
        "one-count-for-both", "halves-before-both", "encoder-only", "other-stacks", "shared",
    ],
)  # fmt: skip
def test_what_belongs_together_passes(config, shapes):
    """Layers ahead, experts, towers and halves have counts of their own."""
    check_layers(config, shapes)


@pytest.mark.parametrize(
    ("config", "shapes", "named"),
    [
        ({"num_hidden_layers": 3}, stack("model.layers", 4), "num_hidden_layers=3"),
        (
            {"num_hidden_layers": 3, "num_nextn_predict_layers": 1},
            stack("model.layers", 4) | AHEAD,
            "weights for 4 layers",
        ),
        (
            {"num_hidden_layers": 4, "n_routed_experts": 64},
            stack("model.layers", 2, *(f"mlp.experts.{e}.up_proj" for e in range(64))),
            "weights for 2 layers",
        ),
        (
            {"text_config": {"num_hidden_layers": 1}, "vision_config": {"depth": 1}},
            stack("model.language_model.layers", 2) | stack("model.visual.blocks", 1),
            "model.language_model.layers.0 to model.language_model.layers.1",
        ),
        (
            {"num_layers": 1, "num_decoder_layers": 3},
            stack("encoder.block", 3) | stack("decoder.block", 3),
            "num_layers=1",
        ),
        (
            {"encoder_layers": 2, "decoder_layers": 1},
            stack("model.encoder.layers", 2) | stack("model.decoder.layers", 2),
            "decoder_layers=1",
        ),
        (
            {"decoder": {"num_hidden_layers": 1}, "encoder": {"num_hidden_layers": 2}},
            stack("model.encoder.layers", 2) | stack("model.decoder.layers", 2),
            "model.decoder.layers.0 to model.decoder.layers.1",
        ),
    ],
)
def test_what_does_not_is_refused_by_name(config, shapes, named):
    """With the field, what it says, and what there is."""
    with pytest.raises(ModelRefused) as refusal:
        check_layers(config, shapes)

    assert named in str(refusal.value)
