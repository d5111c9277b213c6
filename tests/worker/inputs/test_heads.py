"""Which class a checkpoint is loaded as, and which other one it could be."""

import pytest
import transformers

from fimlora_worker.inputs.heads import other_class
from support.families import build
from support.text_and_image import gemma, qwen


@pytest.mark.parametrize("pair", [qwen, gemma])
def test_a_checkpoint_for_text_and_images_has_two_classes(pair):
    """Each is the other's other, built from its own part of the configuration."""
    text, whole = pair()

    for model, other in ((text, whole), (whole, text)):
        model_class, config = other_class(whole.config, model)

        assert model_class is type(other)
        assert type(config) is type(other.config)


@pytest.mark.parametrize("name", ["gpt2", "bert", "mamba2"])
def test_other_checkpoints_have_one(name):
    """Nor has a text model's own checkpoint another."""
    model, (text, _) = build(name), gemma()

    assert other_class(model.config, model) is None
    assert other_class(text.config, text) is None
    t5 = transformers.T5Config(num_layers=1, d_model=8, d_ff=8, num_heads=1, d_kv=8)
    assert other_class(t5, transformers.T5ForConditionalGeneration(t5)) is None
