"""POST /estimate of rows with images and sounds: what the worker will count, or a plain word."""

import pytest
import torch
import transformers

from fimlora_service.app import create_app
from fimlora_service.calibrations.shown import shown_in, shown_unread
from fimlora_worker.inputs.calibration_data import _n_patches
from fimlora_worker.inputs.media.encoding import MediaEncoder
from fimlora_worker.inputs.media.processor import load_processor
from support.seeing import MAKERS, data_url, pixels, png, wav

pytest.importorskip("PIL")
IMAGE, SOUND = data_url(png(pixels(0))), data_url(wav(0), "audio/wav")
CASES = [("llava", "image", IMAGE, "one image"), ("qwen_audio", "audio", SOUND, "one sound")]


@pytest.fixture
def app(settings, hub):
    """The app with a hub it can reach."""
    return create_app(settings.model_copy(update={"hub_endpoint": hub.url}))


def rows(**shown):
    return {"source": "inline", "rows": [{"text": f"words {n}", **shown} for n in range(4)]}


@pytest.mark.parametrize(("name", "kind", "value", "said"), CASES)
def test_what_a_tower_runs_through_is_counted(http, body, data_dir, name, kind, value, said):
    """As many positions as the worker counts of what the processor makes."""
    folder = MAKERS[name](data_dir / "models" / name)
    asked = body | {"base_model": f"local:{name}", "dataset": rows(**{kind: value})}
    asked |= {"target_modules": "all-linear"}

    short, long = (
        http.post("/estimate", json=asked | {"calibration": {"max_length": n}})
        for n in (100, 200)
    )

    assert (short.status_code, long.status_code) == (200, 200), (short.text, long.text)
    short, long = short.json()["memory"], long.json()["memory"]
    processor = load_processor(folder, transformers.AutoConfig.from_pretrained(folder))
    encoder = MediaEncoder(processor, 256)
    text = encoder.placed("words", [(kind, value)], where="row 1")
    example = encoder.encode(text, [(0, len(text))], [(kind, value)], where="row 1")
    counted = sum(
        _n_patches(v)
        for name, v in example.items()
        if isinstance(v, torch.Tensor) and "mask" not in name
    )
    assert shown_in(processor_config(folder), [kind]).positions == counted
    assert short["note"].startswith(said)
    assert f"as {counted} " in short["note"]
    # Inputs of blocks are as many as there are tokens and positions, and nothing besides.
    assert short["boundary_bytes"] * (200 + counted) == long["boundary_bytes"] * (100 + counted)
    assert short["resident_bytes"] < long["resident_bytes"]


def processor_config(folder):
    return transformers.AutoConfig.from_pretrained(folder).to_dict()


def test_images_of_any_size_are_said_not_to_be_counted(http, body, data_dir):
    """No configuration tells how large they are."""
    MAKERS["qwen_vl"](data_dir / "models" / "qwen")
    asked = body | {"base_model": "local:qwen", "dataset": rows(image=IMAGE), "target_modules": "all-linear"}  # fmt: skip

    note = http.post("/estimate", json=asked).json()["memory"]["note"]

    assert "depends on their size, which no configuration tells" in note


@pytest.mark.parametrize(
    "part",
    [None, [], {}, {"image_size": -1, "patch_size": 0}, {"image_size": "a", "patch_size": 14},
     {"image_size": 10**30, "patch_size": 1}, {"image_size": [None], "patch_size": [2]},
     {"image_size": 14, "patch_size": 28}, {"image_size": {"height": 28}, "patch_size": 14},
     {"image_size": {"height": 28, "width": "28"}, "patch_size": 14},
     {"image_size": [28, 28], "patch_size": [2, 14, 14]}, {"image_size": [[28]], "patch_size": 14},
     {"image_size": [28, 13], "patch_size": [14, 14]}, {"image_size": {}, "patch_size": {}}],
)  # fmt: skip
def test_an_odd_configuration_is_no_figure(part):
    """Nor an error."""
    found = shown_in({"vision_config": part, "audio_config": part}, ["audio", "image"])
    assert (found.positions, found.note.count("depends on")) == (0, 2)


@pytest.mark.parametrize("patch", [14, [14], [14, 14], {"height": 14, "width": 14}], ids=str)
@pytest.mark.parametrize(
    ("size", "n", "said"),
    [(28, 4, "28"), ([28], 4, "28"), ([56, 28], 8, "56 x 28"), ([28, 42], 6, "28 x 42"),
     ({"height": 56, "width": 42}, 12, "56 x 42"), ({"width": 28, "height": 28}, 4, "28")],
)  # fmt: skip
def test_sides_of_an_image_may_differ(size, n, said, patch):
    """Height and width, as a list or by name, such as InternVL and SigLIP 2 have them."""
    found = shown_in({"vision_config": {"image_size": size, "patch_size": patch}}, ["image"])

    assert found.positions == n
    assert f"as {n} patches (image_size {said}, patch_size 14)" in found.note


def test_a_tower_of_unequal_sides_has_as_many_patches():
    """As many as the model itself keeps positions for."""
    config = transformers.InternVLVisionConfig(
        image_size=[28, 56], patch_size=[14, 14], hidden_size=8, num_attention_heads=1,
        intermediate_size=8, num_hidden_layers=1,
    )  # fmt: skip
    positions = transformers.InternVLVisionModel(config).embeddings.position_embeddings

    found = shown_in({"vision_config": config.to_dict()}, ["image"])

    assert found.positions == positions.shape[1] - 1  # one is of the class


def test_rows_of_the_hub_are_counted_by_their_columns_or_said_not_to_be():
    """They are not here when an estimate is made."""
    sees = {"vision_config": {"image_size": 28, "patch_size": 14}}

    named = shown_unread(sees, ["image"])
    assert named == shown_in(sees, ["image"])
    assert named.positions == 4

    unnamed = shown_unread(sees, [])
    assert unnamed.positions == 0
    assert "rows of the hub are not read before the job, and images among them" in unnamed.note
    both = shown_unread(sees | {"audio_config": {"max_source_positions": 50}}, ["image"])
    assert both.note.startswith("one image of a row is counted, as 4 patches")
    assert "and sounds among them" in both.note
    assert shown_unread({"model_type": "llama"}, []).note is None


def test_a_dataset_of_the_hub_for_a_model_that_sees(http, body, data_dir, hub):
    """Whether its columns are named or not, the estimate says what is counted."""
    MAKERS["llava"](data_dir / "models" / "llava")
    hub.add("org/data", {"train.jsonl": b'{"text": "a"}\n'}, kind="dataset")
    asked = body | {"base_model": "local:llava", "target_modules": "all-linear"}
    notes = []
    for columns in ({}, {"text": "text", "images": "picture"}):
        dataset = {"source": "hub", "id": "org/data", "columns": columns}
        answer = http.post("/estimate", json=asked | {"dataset": dataset})
        assert answer.status_code == 200, answer.text
        notes.append(answer.json()["memory"]["note"])

    assert notes[0].startswith("rows of the hub are not read before the job")
    assert notes[1].startswith("one image of a row is counted, as 4 patches")
