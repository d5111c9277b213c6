"""A run goes no further than what is asked of it needs: forward only, where that is enough."""

import pytest
import torch

from fimlora import Settings, Statistics, allocate, measure, measure_streamed, score
from fimlora.errors import InvalidOption
from fimlora.measuring.settings import OnBatch
from fimlora.methods.registry import METHODS, estimator_for, passes_needed, records_needed
from fimlora.methods.score import obstacle
from fimlora.statistics.options import Estimator, Passes, Record
from support.models import TINY_MODELS, make_batch, tiny
from support.statistics import assert_close, assert_identical
from support.streaming import quiet, save

__all__ = ["quiet"]  # a fixture of every test here

FORWARD = {"estimator": "none", "record": "moments"}
GROUPS = ("input_squares", "token_counts")
# Long and uneven enough that padding is cut and batches fall into several passes.
LENGTHS = ([30, 9, 7, 3], [6, 31, 3], [8, 8, 2])


class StopError(Exception):
    """What a caller ends a run with."""


def stop_after(n_calls: int) -> OnBatch:
    """End a run at the so-manieth report."""
    calls = []

    def on_batch(done: int, expected: int) -> None:
        calls.append((done, expected))
        if len(calls) == n_calls:
            raise StopError

    return on_batch


def batches_for(name: str) -> list[dict]:
    return [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_forward_alone_sees_the_inputs_that_a_backward_pass_sees(name, tmp_path):
    """On each architecture; streamed they are the same to the last bit."""
    model, targets = tiny(name)
    resident, batches = save(model, tmp_path), batches_for(name)
    options = {"target_modules": targets, **FORWARD}

    found = measure(resident, batches, **options)

    both = measure(resident, batches, **options | {"estimator": "exact"})
    assert_close(found, both, 1e-5, groups=GROUPS)
    for what in ("modules", "n_examples", "n_batches", "loss", "base_parameters"):
        assert getattr(found, what) == getattr(both, what)
    assert not found.row_energies
    assert found.estimator is Estimator.NONE
    assert_identical(measure_streamed(tmp_path, batches, Settings(**options)), found)


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_no_graph_is_built(executor, tmp_path):
    """No module's output ever needs a gradient, and none is asked for."""
    model, targets = tiny("llama_gqa_lm")
    save(model, tmp_path)
    seen = []

    def hook(module: torch.nn.Module, args: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            seen.append((torch.is_grad_enabled(), output.requires_grad))

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        run(executor, model, tmp_path, target_modules=targets, **FORWARD)
        forward, seen = seen, []
        run(executor, model, tmp_path, target_modules=targets, record="moments")
    finally:
        handle.remove()

    assert forward
    assert not any(grad or needs for grad, needs in forward)
    assert any(needs for _, needs in seen), "the hook would have seen a graph"


def run(executor: str, model, folder, **options) -> Statistics:
    """Measure by an executor."""
    batches = batches_for("llama_gqa_lm")
    if executor == "resident":
        return measure(model, batches, **options)
    return measure_streamed(folder, batches, Settings(**options))


@pytest.mark.parametrize("executor", ["resident", "streamed"])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_forward_run_that_was_cut_off_goes_on(executor, halves, after, tmp_path):
    """To the same bytes, wherever it was."""
    model, targets = tiny("llama_gqa_lm")
    model = save(model, tmp_path)
    options = {"target_modules": targets, "halves": halves, **FORWARD}
    file, calls = tmp_path / "sums.safetensors", []
    with pytest.raises(StopError):
        run(
            executor, model, tmp_path, progress_file=file, on_batch=stop_after(after), **options
        )
    assert file.exists()

    resumed = run(
        executor, model, tmp_path, progress_file=file, **options,
        on_batch=lambda done, expected: calls.append(done),
    )  # fmt: skip

    assert_identical(resumed, run(executor, model, tmp_path, **options))
    assert len(calls) < 3


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_micro_batches_change_nothing(executor, tmp_path):
    """Up to rounding, whatever goes through the model at once."""
    model, targets = tiny("llama_gqa_lm")
    model = save(model, tmp_path)
    options = {"target_modules": targets, "halves": True, **FORWARD}

    whole, *others = (
        run(executor, model, tmp_path, micro_batch_size=size, **options)
        for size in (None, 1, 3)
    )

    for other in others:
        assert_close(other, whole, 1e-5, groups=GROUPS)
        for half, theirs in zip(other.halves, whole.halves, strict=True):
            assert_close(half, theirs, 1e-5, groups=GROUPS)


class Unread:
    """Batches that nobody may look at."""

    def __iter__(self):
        raise AssertionError("a batch was asked for")


@pytest.mark.parametrize("name", ["bert_classifier", "llama_gqa_lm", "gpt2_lm"])
def test_weights_alone_take_no_batch(name, tmp_path):
    """Resident, streamed block by block, and from where a streamed run was cut off."""
    model, targets = tiny(name)
    resident, file = save(model, tmp_path), tmp_path / "sums.safetensors"
    options = {"target_modules": targets, "estimator": "none", "record": "weight_condition"}

    found = measure(resident, Unread(), halves=True, null=True, **options)
    streamed = measure_streamed(tmp_path, Unread(), Settings(halves=True, null=True, **options))
    cut = Settings(progress_file=file, on_batch=stop_after(1), **options)
    with pytest.raises(StopError):
        measure_streamed(tmp_path, Unread(), cut)
    resumed = measure_streamed(tmp_path, Unread(), Settings(progress_file=file, **options))

    assert_identical(streamed, found)
    assert (found.n_examples, found.n_batches, found.loss) == (0, 0, "none")
    assert (found.halves, found.null) == (None, None)
    assert found.no_null == "no gradient was measured, and no label moves anything else"
    assert_identical(resumed, measure(resident, Unread(), **options))


def test_without_gradients_there_is_no_null():
    """Labels of other examples would move nothing: the reason is in the statistics."""
    model, targets = tiny("bert_classifier")

    found = measure(
        model, batches_for("bert_classifier"), target_modules=targets, null=True, **FORWARD
    )

    assert found.null is None
    assert found.no_null == "no gradient was measured, and no label moves anything else"


def test_a_run_without_an_estimator_must_record_something():
    """It would go through all batches for nothing."""
    with pytest.raises(InvalidOption, match="estimator='none' leaves nothing to measure"):
        Settings(estimator="none")


def test_methods_of_gradients_say_what_they_lack():
    """The controls go by no score and give their plans; what reads gradients is refused."""
    model, targets = tiny("bert_classifier")
    found = measure(model, batches_for("bert_classifier"), target_modules=targets, **FORWARD)

    assert "measure with estimator='auto'" in obstacle(found, "fim")
    with pytest.raises(InvalidOption, match="needs gradients of the loss"):
        score(found)
    plan = allocate(score(found, "uniform"), 3)
    assert set(plan.ranks.values()) == {3}
    assert set(plan.scores.values()) == {1.0}


def test_a_file_of_such_statistics_reads_as_it_was_written(tmp_path):
    """With no sums of gradients in it."""
    model, targets = tiny("bert_classifier")
    found = measure(model, batches_for("bert_classifier"), target_modules=targets, **FORWARD)

    found.save(tmp_path / "statistics.safetensors")

    assert_identical(
        Statistics.load(tmp_path / "statistics.safetensors"), found, in_order=False
    )


def test_passes_are_the_most_that_anything_asked_for_needs():
    """Of records, estimators and methods; controls show what others have measured."""
    of = [Settings(estimator=e, record=r).passes for e, r in (
        ("none", "moments"), ("none", ["moments", "spectra"]), ("exact", "moments"), ("auto", ()),
    )]  # fmt: skip

    assert of == [Passes.FORWARD, Passes.BACKWARD, Passes.BACKWARD, Passes.BACKWARD]
    assert Record.SPECTRA.passes is Passes.BACKWARD
    assert Passes.most([]) is Passes.NONE
    assert passes_needed("fim") is passes_needed("uniform") is Passes.BACKWARD
    assert passes_needed(*METHODS) is Passes.BACKWARD


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_run_goes_as_far_as_its_method_says(name):
    """What is recorded for a method asks for no pass that the table does not name, nor for less."""
    wanted = Settings(estimator=estimator_for(name, "auto"), record=records_needed(name))

    assert wanted.passes is METHODS[name].passes
