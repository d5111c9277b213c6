"""Every way to quantise that transformers knows is read as it is tested to be, or refused by name."""

import json

import pytest
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from fimlora.errors import InvalidCheckpoint
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.packed_parts import READABLE
from support.packing import PACKERS
from support.quantised import folder_of_a_model

# As a config.json has them: one method with two classes in transformers has one name there.
KNOWN = sorted({m.removesuffix("_4bit").removesuffix("_8bit") for m in AUTO_QUANTIZER_MAPPING})
# Of gpt-oss alone; test_mxfp4 packs it.
PACKED_BY_TESTS = {told["quant_method"] for _, told in PACKERS.values()} | {"mxfp4"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of_a_model(tmp_path_factory.mktemp("plain"))


def test_what_is_read_is_what_tests_pack():
    """No method is read untested, and all are ones that transformers knows."""
    assert set(READABLE) == PACKED_BY_TESTS
    assert set(READABLE) < set(KNOWN)


@pytest.mark.parametrize("method", sorted({*KNOWN, "one_of_tomorrow"} - set(READABLE)))
def test_the_others_are_refused_by_name(folder, method):
    """Whatever their tensors look like, with the next step."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method}
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(InvalidCheckpoint, match="give the unquantised model") as caught:
        Checkpoint(folder)

    assert f"quantised ({method})" in str(caught.value)
    assert all(name in str(caught.value) for name in READABLE)
