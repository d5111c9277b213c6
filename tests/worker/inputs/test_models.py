"""Which model folders are loaded, how, and which are refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fimlora.errors import InvalidCheckpoint
from fimlora_jobs.datasets.folders import FolderDigests
from fimlora_worker.errors import ModelMissing, UnsafeWeights, UnsupportedArchitecture
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.heads import ModelRequest
from fimlora_worker.inputs.model_cache import ModelCache
from fimlora_worker.inputs.models import (
    find_model,
    load_model,
    load_tokenizer,
    longest_input,
    padding_id,
    read_config,
    weight_bytes,
)
from fimlora_worker.settings import Settings

CLASSIFIER = ModelRequest(
    "sha256:0", "sequence_classification", "float32", "cpu", 3, "single_label_classification"
)
LM = ModelRequest("sha256:0", "causal_lm", "float32", "cpu")


@pytest.fixture
def folder(model_folders: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder that a test may spoil."""
    return shutil.copytree(model_folders / "tiny", tmp_path / "tiny")


def change_config(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def load(folder: Path, request: ModelRequest):
    return load_model(folder, read_config(folder), request).model


def outline(folder: Path, request: ModelRequest):
    config = read_config(folder)
    return BaseModel(folder, config, request, 0, ModelCache(limit_bytes=0)).skeleton


def test_a_new_head_is_the_same_in_every_process(folder):
    """Whatever was drawn before, and the caller's own stream is left as it was."""
    heads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        heads.append(load(folder, CLASSIFIER).classifier.weight)
        assert torch.equal(torch.random.get_rng_state(), before)

    assert heads[0].shape[0] == 3
    assert torch.equal(heads[0], heads[1])


def test_the_weights_are_those_of_the_checkpoint(folder):
    """Everything but the head comes from the file, in the dtype asked for."""
    model = load(folder, ModelRequest("d", "sequence_classification", "bfloat16", "cpu", 2))
    weights = load_file(folder / "model.safetensors")

    name = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(model.bert.get_parameter(name), weights[name].bfloat16())
    assert not model.training


def test_a_decoder_without_pad_token_pads_with_its_end(model_folders):
    """Padding needs some token; it is masked and never predicted."""
    tokenizer = load_tokenizer(model_folders / "decoder")

    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 4
    assert tokenizer.padding_side == "right"


def test_inputs_are_never_longer_than_the_model_has_positions(model_folders):
    """The shortest of what is asked for, the tokenizer and the positions."""
    tokenizer = load_tokenizer(model_folders / "tiny")
    config = read_config(model_folders / "tiny")

    assert [longest_input(n, tokenizer, config, None) for n in (16, 512)] == [16, 64]
    assert [longest_input(n, tokenizer, config, 62) for n in (16, 512)] == [16, 62]
    config.max_position_embeddings = -1  # as XLNet says that there is no limit
    assert longest_input(32, tokenizer, config, None) == 32


@pytest.mark.parametrize(
    ("n_ids", "found"), [(None, 6), (7, 6), (6, 4), (5, 4), (4, 1), (1, 0)]
)
def test_padding_is_a_token_that_the_model_knows(n_ids, found):
    """The tokenizer's own, else its end, else its unknown token, else any."""
    tokenizer = SimpleNamespace(pad_token_id=6, eos_token_id=4, unk_token_id=1)

    assert padding_id(tokenizer, n_ids) == found


def test_pickled_weights_are_never_read(folder):
    """A checkpoint without safetensors is refused by name of what it has."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(
        UnsafeWeights, match=r"no \*.safetensors file, only .*pytorch_model.bin"
    ):
        weight_bytes(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "own", "auto_map": {"AutoModel": "evil.Model"}},
            "brings code of its own .*no model type 'own'",
        ),
        ({"model_type": "no_such_model"}, "no model type 'no_such_model'"),
    ],
)
def test_models_that_transformers_does_not_know_are_refused(folder, fields, message):
    """Nothing that comes with a model is ever run."""
    change_config(folder, **fields)

    with pytest.raises(UnsupportedArchitecture, match=message):
        read_config(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": "six"}, "num_hidden_layers='six'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
        ({"text_config": {"num_experts": 10**9}}, "asks for num_experts=1000000000"),
        ({"hidden_size": -8, "num_attention_heads": 1}, "hidden_size=-8"),
        ({"hidden_act": "no_such"}, "no_such"),
        ({"type_vocab_size": -2}, "transformers cannot load this bert model"),
        ({"attention_probs_dropout_prob": 7}, "attention_probs_dropout_prob=7"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused_at_once(folder, fields, message):
    """By the code of a wrong model, not as a fault of the worker, nor after hours of work."""
    change_config(folder, **fields)

    with pytest.raises(UnsupportedArchitecture, match=message):
        load(folder, CLASSIFIER)


def test_code_of_a_model_that_transformers_has_is_never_run(folder, tmp_path):
    """It loads as if it brought none; the code would leave a file behind."""
    wanted = load(folder, CLASSIFIER).state_dict()
    marker = tmp_path / "was run"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Own: pass\n")
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    change_config(folder, auto_map=dict.fromkeys(names, "own.Own"))
    own_tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    own_tokenizer["auto_map"] = {"AutoTokenizer": ["own.Own", "own.Own"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(own_tokenizer))

    config = read_config(folder)
    found = load_model(folder, config, CLASSIFIER).model
    streamed = outline(folder, CLASSIFIER)
    tokenizer = load_tokenizer(folder)

    assert type(found) is type(streamed) is transformers.BertForSequenceClassification
    assert all(torch.equal(tensor, wanted[n]) for n, tensor in found.state_dict().items())
    assert tokenizer("w1")["input_ids"]
    assert not marker.exists()


@pytest.mark.parametrize("fields", [{"num_hidden_layers": n} for n in (3, 1, 0, -1)], ids=str)
@pytest.mark.parametrize("build", [load, outline])
def test_another_number_of_layers_than_the_checkpoint_has_is_refused(folder, fields, build):
    """Too many would be drawn at random, too few would be another model."""
    change_config(folder, **fields)

    with pytest.raises(
        (InvalidCheckpoint, UnsupportedArchitecture),
        match=r"encoder\.layer\.1\.|num_hidden_layers|lacks weights",
    ):
        build(folder, CLASSIFIER)


def test_weights_that_are_cut_off_are_refused(folder):
    """A copy that was broken off is no fault of the worker."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(
        UnsafeWeights, match=r"model\.safetensors is not a sound safetensors file"
    ):
        load(folder, CLASSIFIER)


