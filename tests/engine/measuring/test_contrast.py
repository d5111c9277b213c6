"""Two datasets under one model: each is measured as it would be by itself."""

import itertools
from pathlib import Path

import pytest
import torch

from fimlora import ProgressFile, Settings, Statistics, measure, measure_folder, score
from fimlora.adapter.initial.registry import INITS, init_records
from fimlora.errors import EmptyCalibration, InvalidOption, InvalidStatistics
from support.models import make_batch, tiny
from support.statistics import assert_identical
from support.streaming import quiet, save

__all__ = ["quiet"]  # a fixture of every test here
NAME = "llama_gqa_lm"
OPTIONS = {"n_batches": 3, "null": True, "halves": True, "seed": 5}


LENGTHS = ([30, 9, 7, 3], [6, 2, 20], [11])


def data(seed=0, lengths=LENGTHS):
    return [make_batch(NAME, some, seed=seed + i) for i, some in enumerate(lengths)]


def kept():
    return data(70, ([4, 31], [16, 5, 6]))


class Interrupted(Exception):
    pass


def stopping_after(n):
    def on_batch(done, expected):
        if done == n:
            raise Interrupted

    return on_batch


def test_both_are_as_two_runs_of_their_own():
    """The rows to retain without a null and without what other methods need."""
    model, targets = tiny(NAME)

    found = measure(
        model, data(), target_modules=targets, record="spectra", retain=kept(), **OPTIONS
    )

    alone = measure(model, data(), target_modules=targets, record="spectra", **OPTIONS)
    other = measure(model, kept(), target_modules=targets, **OPTIONS | {"null": False})
    assert_identical(found, alone.with_retain(other))
    assert found.retain.n_examples == 5
    assert not found.retain.spectra
    assert [half.n_examples for half in found.retain.halves] == [2, 3]


@pytest.mark.parametrize("estimator", ["exact", "sketched", "sampled"])
@pytest.mark.parametrize("init", INITS)
def test_what_initial_weights_need_moves_no_contrast(init, estimator):
    """It is recorded of the rows at hand alone, whatever seed it is recorded by."""
    model, targets = tiny(NAME)
    batches, others = data(lengths=([9, 3], [5])), data(70, ([4, 8],))
    alike = {"target_modules": targets, "estimator": estimator, "seed": 5}

    found = measure(model, batches, record=init_records(init), retain=others, **alike)

    plain = measure(model, batches, retain=others, **alike)
    assert bool(found.quantities) is bool(init_records(init))
    assert not found.retain.quantities
    assert dict(score(found, "vila").by_module) == dict(score(plain, "vila").by_module)


@pytest.mark.parametrize("estimator", ["sketched", "sampled"])
def test_another_draw_is_not_held_against(estimator):
    """Where the sums of both are of what a seed draws, it is to be one."""
    model, targets = tiny(NAME)
    alike = {"target_modules": targets, "estimator": estimator}
    one = measure(model, data(lengths=([5, 3],)), seed=1, **alike)
    other = measure(model, data(70, ([4, 2],)), seed=2, **alike)

    with pytest.raises(InvalidStatistics, match="differ in seed: 2, and 1 here"):
        one.with_retain(other)


@pytest.mark.parametrize("estimator", ["exact", "sketched", "sampled"])
def test_streamed_is_resident_to_the_last_bit(estimator, tmp_path):
    """From a folder, in other micro-batches."""
    model, targets = tiny(NAME)
    model = save(model, tmp_path)
    settings = Settings(
        target_modules=targets, micro_batch_size=2, estimator=estimator, **OPTIONS
    )

    streamed = measure_folder(tmp_path, data(), settings, executor="streamed", retain=kept())

    wanted = measure(
        model, data(), target_modules=targets, retain=kept(), micro_batch_size=2,
        estimator=estimator, **OPTIONS
    )  # fmt: skip
    assert_identical(streamed, wanted)
    assert streamed.retain is not None


def test_a_file_gives_both_back(tmp_path):
    """With the halves of each; one that is looked into as it lies, too."""
    model, targets = tiny(NAME)
    found = measure(model, data(), target_modules=targets, retain=kept(), **OPTIONS)
    found.save(tmp_path / "statistics")

    assert_identical(Statistics.load(tmp_path / "statistics"), found, in_order=False)
    with Statistics.opened(tmp_path / "statistics") as opened:
        assert opened.retain.halves[1].n_examples == 3
        assert opened.retain.batch_sizes == (2, 3)
    assert found.rescaled(7).retain.halves[0].scale == 7


