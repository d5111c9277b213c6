"""Which adapter of a folder is meant, and folders that hold none."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fimlora import verify_adapter
from fimlora.adapter.trained.read import Limits
from fimlora.adapter.verifying.folder import find_adapter, see_folder
from fimlora.adapter.verifying.intended import base_name, read_intended
from fimlora.errors import InvalidAdapter
from support.trained_adapters import edit_config, edit_tensors
from support.verifying import planned_in


@pytest.fixture
def case(tmp_path):
    return planned_in(tmp_path / "plan", weights=True)


def adapter_at(folder):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    return folder


def test_the_newest_checkpoint_is_meant(tmp_path):
    """By its number, not by its name's order or its time."""
    run = tmp_path / "run"
    newest = adapter_at(run / "checkpoint-1000")
    adapter_at(run / "checkpoint-999")
    (run / "checkpoint-2000").write_text("a file")
    adapter_at(run / "checkpoint-best")

    assert find_adapter(run) == newest


def test_the_adapter_of_a_folder_goes_before_checkpoints(tmp_path):
    run = adapter_at(tmp_path / "run")
    adapter_at(run / "checkpoint-5")

    assert find_adapter(run) == find_adapter(run / "adapter_config.json") == run


def test_one_adapter_of_another_name_is_found_and_two_are_not(tmp_path):
    inner = adapter_at(tmp_path / "run" / "mine")
    assert find_adapter(tmp_path / "run") == inner
    adapter_at(tmp_path / "run" / "other")
    with pytest.raises(InvalidAdapter, match=r"several adapters \(mine, other\)"):
        find_adapter(tmp_path / "run")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "no adapter to verify"),
        (["model.safetensors"], "merged"),
        (["model.safetensors.index.json"], "merged"),
        (["pytorch_model_fsdp_0/x"], "spread over processes"),
        (["global_step10/x"], "spread over processes"),
    ],
)
def test_a_folder_without_an_adapter_says_why(tmp_path, files, said):
    """At the top of a run, and in its newest checkpoint."""
    for folder in (tmp_path / "a", tmp_path / "b" / "checkpoint-3"):
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()

        with pytest.raises(InvalidAdapter, match=said):
            find_adapter(folder)
    with pytest.raises(InvalidAdapter, match=said):
        find_adapter(tmp_path / "b")
    with pytest.raises(InvalidAdapter, match="is no folder"):
        find_adapter(tmp_path / "nowhere")


def test_a_checkpoint_without_weights_is_not_read_as_a_config(case, tmp_path):
    """It was cut off while it was written: nothing is as planned then."""
    checkpoint = tmp_path / "run" / "checkpoint-4"
    case.folder.rename(tmp_path / "moved")
    (tmp_path / "run").mkdir()
    (tmp_path / "moved").rename(checkpoint)
    (checkpoint / "adapter_model.safetensors").unlink()

    with pytest.raises(InvalidAdapter, match=r"no adapter_model.safetensors"):
        verify_adapter(tmp_path / "run", case.plan)


def test_pickles_are_not_opened(case):
    (case.folder / "adapter_model.safetensors").rename(case.folder / "adapter_model.bin")
    with pytest.raises(InvalidAdapter, match="pickle"):
        verify_adapter(case.folder, case.plan)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.update(_a(t, torch.full((1, 40), float("nan")))), "NaN or infinite"),
        (
            lambda t: t.update(_a(t, torch.zeros(1, 40, dtype=torch.int32))),
            "no matrix of floats",
        ),
        (lambda t: t.update(_a(t, torch.zeros(40))), "no matrix of floats"),
        (lambda t: t.update(_a(t, torch.zeros(2, 40))), "2 rows and B 1 columns"),
    ],
)
def test_tensors_that_are_none_are_refused(case, edit, said):
    edit_tensors(case.folder, edit)
    with pytest.raises(InvalidAdapter, match=said):
        verify_adapter(case.folder, case.plan)


def _a(tensors, value):
    key = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    assert key in tensors
    return {key: value}


