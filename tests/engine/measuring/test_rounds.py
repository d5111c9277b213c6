"""Rounds add up to one run, and stop when they should, for the reason that they say."""

from dataclasses import replace

import pytest
import torch

from fimlora import allocate, measure, score
from fimlora.confidence.bootstrap import confidence_of
from fimlora.errors import EmptyCalibration, InvalidOption, NoLabelledExample
from fimlora.measuring.rounds import Stop, measure_until_stable
from support.models import make_batch, tiny
from support.statistics import assert_close, assert_identical

NAME = "bert_classifier"
LENGTHS = (
    [30, 9, 7, 3],
    [12, 5],
    [31, 2, 2],
    [8, 8, 8],
    [4],
    [17, 30, 1, 9, 6],
    [3, 3],
    [9, 1],
)
BATCHES = [make_batch(NAME, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
N_EXAMPLES = [len(lengths) for lengths in LENGTHS]


def part(start, stop, *, batches=BATCHES, **options):
    """Measure some of the batches, as a user of the library would."""
    model, targets = tiny(NAME, torch.float64)
    options = {"target_modules": targets, "estimator": "exact", **options}
    first = sum(len(batch["input_ids"]) for batch in batches[:start])
    return measure(
        model, batches[start:stop], n_batches=stop - start, first_example=first, **options
    )


def never(_):
    return 1.0


@pytest.mark.parametrize("estimator", ["exact", "sketched", "both"])
def test_rounds_are_one_run(estimator):
    """Up to rounding: each example keeps its number, and so its signs."""
    found = measure_until_stable(
        lambda start, stop: part(start, stop, estimator=estimator),
        never,
        n_available=len(BATCHES),
        first_round=1,
    )

    whole = part(0, len(BATCHES), estimator=estimator)
    assert_close(found.statistics, whole, 1e-10)
    assert (found.n_batches, found.stopped) == (8, Stop.DATA)
    assert found.statistics.n_examples == whole.n_examples == sum(N_EXAMPLES)


def test_each_round_doubles_what_was_measured():
    """One, two, four, eight batches in all, and never one twice."""
    parts = []

    def measured(start, stop):
        parts.append((start, stop))
        return part(start, stop)

    measure_until_stable(measured, never, n_available=7, first_round=1)

    assert parts == [(0, 1), (1, 2), (2, 4), (4, 7)]


@pytest.mark.parametrize(
    ("n_batches", "wanted"),
    [
        (1, [(0, 1)]),
        (4, [(0, 4)]),
        (5, [(0, 5)]),
        (6, [(0, 4), (4, 6)]),
        (8, [(0, 4), (4, 8)]),
        (9, [(0, 4), (4, 9)]),
        (17, [(0, 4), (4, 8), (8, 17)]),
    ],
)
@pytest.mark.parametrize("limit", ["n_available", "max_batches"])
def test_a_last_batch_alone_belongs_to_the_round_before(n_batches, wanted, limit):
    """Whether there are no more or no more are allowed."""
    parts = []

    def measured(start, stop):
        parts.append((start, stop))
        return part(0, 1)

    options = {"n_available": 64, "max_batches": 64} | {limit: n_batches}
    measure_until_stable(measured, never, **options)

    assert parts == wanted


@pytest.mark.parametrize("n_batches", [5, 6, 8])
def test_rounds_have_the_halves_of_one_run(n_batches):
    """To rounding, whatever is left for the last round; and a null of the same size."""
    options = {"halves": True, "null": True}

    found = measure_until_stable(
        lambda start, stop: part(start, stop, **options), never, n_available=n_batches
    ).statistics

    whole = part(0, n_batches, **options)
    assert found.halves is not None
    for mine, theirs in zip(found.halves, whole.halves, strict=True):
        assert_close(mine, theirs, 1e-10)
        assert (mine.n_examples, mine.n_batches) == (theirs.n_examples, theirs.n_batches)
    assert found.null.null_targets[0] == whole.null.null_targets[0] == whole.n_examples


def test_another_empty_calibration_ends_it_with_its_own_reason():
    """At once: only batches without a label are passed over."""
    n_tried = []

    def measured(*_):
        n_tried.append(1)
        raise EmptyCalibration("all 8 rows of the head have the same labels")

    with pytest.raises(EmptyCalibration, match="all 8 rows of the head"):
        measure_until_stable(measured, never, n_available=64)
    assert len(n_tried) == 1


@pytest.mark.parametrize(
    ("stable_from", "options", "n_batches", "stopped"),
    [
        (1, {}, 4, Stop.STABLE),
        (5, {}, 8, Stop.STABLE),
        (99, {}, 8, Stop.DATA),
        (99, {"max_batches": 6}, 6, Stop.CAP),
        (99, {"max_batches": 8}, 8, Stop.CAP),
        (99, {"max_batches": 3}, 3, Stop.CAP),
        (8, {"max_batches": 8}, 8, Stop.STABLE),
    ],
)
def test_it_stops_for_the_reason_it_says(stable_from, options, n_batches, stopped):
    """Stable, or no more batches allowed, or none there; the last look counts, too."""
    found = measure_until_stable(
        part,
        lambda s: 0.05 if s.n_batches >= stable_from else 0.051,
        n_available=8,
        **options,
    )

    assert (found.n_batches, found.stopped) == (n_batches, stopped)
    assert found.statistics.n_examples == sum(N_EXAMPLES[:n_batches])
    assert found.provenance()["n_batches_by"] == {
        "used": n_batches,
        "stopped": stopped.value,
        "expected_move": 0.05 if stopped is Stop.STABLE else 0.051,
        "tolerance": 0.05,
        "max_batches": options.get("max_batches", 64),
    }


def test_what_is_stable_by_its_own_confidence():
    """The whole story, with the bootstrap: a loose tolerance takes fewer batches."""

    def move(statistics):
        plan = allocate(score(statistics), 4)
        return 1 - confidence_of(statistics, plan, n_resamples=200).expected_overlap

    loose, tight = (
        measure_until_stable(part, move, n_available=8, first_round=1, tolerance=tolerance)
        for tolerance in (0.9, 1e-9)
    )

    assert (loose.n_batches, loose.stopped) == (1, Stop.STABLE)
    assert (tight.n_batches, tight.stopped) == (8, Stop.DATA)
    assert tight.expected_move == move(tight.statistics) > 1e-9


def test_it_goes_on_from_what_is_kept_of_each_round():
    """As if it had not been cut off, and without a batch that was done."""
    kept, parts = [], []

    def measured(start, stop):
        parts.append((start, stop))
        return part(start, stop)

    whole = measure_until_stable(
        measured, never, n_available=8, on_round=lambda *round_: kept.append(round_)
    )
    again = measure_until_stable(measured, never, n_available=8, begun=kept[0])
    at_the_end = measure_until_stable(measured, never, n_available=8, begun=kept[1])

    assert [n for _, n in kept] == [4, 8]
    assert parts == [(0, 4), (4, 8), (4, 8)]
    assert_identical(again.statistics, whole.statistics)
    assert_identical(at_the_end.statistics, whole.statistics)
    assert again.provenance() == at_the_end.provenance() == whole.provenance()


def test_a_round_without_a_label_adds_nothing():
    """Later ones count; if there is none at all, that is an error as in one run."""
    blank = {**BATCHES[0], "labels": torch.full_like(BATCHES[0]["labels"], -100)}

    def measured(batches):
        return measure_until_stable(
            lambda start, stop: part(start, stop, batches=batches),
            never,
            n_available=len(batches),
            first_round=1,
        )

    found = measured([blank, BATCHES[1], blank])
    alone = part(0, 1, batches=[BATCHES[1]])

    assert (found.n_batches, found.statistics.n_examples) == (3, 2)
    assert_identical(found.statistics, replace(alone, execution=None))
    with pytest.raises(NoLabelledExample, match="no example carries a label"):
        measured([blank, blank])


def test_spectra_do_not_add_up_and_are_refused():
    """By name, as whenever statistics with them are merged."""
    with pytest.raises(ValueError, match="spectra are not merged"):
        measure_until_stable(
            lambda start, stop: part(start, stop, record="spectra"), never, n_available=8
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance=0"),
        ({"tolerance": 1.0}, "tolerance=1"),
        ({"max_batches": 0}, "max_batches=0"),
        ({"first_round": 0}, "first_round=0"),
        ({"n_available": 0}, "the batches there are, 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    """Before anything is measured."""
    with pytest.raises(InvalidOption, match=message):
        measure_until_stable(part, never, **{"n_available": 8, **options})
