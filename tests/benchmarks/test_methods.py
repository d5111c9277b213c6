"""The benchmark of all methods takes them from the registry, and each of them can be run by it."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from fimlora.methods.registry import METHODS
from support.models import make_batch, tiny

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = ("methods", "measure", "cases", "floors")


@pytest.fixture
def methods(monkeypatch):
    """The script, which imports those beside it by their plain names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("methods")
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def test_every_method_that_goes_by_a_score_is_a_way(methods):
    """Alone, and in the one that takes all of them."""
    wanted = [name for name in METHODS if name not in {"uniform", "random"}]

    assert [way for way in methods.all_ways() if way in METHODS] == wanted
    assert list(methods.methods_of("all")) == wanted


def test_each_kind_of_way_takes_the_passes_it_is_timed_for(methods):
    """The bare passes; a method of weights alone; all of activations; all that there are."""
    model, _ = tiny("llama_gqa_lm")
    batches = [make_batch("llama_gqa_lm", [9, 7, 5], seed=seed) for seed in range(2)]
    passes = {}

    for way in (methods.FORWARD, methods.BACKWARD, "kappa", "all of activations", "all"):
        shared = methods.share_weights(model)
        seen = []
        shared.get_input_embeddings().register_forward_hook(
            lambda *_, seen=seen: seen.append(torch.is_grad_enabled())
        )
        methods.make_way(way, shared, exact=False)(batches)
        passes[way] = seen

    assert passes["kappa"] == []
    assert passes[methods.FORWARD] == [False] * len(batches)
    assert passes[methods.BACKWARD] == [True] * len(batches)
    assert len(passes["all of activations"]) >= len(batches)
    assert not any(passes["all of activations"])
    assert len(passes["all"]) >= len(batches)
    assert any(passes["all"])
