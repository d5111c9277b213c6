"""A module that the rows do not run is left out with its reason, never scored or fatal."""

import re

import pytest
import torch
from torch import nn

from fimlora import Settings, Statistics, measure, measure_streamed, score
from fimlora.errors import InvalidStatistics, MissingGradient
from fimlora.left_out import NOT_A_PRODUCT, OUTPUT_HEAD, UNREACHED
from support.partly_run import PARTLY_RUN, text_batch
from support.reference import lora_b_squares_by_peft, relative_error
from support.statistics import assert_close
from support.streaming import ALL, assert_same, save

FLOAT32 = 1e-5
RANK, SEED, SCALE = 4, 7, 2
BATCHES = [text_batch([21, 9, 7, 3]), text_batch([12, 4], seed=1)]


@pytest.mark.parametrize("name", sorted(PARTLY_RUN))
def test_text_reaches_the_rest_as_peft_has_it(name):
    """All-linear lists exactly the modules that PEFT would get no gradient for."""
    entry = PARTLY_RUN[name]

    statistics = measure(
        entry.build(), BATCHES, target_modules="all-linear", estimator="sampled", rank=RANK,
        seed=SEED,
    )  # fmt: skip

    linear = {
        n for n, m in entry.build().named_modules()
        if isinstance(m, nn.Linear) and n != "lm_head"
    }  # fmt: skip
    unreached = {n for n in linear if re.fullmatch(entry.unreached, n)}
    assert unreached
    refused = {n for n in linear if n.endswith("mixer.out_proj")}  # Mamba's, by PEFT
    listed = {
        n for n, reason in statistics.not_targeted.items()
        if reason != OUTPUT_HEAD and not n.rpartition(".")[0].endswith("experts")
    }  # fmt: skip
    assert listed == unreached | refused
    reason = NOT_A_PRODUCT if "router" in entry.unreached else UNREACHED
    assert {statistics.not_targeted[n] for n in unreached} == {reason}
    assert {m.name for m in statistics.modules} == linear - unreached - refused
    wanted = lora_b_squares_by_peft(
        entry.build(), BATCHES, statistics.modules, rank=RANK, seed=SEED, scale=SCALE
    )
    for module in statistics.modules:
        found = SCALE**2 * statistics.squared_gradients[module.name]
        assert relative_error(found, wanted[module.name]) <= FLOAT32, module.name


@pytest.mark.parametrize("name", sorted(PARTLY_RUN))
def test_both_executors_leave_out_the_same(name, tmp_path):
    """To the last bit, and with all that can be recorded."""
    model = save(PARTLY_RUN[name].build(), tmp_path)
    settings = {"target_modules": "all-linear", "micro_batch_size": 2, **ALL}

    streamed = measure_streamed(
        tmp_path, BATCHES, Settings(**settings), model_class=type(model)
    )

    assert_same(streamed, measure(model, BATCHES, **settings))


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_a_module_named_by_itself_is_refused(executor, tmp_path):
    """By name; a leaf that means several leaves it out."""
    model = save(PARTLY_RUN["mamba"].build(), tmp_path)

    def run(targets):
        if executor == "resident":
            return measure(model, BATCHES, target_modules=targets)
        settings = Settings(target_modules=targets)
        return measure_streamed(tmp_path, BATCHES, settings, model_class=type(model))

    with pytest.raises(MissingGradient, match=r"'backbone.layers.1.mixer.dt_proj' cannot be"):
        run(["in_proj", "layers.1.mixer.dt_proj"])
    assert len(run(["in_proj", "dt_proj"]).not_targeted) == 2


