"""A model of which accelerate keeps weights elsewhere is measured as if it held them."""

import pytest
from accelerate import dispatch_model

from fimlora import measure
from support.models import make_batch, tiny
from support.statistics import assert_identical

REST = {"model.norm": "cpu", "model.rotary_emb": "cpu"}


@pytest.mark.parametrize("name", ["llama_gqa_lm", "llama_tied_lm"])
@pytest.mark.parametrize(
    "places",
    [
        {"model.embed_tokens": "disk", "model.layers": "cpu", "lm_head": "disk"},
        {"model.embed_tokens": "disk", "model.layers": "disk", "lm_head": "disk"},
        {"model.embed_tokens": "cpu", "model.layers": "disk", "lm_head": "cpu"},
    ],
    ids=["embeddings and head", "all", "blocks"],
)
def test_statistics_are_those_of_the_model_in_memory(name, places, tmp_path):
    """To the last bit, with a progress file, and the shared embedding counted once."""
    batches = [make_batch(name, [21, 9, 7, 3]), make_batch(name, [12, 4], seed=1)]
    wanted = measure(tiny(name)[0], batches, target_modules="all-linear")
    model = dispatch_model(
        tiny(name)[0], places | REST, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    assert any(parameter.is_meta for parameter in model.parameters())

    found = measure(
        model, batches, target_modules="all-linear", progress_file=tmp_path / "progress"
    )

    assert_identical(found, wanted)