@pytest.mark.parametrize("after", [2, 4])
@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_an_interrupted_run_goes_on_to_the_same(executor, after, tmp_path):
    """In the first dataset, and in the second; nothing of the first is measured anew then."""
    model, targets = tiny(NAME)
    save(model, tmp_path / "model")

    def run(file=None, on_batch=None):
        settings = Settings(
            target_modules=targets, progress_file=file, on_batch=on_batch, **OPTIONS
        )
        return measure_folder(
            tmp_path / "model", data(), settings, executor=executor, retain=kept()
        )

    resumed = []
    file = ProgressFile(
        tmp_path / "sums", max_share=float("inf"), on_resume=lambda *at: resumed.append(at)
    )
    with pytest.raises(Interrupted):
        run(file, stopping_after(after))

    assert_identical(run(file), run())
    assert resumed


def test_progress_counts_the_batches_of_both():
    """A number that grows by one to the sum of both."""
    model, targets = tiny(NAME)
    told = []

    measure(
        model, data(), target_modules=targets, retain=kept(), **OPTIONS,
        on_batch=lambda *at: told.append(at),
    )  # fmt: skip

    assert told == [(done, 5) for done in range(1, 6)]


def test_a_loader_without_a_length_is_drawn_from_once():
    """And no further than it is measured."""
    model, targets = tiny(NAME)
    endless = (make_batch(NAME, [9, 5], seed=i) for i in itertools.count())

    found = measure(model, iter(data()), target_modules=targets, retain=endless, **OPTIONS)

    three = [make_batch(NAME, [9, 5], seed=i) for i in range(3)]
    assert_identical(
        found, measure(model, data(), target_modules=targets, retain=three, **OPTIONS)
    )


def test_rows_of_another_kind_are_refused_before_anything_is_measured():
    """And loaders that give none."""
    model, targets = tiny(NAME)
    told = []

    def both(batches, others):
        return measure(
            model, batches, target_modules=targets, retain=others,
            on_batch=lambda *at: told.append(at),
        )  # fmt: skip

    lacking = [{k: v for k, v in batch.items() if k != "attention_mask"} for batch in kept()]
    with pytest.raises(InvalidOption, match=r"hold input_ids .*, those at hand attention_mask"):
        both(data(), lacking)
    numbers = [batch | {"labels": torch.rand(len(batch["labels"]))} for batch in kept()]
    with pytest.raises(InvalidOption, match=r"labels \(1-D, numbers\)"):
        both(data(), numbers)
    with pytest.raises(EmptyCalibration, match="rows to retain gave no batch"):
        both(data(), [])
    assert not told


def test_a_class_that_only_the_other_rows_have_is_refused():
    """The head has no output for it."""
    model, targets = tiny("bert_classifier")
    batch = make_batch("bert_classifier", [9, 5])

    with pytest.raises(InvalidOption, match="3"):
        measure(
            model, [batch], target_modules=targets,
            retain=[batch | {"labels": torch.tensor([0, 3])}],
        )  # fmt: skip


def test_other_settings_are_refused():
    """Two runs that were put together by hand."""
    model, targets = tiny(NAME)
    one, other = (
        measure(model, batches, target_modules=targets, scale=scale)
        for batches, scale in ((data(), 2), (kept(), 3))
    )

    with pytest.raises(InvalidStatistics, match="differ in scale: 3, and 2 here"):
        one.with_retain(other)


def test_shards_of_both_are_added():
    """What each shard keeps of either dataset."""
    model, targets = tiny(NAME, torch.float64)
    batches, others = data(), kept()

    def part(start, stop, some):
        return measure(
            model, batches[start:stop], target_modules=targets, retain=some, estimator="exact",
            first_example=sum(len(b["labels"]) for b in batches[:start]),
        )  # fmt: skip

    merged = part(0, 2, others[:1]).merge(part(2, 3, others[1:]))

    whole = part(0, 3, others)
    assert merged.retain.n_examples == whole.retain.n_examples == 5
    assert merged.batch_sizes == whole.batch_sizes == (4, 3, 1)
    for name, values in whole.retain.row_energies.items():
        assert merged.retain.row_energies[name] == pytest.approx(values, rel=1e-12)


def test_what_is_kept_beside_the_sums_has_a_name_of_its_own(tmp_path):
    """The file of the first dataset is not that of the second."""
    model, targets = tiny(NAME)
    file = ProgressFile(tmp_path / "sums", max_share=float("inf"))

    measure(model, data(), target_modules=targets, retain=kept(), progress_file=file, **OPTIONS)

    assert {path.name for path in Path(tmp_path).iterdir()} == {"sums", "sums.retain"}