class _Routed(nn.Module):
    """Sends a batch to one of its experts; the last one is there for nobody."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.experts = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

    def forward(self, x, expert, scale):
        hidden = torch.tanh(self.first(x))
        return self.experts[int(expert[0])](hidden)


def _loss(outputs, batch):
    return outputs.flatten(1).square().sum(dim=1) * batch["scale"]


def _routed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _Routed().double()


def _batch(expert, n, seed):
    x = torch.randn(n, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale = torch.linspace(0.5, 2, n, dtype=torch.float64)
    return {"x": x, "expert": torch.full((n,), expert), "scale": scale}


@pytest.mark.parametrize("size", [None, 2])
def test_a_batch_that_does_not_reach_a_module_adds_zero(size):
    """Each example keeps its place among the energies of all."""
    batches = [_batch(1, 3, 0), _batch(0, 4, 1), _batch(1, 2, 2)]

    statistics = measure(
        _routed(), batches, target_modules="all-linear", loss_fn=_loss, micro_batch_size=size,
        **ALL,
    )  # fmt: skip

    assert statistics.not_targeted == {"experts.2": UNREACHED}
    model = _routed()
    for name in ("first", "experts.0", "experts.1"):
        wanted = torch.stack(
            [
                _gradient(model, batch, row, name)
                for batch in batches
                for row in range(len(batch["x"]))
            ]
        )
        energies = statistics.example_energies[name]
        assert relative_error(energies, wanted.square().sum(dim=(1, 2))) <= 1e-10
        rows = wanted.square().sum(dim=(0, 2))
        assert relative_error(statistics.row_energies[name], rows) <= 1e-10
        values = torch.linalg.svdvals(wanted.mean(dim=0))
        assert relative_error(statistics.spectra[name], values) <= 1e-6
    assert statistics.example_energies["experts.0"][[0, 1, 2, 7, 8]].tolist() == [0] * 5
    assert score(statistics).by_module.keys() == {"first", "experts.0", "experts.1"}


@pytest.mark.parametrize("experts", [(1, 1, 0, 1), (0, 1, 1, 1), (1, 1, 0, 0)])
def test_parts_that_reach_other_modules_add_up_to_one_run(experts, tmp_path):
    """In the model's order, with zeros for examples of the part that did not; saved, too."""
    batches = [_batch(expert, 3 + i, i) for i, expert in enumerate(experts)]
    options = {
        "target_modules": "all-linear", "estimator": "both", "rank": RANK, "loss_fn": _loss,
        "record": ["batch_energies", "projected_gradient"], "halves": True,
    }  # fmt: skip

    one, two = (
        measure(_routed(), batches[at : at + 2], first_example=first, **options)
        for at, first in ((0, 0), (2, 7))
    )
    one.save(tmp_path / "s")

    whole = measure(_routed(), batches, **options)
    assert len(one.modules) < len(whole.modules) or len(two.modules) < len(whole.modules)
    for merged in (one.merge(two), Statistics.load(tmp_path / "s").merge(two)):
        assert merged.modules == whole.modules
        assert merged.not_targeted == whole.not_targeted == {"experts.2": UNREACHED}
        assert merged.halves is not None
        assert_close(merged, whole, 1e-10)
        projected, wanted = (s.quantities["gradient_projected"] for s in (merged, whole))
        assert projected.keys() == wanted.keys() == {m.name for m in whole.modules}
        assert all(relative_error(projected[name], wanted[name]) <= 1e-6 for name in wanted)
        for mine, theirs in zip(merged.halves, whole.halves, strict=True):
            assert_close(mine, theirs, 1e-10)
            assert len(mine.example_energies["experts.0"]) == mine.n_examples


def test_another_choice_of_targets_is_not_taken_for_one_that_was_not_reached():
    """Only what no row has reached counts as zero."""
    whole = {"target_modules": "all-linear", "loss_fn": _loss}
    one = measure(_routed(), [_batch(0, 3, 0)], **whole)
    two = measure(_routed(), [_batch(1, 3, 0)], **whole)
    first = measure(_routed(), [_batch(1, 3, 0)], target_modules=["first"], loss_fn=_loss)
    excluded = measure(_routed(), [_batch(1, 3, 0)], exclude_modules=["experts.0"], **whole)

    assert len(one.merge(two).modules) == 3
    for other in (first, excluded):
        for pair in ((one, other), (other, one)):
            with pytest.raises(InvalidStatistics, match="differ in modules"):
                pair[0].merge(pair[1])
    with pytest.raises(InvalidStatistics, match="differ in not_targeted"):
        two.merge(excluded)


def _gradient(model, batch, row, name):
    model.zero_grad()
    example = {key: value[row : row + 1] for key, value in batch.items()}
    _loss(model(**example), example).sum().backward()
    weight = model.get_submodule(name).weight
    return torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