def test_half_of_a_module_and_tensors_of_nothing(case):
    """Each is a fault of its own, and all are told."""

    def edit(tensors):
        del tensors["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"]
        tensors["base_model.model.x.lora_magnitude_vector"] = torch.ones(3)

    edit_tensors(case.folder, edit)
    found = verify_adapter(case.folder, case.plan)
    assert {"tensors", "missing", "other_kind"} == {fault.code for fault in found.faults}


def test_a_head_that_is_lost_is_told(case):
    """The tensors of a module that was planned to be trained in full."""
    edit_tensors(case.folder, lambda t: t.pop("base_model.model.score.weight"))

    assert [f.code for f in verify_adapter(case.folder, case.folder).faults] == ["saved"]


def test_what_a_head_is_made_of_is_that_head(case):
    """RoBERTa's has maps inside; what is planned names the whole of it."""

    def edit(tensors):
        tensors["base_model.model.score.dense.weight"] = tensors.pop(
            "base_model.model.score.weight"
        )

    edit_tensors(case.folder, edit)
    assert verify_adapter(case.folder, case.folder).as_planned


def test_embeddings_that_peft_stores_by_itself_are_a_note(case):
    """As of a vocabulary that was resized; where somebody trains them it is a fault."""
    key = "base_model.model.model.embed_tokens.weight"
    edit_tensors(case.folder, lambda t: t.update({key: torch.ones(3, 24)}))
    plan = case.folder.parent / "planned"
    plan.mkdir()
    for name in ("rank_map.json", "adapter_config.json"):
        (plan / name).write_bytes((case.folder / name).read_bytes())

    found = verify_adapter(case.folder, plan)
    assert found.as_planned
    assert any("embed_tokens" in note for note in found.notes)
    edit_config(case.folder, modules_to_save=["score", "embed_tokens"])
    assert [f.code for f in verify_adapter(case.folder, plan).faults] == ["saved"]


def test_tensors_that_the_config_does_not_load(case):
    """Its ranks are others than by its own config: PEFT raises, and we say so before."""
    edit_config(case.folder, r=4)

    found = verify_adapter(case.folder, case.plan)
    assert "config" in {fault.code for fault in found.faults}


def test_tensors_that_the_config_leaves_aside(case):
    edit_config(case.folder, target_modules=["q_proj"])

    found = verify_adapter(case.folder, case.plan)
    assert "target_modules does not mean" in found.sentence


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "LOHA"}, "only LORA"),
        ({"peft_type": "ADALORA"}, "convert"),
        ({"r": 0}, "whole number above 0"),
        ({"rank_pattern": ["q_proj"]}, "must be an object"),
        ({"alpha_pattern": {"q_proj": "big"}}, "must be a number above 0"),
    ],
)
def test_configs_that_are_none_are_refused(case, fields, said):
    edit_config(case.folder, **fields)
    with pytest.raises(InvalidAdapter, match=said):
        verify_adapter(case.folder, case.plan)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": "other"}', '{"rank_map": {}}', "[" * 100_000]
)
def test_plans_that_are_none_are_refused(case, tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InvalidAdapter):
        verify_adapter(case.folder, tmp_path / "plan.json")


def test_a_large_adapter_is_refused_before_it_is_read(case):
    with pytest.raises(InvalidAdapter, match="tensors; allowed"):
        see_folder(case.folder, read_intended(case.plan), limits=Limits(tensors=3))


def test_the_order_of_tensors_and_extra_files_change_nothing(case):
    """The same faults, to the word."""
    first = verify_adapter(case.folder, case.plan).to_json()
    from safetensors.torch import load_file

    file = case.folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(dict(reversed(tensors.items())), file)
    (case.folder / "README.md").write_text("trained")

    assert verify_adapter(case.folder, case.plan).to_json() == first
    assert json.dumps(first)


@pytest.mark.parametrize(
    ("name", "hub_id", "revision"),
    [
        ("org/model", "org/model", None),
        (
            "/hub/models--org--model/snapshots/0123abcd0123abcd/",
            "org/model",
            "0123abcd0123abcd",
        ),
        ("/models/org/model", None, None),
        ("./org", None, None),
        ("../org/model", None, None),
        ("gpt2", None, None),
        (None, None, None),
    ],
)
def test_what_a_name_of_a_base_model_tells(name, hub_id, revision):
    found = base_name(name)
    assert (found.hub_id, found.revision) == (hub_id, revision)
