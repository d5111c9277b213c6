"""The estimator that a run takes by itself: one decision, the same wherever the model is."""

import pytest

from fimlora import Settings, measure, measure_folder, measure_streamed
from fimlora.errors import InvalidStatistics
from fimlora.measuring.estimator_choice import decide_estimator
from fimlora.model.targets import find_targets
from fimlora.statistics.options import Estimator
from support.models import make_batch, tiny
from support.statistics import assert_identical
from support.streaming import quiet, save

__all__ = ["quiet"]  # a fixture of every test here

SHORT, LONG = [9, 5, 7], [150, 9, 7, 3]


def batches(*all_lengths):
    return [
        make_batch("llama_gqa_lm", lengths, seed=i) for i, lengths in enumerate(all_lengths)
    ]


@pytest.mark.parametrize(("lengths", "taken"), [(SHORT, "exact"), (LONG, "sketched")])
def test_it_is_the_run_of_the_estimator_that_was_taken(lengths, taken):
    """Only the reason is added; it is in what a rank map says."""
    model, targets = tiny("llama_gqa_lm")

    found = measure(model, batches(lengths), target_modules=targets)

    assert found.estimator is Estimator(taken)
    reason = found.provenance()["estimator_reason"]
    assert reason.startswith(f"auto: at {max(lengths)} tokens, exact adds ")
    named = measure(model, batches(lengths), target_modules=targets, estimator=taken)
    assert "estimator_reason" not in named.provenance()
    for name, rows in named.row_energies.items():
        assert (found.row_energies[name] == rows).all()


@pytest.mark.parametrize("first", [SHORT, LONG])
def test_executors_decide_alike(first, tmp_path):
    """By the first batch, however long the others are and however many examples run at once."""
    model, targets = tiny("llama_gqa_lm")
    resident, both = save(model, tmp_path), batches(first, [*SHORT, 31])
    settings = Settings(target_modules=targets)

    wanted = measure(resident, both, target_modules=targets)

    assert_identical(measure_streamed(tmp_path, both, settings), wanted)
    assert_identical(measure_folder(tmp_path, both, settings, executor="streamed"), wanted)
    assert_identical(measure_folder(tmp_path, both, settings, executor="resident"), wanted)
    few = measure(model, both, target_modules=targets, micro_batch_size=1)
    assert (few.estimator, few.estimator_reason) == (wanted.estimator, wanted.estimator_reason)


def test_the_modules_and_the_rank_count():
    """Exact adds less to a pass the fewer modules are targets; a sketch more the larger it is."""
    model, _ = tiny("llama_gqa_lm")
    [batch] = batches(LONG)

    def taken(targets, **options):
        modules = find_targets(model, targets)
        return decide_estimator(Settings(**options), model, modules, batch).settings.estimator

    assert taken("all-linear") == "sketched"
    assert taken(["0.self_attn.k_proj"]) == "exact"
    assert taken("all-linear", rank=64) == "exact"
    assert taken("all-linear", rank=64, estimator="sketched") == "sketched"


class StopError(Exception):
    """What a caller ends a run with."""


@pytest.mark.parametrize("lengths", [SHORT, LONG])
def test_a_run_that_goes_on_decides_as_before(lengths, tmp_path):
    """Its batches are the same, so is the decision."""
    model, targets = tiny("llama_gqa_lm")
    both, options = batches(lengths, SHORT), {"target_modules": targets}

    def stop(done, expected):
        raise StopError

    with pytest.raises(StopError):
        measure(model, both, progress_file=tmp_path / "sums", on_batch=stop, **options)
    resumed = measure(model, both, progress_file=tmp_path / "sums", **options)

    assert_identical(resumed, measure(model, both, **options))


def test_runs_that_decided_alike_are_merged_and_others_refused(tmp_path):
    """The reason is kept if both say the same; a file keeps it."""
    model, targets = tiny("llama_gqa_lm")
    short, long = (measure(model, batches(b), target_modules=targets) for b in (SHORT, LONG))
    shorter = measure(model, batches([5, 4]), target_modules=targets)

    assert short.merge(short).estimator_reason == short.estimator_reason
    told = measure(model, batches([5, 4]), target_modules=targets, estimator="exact")
    assert short.merge(told).estimator_reason == short.estimator_reason
    assert short.merge(shorter).estimator_reason is None
    with pytest.raises(InvalidStatistics, match="differ in"):
        short.merge(long)
    long.save(tmp_path / "s")
    assert_identical(type(long).load(tmp_path / "s"), long, in_order=False)
