"""Reading an adapter's files back: what is refused, and by which words."""

import json

import pytest

from fimlora.adapter.read import load_plan, read_adapter_config
from fimlora.allocation import allocate
from fimlora.errors import InvalidAdapter
from support.adapters import config_of, write
from support.plans import SCORES


@pytest.fixture
def plan():
    return allocate(SCORES, 8, provenance={"estimator": "exact", "n_batches": 8})


def test_json_round_trip(plan, tmp_path):
    """Through text and back the plan is equal, from the file or from its folder."""
    (tmp_path / "rank_map.json").write_text(json.dumps(plan.to_json()))

    assert load_plan(tmp_path) == plan
    assert load_plan(str(tmp_path / "rank_map.json")) == plan


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "cannot read"),
        ("[]", "expected a rank map object"),
        ("{}", "format None is not a rank map"),
        ('{"format": "fimlora.rank_map/1"}', "lacks or misuses a field"),
        ('{"format": "fimlora.rank_map/1", "budget": 3}', "lacks or misuses a field"),
    ],
)
def test_a_file_that_is_no_rank_map_is_refused(content, message, tmp_path):
    """Missing, broken, foreign or incomplete: one typed error that says which."""
    if content is not None:
        (tmp_path / "rank_map.json").write_text(content)

    with pytest.raises(InvalidAdapter, match=message):
        load_plan(tmp_path)


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("anchor", ["", "^"])
def test_keys_with_the_wrappers_prefix_are_refused(field, anchor, tmp_path):
    """PEFT ignores them without a word; the error names the fix."""
    write("llama_gqa_lm", tmp_path / "a")
    config = config_of(tmp_path / "a")
    config[field] = {f"{anchor}base_model.model.{k}": v for k, v in config[field].items()}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))

    with pytest.raises(InvalidAdapter, match="remove that prefix"):
        read_adapter_config(tmp_path / "a")
    with pytest.raises(InvalidAdapter, match="remove that prefix"):
        load_plan(tmp_path / "a")


def test_a_config_that_is_no_config_is_refused(tmp_path):
    """Missing, broken, or something else."""
    with pytest.raises(InvalidAdapter, match="cannot read"):
        read_adapter_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(InvalidAdapter, match="cannot read"):
        read_adapter_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(InvalidAdapter, match="expected an object"):
        read_adapter_config(tmp_path / "adapter_config.json")
