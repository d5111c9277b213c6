"""What an estimate counts of fused experts."""

from fimlora_contract.requests import CalibrationRequest
from fimlora_service.calibrations.memory import recorded_bytes

CONFIG = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
SHAPES = {
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.0.mlp.experts.down_proj": (8, 64, 128),
}


def recorded(**asked):
    request = CalibrationRequest(
        base_model="org/mixture", dataset="org/rows", budget=8, target_modules=["q_proj"],
        allocation={"method": "spectral"}, **asked,
    )  # fmt: skip
    return recorded_bytes(request, shapes=SHAPES, config=CONFIG)


def test_experts_that_are_targets_are_counted():
    """Each has a gradient of its own to sum up: eight of 64 x 128 beside one of 64 x 64."""
    without, counted = recorded(), recorded(target_parameters="all")

    assert counted.whole >= without.whole + 8 * 64 * 128 * 4
    assert counted.block >= without.block + 8 * 64 * 128 * 4
