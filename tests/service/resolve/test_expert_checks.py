"""Names of fused experts that a model cannot have: refused at once, as the engine would."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors import safe_open

from fimlora.errors import FimloraError
from fimlora.measuring.settings import Settings
from fimlora.model.experts.fused import fused_experts
from fimlora_contract.requests import CalibrationRequest
from fimlora_service.errors import ValidationFailed
from fimlora_service.resolve.expert_checks import check_fused_experts
from support.experts import MIXTURES, mixture
from support.service import CONFIG, make_model

# Models of the registry whose experts are fused in other ways than those of `MIXTURES`.
OTHERS = ("ernie4_5_moe", "jamba", "lfm2_moe", "minimax", "phimoe")
WRONG = (
    "w1", "experts.gate_proj", "expert.down_proj", "down_proj.weight", "experts.0.down_proj",
    "layers.77.mlp.experts.down_proj", "layers.1.mlpp.experts.down_proj", "self_attn.q_proj",
)  # fmt: skip
# What a checkpoint lists of two blocks with two experts each.
OF_EACH = {
    f"model.layers.{block}.mlp.experts.{expert}.{leaf}.weight": (16, 16)
    for block in (1, 2)
    for expert in (0, 1)
    for leaf in ("gate_proj", "up_proj", "down_proj")
}


def saved_shapes(model, folder: Path) -> dict[str, tuple[int, ...]]:
    """As save_pretrained writes them: it takes most fused experts apart again."""
    model.save_pretrained(folder)
    shapes = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                shapes[name] = tuple(opened.get_slice(name).get_shape())
    return shapes


def check(body, entries, shapes: Mapping[str, tuple[int, ...]]) -> None:
    request = CalibrationRequest.model_validate(body | {"target_parameters": entries})
    check_fused_experts(request, shapes=shapes)


@pytest.mark.parametrize("name", [*MIXTURES, *OTHERS])
def test_as_the_engine_refuses(body, tmp_path, name):
    """All that the model has passes, by its name and by each of its ends; what it lacks does not."""
    model = mixture(name)
    fused = list(fused_experts(model))
    assert fused
    shapes = saved_shapes(model, tmp_path)

    for entry in fused:
        parts = entry.split(".")
        check(body, [".".join(parts[start:]) for start in range(len(parts))], shapes)
    for entry in WRONG:
        with pytest.raises(FimloraError):
            Settings(target_modules=[], target_parameters=[entry]).choose(model)
        with pytest.raises(ValidationFailed) as caught:
            check(body, [fused[0], entry], shapes)
        assert caught.value.errors[0]["field"] == "body.target_parameters[1]"
        assert f"{entry!r}" in str(caught.value)


def test_near_names_and_blocks_are_said(body):
    """In the words that the parameters have once they are loaded."""
    with pytest.raises(ValidationFailed) as caught:
        check(body, ["layers.0.mlp.experts.down_proj"], OF_EACH)

    assert "['experts.down_proj'" in str(caught.value)
    assert str(caught.value).endswith("blocks with experts: 1, 2")


def test_many_blocks_are_not_all_listed(body):
    shapes = {f"model.layers.{n}.mlp.experts.down_proj": (2, 4, 4) for n in range(60)}

    with pytest.raises(ValidationFailed, match=r"0, 1, 2, 3, 4, 5, 6, 7 and 52 more$"):
        check(body, ["layers.60.mlp.experts.down_proj"], shapes)


@pytest.mark.parametrize(
    ("shapes", "fits"),
    [
        ({"layers.0.moe.gate_proj.weight": (2, 4, 4)}, ["w9", "experts.down_proj"]),
        ({"experts.0.wi.weight": (4, 4)}, ["experts.down_proj", "a.b.up_proj"]),
        ({"layers.0.experts.mystery": (2, 4, 4)}, ["mystery", "down_proj"]),
        ({"experts.down_proj": (2, 4, 4)}, ["layers.7.experts.down_proj"]),
    ],
    ids=["no experts in the names", "unknown parts", "unknown parameter", "no numbers"],
)
def test_what_is_not_certain_is_left_to_the_worker(body, shapes, fits):
    """A checkpoint of parts that nobody here knows may be loaded into anything."""
    check(body, fits, shapes)


def test_parts_that_loading_alone_calls_experts_are_left_to_the_worker(body, tmp_path):
    """What the checkpoint calls another name shows neither how they are called then."""
    model = mixture("granitemoe")

    check(body, [*fused_experts(model)], saved_shapes(model, tmp_path))


@pytest.mark.parametrize("entries", ["all", None])
def test_all_of_them_names_none(body, entries):
    check(body, entries, OF_EACH)


@pytest.mark.parametrize("path", ["/calibrate", "/estimate", "/compare", "/evaluations"])
def test_every_request_that_names_experts_is_refused(http, body, data_dir, path):
    """Before anything is queued."""
    make_model(
        data_dir / "models" / "moe",
        config=CONFIG | {"num_local_experts": 2},
        weights=OF_EACH,
    )
    change = {"base_model": "local:moe", "target_parameters": ["experts.gate_proj"]}

    answer = http.post(path, json=body | change)

    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == "body.target_parameters[0]"
    assert "experts.gate_up_proj" in answer.json()["detail"]
    assert http.get("/jobs").json()["data"] == []
