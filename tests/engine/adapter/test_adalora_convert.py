"""AdaLoRA's matrices as plain LoRA's: the same update, and what is no such checkpoint is refused."""

import numpy as np
import pytest

from fimlora.adapter.adalora_convert import plain_lora
from fimlora.errors import InvalidAdapter, InvalidOption

CONFIG = {"peft_type": "ADALORA", "lora_alpha": 6, "init_r": 4, "task_type": "SEQ_CLS"}


def checkpoint(**changes):
    draw = np.random.default_rng(0)
    tensors = {"base_model.model.classifier.weight": draw.normal(size=(3, 5))}
    for name, E in {
        "a.b": [0.5, 0, -2, 1e-8],
        "a.c": [0, 0, 0, 0],
        "c.a.b": [1, 1, 1, 1],
    }.items():
        tensors[f"base_model.model.{name}.lora_A"] = draw.normal(size=(4, 6)).astype("f4")
        tensors[f"base_model.model.{name}.lora_B"] = draw.normal(size=(5, 4)).astype("f4")
        tensors[f"base_model.model.{name}.lora_E"] = np.array(E, "f4")[:, None]
    return tensors | changes


def test_the_update_is_the_same():
    """Against the product written out row by row in float64; rows with E = 0 are gone."""
    tensors = checkpoint()

    plain = plain_lora(tensors, CONFIG, scale=2)

    assert {n: len(A) for n, (A, _) in plain.matrices.items()} == {"a.b": 3, "c.a.b": 4}
    assert plain.left_out.keys() == {"a.c"}
    assert plain.others.keys() == {"base_model.model.classifier.weight"}
    for name, (A, B) in plain.matrices.items():
        update = np.zeros((5, 6))
        for k in range(4):
            a, b, e = (tensors[f"base_model.model.{name}.lora_{p}"] for p in "ABE")
            update += np.outer(b[:, k].astype("f8") * e[k, 0], a[k]) * 6 / (4 + 1e-5)
        np.testing.assert_allclose(2.0 * B.astype("f8") @ A, update, rtol=0, atol=1e-6)
        assert A.flags.c_contiguous
        assert B.flags.c_contiguous


def test_the_config_is_plain_lora_of_one_scale():
    """Ranks by name, a name that ends another one anchored; the widest is the default."""
    config = plain_lora(checkpoint(), CONFIG, scale=1.5).config

    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 6)
    assert config["rank_pattern"] == {"^a.b": 3}
    assert config["alpha_pattern"] == {"^a.b": 4.5}
    assert config["target_modules"] == ["a.b", "c.a.b"]


A, B, E = (f"base_model.model.a.b.lora_{p}" for p in "ABE")


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({}, {"peft_type": "LORA"}, "peft_type is 'LORA'"),
        ({}, {"lora_alpha": 0}, "lora_alpha is 0"),
        ({}, {"init_r": None}, "init_r is None"),
        ({A: np.ones((3, 6))}, {}, r"a.b: A \(3, 6\), B \(5, 4\) and E \(4, 1\) are not"),
        ({E: np.ones(4)}, {}, r"E \(4,\)"),
        ({B: np.full((5, 4), np.nan)}, {}, "a.b.lora_B holds numbers that are not finite"),
        (
            {f"base_model.model.{n}.lora_E": np.zeros((4, 1)) for n in ("a.b", "c.a.b")},
            {},
            "no module of the AdaLoRA checkpoint kept a rank",
        ),
    ],
)
def test_what_is_no_such_checkpoint_is_refused(tensors, config, message):
    """With the module and what is wrong."""
    with pytest.raises(InvalidAdapter, match=message):
        plain_lora(checkpoint(**tensors), CONFIG | config)


def test_a_missing_matrix_is_named():
    """As one that another tool has left out."""
    tensors = checkpoint()
    del tensors[E]

    with pytest.raises(InvalidAdapter, match=r"a\.b has no lora_E"):
        plain_lora(tensors, CONFIG)


def test_a_scale_is_above_zero():
    """It divides B."""
    with pytest.raises(InvalidOption, match="scale=0"):
        plain_lora(checkpoint(), CONFIG, scale=0)
