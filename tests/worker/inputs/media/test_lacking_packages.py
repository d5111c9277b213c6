"""Processors that need a package which is not here are refused by its name."""

import importlib.util
import json

import pytest
import transformers

from fimlora_worker.errors import UnsupportedArchitecture
from fimlora_worker.inputs.media.processor import load_processor
from support.seeing import make_idefics3, make_llava, make_qwen_audio, make_qwen_vl

pytest.importorskip("PIL")


def pixtral(folder):
    """As LLaVA checkpoints of Mistral have it."""
    make_llava(folder)
    reader = {"image_processor_type": "PixtralImageProcessor", "patch_size": 14}
    return {"processor_class": "PixtralProcessor", "image_processor": reader}


def smolvlm(folder):
    """Idefics 3 with words for numbers."""
    make_idefics3(folder)
    change_config(
        folder, model_type="smolvlm", architectures=["SmolVLMForConditionalGeneration"]
    )
    return {"processor_class": "SmolVLMProcessor"}


def omni(folder):
    """Sees, hears and reads videos."""
    make_qwen_vl(folder)
    transformers.Qwen2_5OmniThinkerConfig().save_pretrained(folder)
    return {"processor_class": "Qwen2_5OmniProcessor"}


def granite_speech(folder):
    """Makes its features by torchaudio."""
    make_qwen_audio(folder)
    transformers.GraniteSpeechConfig().save_pretrained(folder)
    reader = {"feature_extractor_type": "GraniteSpeechFeatureExtractor"}
    return {"processor_class": "GraniteSpeechProcessor", "feature_extractor": reader}


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("make", "package"),
    [
        (pixtral, "torchvision"), (smolvlm, "num2words"), (omni, "torchvision"),
        (granite_speech, "torchaudio"),
    ],
)  # fmt: skip
def test_what_is_lacking_is_named(tmp_path, make, package):
    """And that it is to be installed."""
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is here")
    fields = make(tmp_path)
    file = tmp_path / "processor_config.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | fields))
    config = transformers.AutoConfig.from_pretrained(tmp_path)

    with pytest.raises(UnsupportedArchitecture, match=f"(?i){package}.*install") as refused:
        load_processor(tmp_path, config)

    assert str(refused.value).startswith("the model's processor cannot be loaded: ")
    assert str(tmp_path) not in str(refused.value)
