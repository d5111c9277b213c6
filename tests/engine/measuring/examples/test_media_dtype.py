"""Images and sounds have the dtype of the layer that reads them first, as it would cast them."""

import copy

import pytest
import torch
from torch import nn

from families.media_rows import media_examples
from families.reference import load_base
from families.registry import FAMILIES
from fimlora import measure
from fimlora.measuring.examples.media_dtype import cast_media

SEEING = ("gemma3", "llava", "idefics3", "qwen2_vl", "qwen2_5_vl", "qwen2_audio", "glmasr")
# Those of them that have no cast of their own, and failed in half precision.
NO_OWN_CAST = ("glmasr",)
# Those whose tower does not say what it takes; it casts that itself, and is left alone.
SILENT = ("idefics3", "qwen2_vl", "qwen2_5_vl")


@pytest.fixture(scope="module")
def of_family(tmp_path_factory):
    """A tiny model and what its own processor makes of rows, once per family."""
    made = {}

    def find(name):
        if name not in made:
            family = FAMILIES[f"{name}/media"]
            folder = tmp_path_factory.mktemp(name)
            family.write(folder)
            model = load_base(family, folder, seed=0, dtype=torch.float32)
            made[name] = model, media_examples(family, folder)
        model, examples = made[name]
        return copy.deepcopy(model), examples

    return find


def loss_of(model, example):
    with torch.no_grad():
        return model(**example).loss


@pytest.mark.parametrize("name", SEEING)
def test_in_float32_nothing_is_touched(of_family, name):
    """The very tensors go on."""
    model, examples = of_family(name)

    for example in examples:
        cast = cast_media(model, example)
        assert cast.keys() == example.keys()
        assert all(cast[key] is example[key] for key in example)


@pytest.mark.parametrize("name", SEEING)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision_media_are_cast_and_nothing_else(of_family, name, dtype):
    """To the bit as the model casts them itself, if it does."""
    model, examples = of_family(name)
    model = model.to(dtype)
    example = examples[0]

    cast = cast_media(model, example)

    changed = {key for key in example if cast[key] is not example[key]}
    media = {"input_features" if "input_features" in example else "pixel_values"}
    assert changed == (set() if name in SILENT else media)
    assert all(cast[key].dtype is dtype for key in changed)
    if name in NO_OWN_CAST:
        with pytest.raises(RuntimeError, match="should be the same"):
            loss_of(model, example)
        assert loss_of(model, cast).isfinite()
    else:
        assert torch.equal(loss_of(model, cast), loss_of(model, example))


def test_what_could_not_be_run_is_measured(of_family):
    """With scores near those of float32."""
    model, examples = of_family("glmasr")
    options = {"target_modules": ["q_proj", "v_proj"]}
    wanted = measure(model, examples, **options)

    found = measure(model.to(torch.bfloat16), examples, **options)

    for module in wanted.modules:
        exact = wanted.row_energies[module.name].sum()
        assert found.row_energies[module.name].sum() == pytest.approx(exact, rel=0.2)


class Tower(nn.Module):
    """Takes one input, by the name that it says."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.main_input_name = name
        self.norm = nn.LayerNorm(4)  # is no layer that reads it
        self.layer = nn.Linear(4, 4, dtype=dtype)


class TwoTowers(nn.Module):
    """Sees in half precision and hears in double."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(4, 4)
        self.seeing = Tower("pixel_values", torch.bfloat16)
        self.hearing = Tower("input_features", torch.float64)


def test_each_input_goes_by_its_own_tower():
    """The text's dtype is none of it; whole numbers and what nobody names stay."""
    inputs = {
        "pixel_values": torch.rand(2, 4), "pixel_values_videos": torch.rand(2, 4),
        "input_features": torch.rand(2, 4), "input_values": torch.rand(2, 4),
        "second_per_grid_ts": torch.rand(2), "image_grid_thw": torch.ones(1, 3).long(),
        "use_cache": False,
    }  # fmt: skip

    cast = cast_media(TwoTowers(), inputs)

    assert cast["pixel_values"].dtype is torch.bfloat16
    assert cast["pixel_values_videos"].dtype is torch.bfloat16
    assert cast["input_features"].dtype is torch.float64
    for name in ("input_values", "second_per_grid_ts", "image_grid_thw", "use_cache"):
        assert cast[name] is inputs[name]
    whole = inputs | {"pixel_values": torch.ones(2, 4).long()}
    assert cast_media(TwoTowers(), whole)["pixel_values"] is whole["pixel_values"]


def test_a_packed_first_layer_says_nothing():
    model = TwoTowers()
    model.seeing.layer.weight = nn.Parameter(
        torch.ones(4, 4).to(torch.uint8), requires_grad=False
    )
    inputs = {"pixel_values": torch.rand(2, 4)}

    assert cast_media(model, inputs)["pixel_values"] is inputs["pixel_values"]