def test_an_adapter_is_no_base_model(folder):
    """Loading it would silently fetch the base model it names."""
    (folder / "adapter_config.json").write_text("{}")

    with pytest.raises(UnsupportedArchitecture, match="give its base model instead"):
        read_config(folder)


def test_an_encoder_is_no_language_model(folder):
    """It would see the tokens it is asked to predict."""
    with pytest.raises(UnsupportedArchitecture, match="bert is no causal language model"):
        load(folder, LM)


def test_a_checkpoint_with_missing_weights_is_refused(folder):
    """Only a new head may be drawn at random, not half of the model."""
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.1.attention.self.query.weight"
    kept = {key: value for key, value in weights.items() if key != name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(InvalidCheckpoint, match=f"lacks weights of .*{name}"):
        load(folder, CLASSIFIER)


def test_weights_of_another_shape_are_refused(folder):
    """A config that does not fit its checkpoint must not give random layers."""
    change_config(folder, intermediate_size=32)

    with pytest.raises(InvalidCheckpoint, match="lacks weights"):
        load(folder, CLASSIFIER)


def test_a_registered_model_is_found_by_name_and_content(model_folders, tmp_path):
    """The digest that the job was accepted with must still be the folder's."""
    (tmp_path / "models").symlink_to(model_folders)
    settings, digests = Settings(data_dir=tmp_path), FolderDigests()
    digest = digests.of_model(model_folders / "tiny")

    found = find_model({"name": "tiny", "digest": digest}, settings, digests)
    assert found == (model_folders / "tiny").resolve()
    with pytest.raises(ModelMissing, match="has changed"):
        find_model({"name": "tiny", "digest": "sha256:0"}, settings, digests)
    with pytest.raises(ModelMissing, match="no model folder 'other'"):
        find_model({"name": "other", "digest": digest}, settings, digests)


def test_the_least_recently_used_model_makes_room():
    """What is used again stays; one value may be larger than the limit."""
    cache = ModelCache(limit_bytes=10)
    loads = []

    def get(name: str, size: int) -> str:
        return cache.get(name, size=size, load=lambda: loads.append(name) or name)

    for name in ("a", "b", "a", "c", "a", "b"):  # c pushes b out, not a
        assert get(name, 5) == name
    get("huge", 50)
    get("a", 5)

    assert loads == ["a", "b", "c", "b", "huge", "a"]
