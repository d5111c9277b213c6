"""However the batches of a run are split over workers, the merged statistics are the run's own."""

import gc
import math
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fimlora import ProgressFile, Settings, Statistics, measure_streamed
from fimlora.errors import InvalidOption, InvalidProgress, NoLabelledExample
from fimlora.measuring.resident import measure_resident, measure_resident_shard
from fimlora.measuring.resume.merge import Shard, ShardSums, split
from fimlora.measuring.streamed.run import measure_streamed_shard
from support.experts import mixture, mixture_batches
from support.models import make_batch, tiny
from support.statistics import assert_close, assert_identical
from support.streaming import RECORDS, quiet, save

__all__ = ["quiet"]  # a fixture of every test here

NAME = "llama_gqa_lm"
LENGTHS = ([9, 5, 7], [6, 3], [8, 8, 2], [4, 9], [3], [7, 2])
SUMS = tuple(record for record in RECORDS if record != "input_components")
ALL = {"estimator": "both", "rank": 4, "record": SUMS, "null": True, "halves": True}


class StopError(Exception):
    """What a caller ends a run with."""


def batches_for(name: str = NAME, *, unlabelled: tuple[int, ...] = ()) -> list[dict]:
    batches = [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    for number in unlabelled:
        batches[number]["labels"] = torch.full_like(batches[number]["labels"], -100)
    return batches


def settings_for(targets, **options) -> Settings:
    return Settings(target_modules=targets, n_batches=len(LENGTHS), **options)


def cut(bounds: list[int], **options) -> list[Shard]:
    return [Shard(*ends, **options) for ends in pairwise([0, *bounds, len(LENGTHS)])]


def merged(model, batches, wanted: Settings, shards: list[Shard], tmp_path=None) -> Statistics:
    sums = []
    for shard in reversed(shards):
        found = measure_resident_shard(model, batches, wanted, shard)
        if tmp_path is not None:
            found.save(tmp_path / str(shard.start))
            found = ShardSums.load(tmp_path / str(shard.start))
        sums.append(found)
    return measure_resident(model, batches, replace(wanted, shards=sums))


@settings(max_examples=6, deadline=None)
@given(
    bounds=st.sets(st.integers(1, len(LENGTHS) - 1)).map(sorted),
    options=st.sampled_from(
        [
            ALL,
            ALL | {"micro_batch_size": 2},
            {"estimator": "sketched", "rank": 4, "halves": True},
            {"estimator": "auto", "null": True},
            {"estimator": "none", "record": ["moments", "layer_similarity"]},
            {"estimator": "sampled", "record": "spectra", "spectra_bytes": 0},
        ]
    ),
    unlabelled=st.sets(st.integers(0, len(LENGTHS) - 1), max_size=3).map(tuple),
)
def test_any_split_gives_the_run_itself_to_the_last_bit(bounds, options, unlabelled):
    """With batches in between that hold no labelled example, too."""
    model, targets = tiny(NAME)
    batches, wanted = batches_for(unlabelled=unlabelled), settings_for(targets, **options)

    found = merged(model, batches, wanted, cut(bounds))

    assert_identical(found, measure_resident(model, batches, wanted))


@pytest.mark.parametrize("name", ["deberta_v2_classifier"])
def test_files_hold_all_of_it(name, tmp_path):
    """Also where a module runs twice in a pass, and where examples run one at a time."""
    model, targets = tiny(name)
    batches, wanted = batches_for(name), settings_for(targets, **ALL)

    found = merged(model, batches, wanted, cut([2, 3]), tmp_path)

    assert_identical(found, measure_resident(model, batches, wanted))


def test_experts_that_not_every_shard_reaches_add_up():
    """Each expert's matrix has sums of its own, and no token of some batches."""
    model, batches = mixture("qwen2_moe"), [*mixture_batches(), *mixture_batches()]
    wanted = Settings(
        target_modules=["o_proj"], target_parameters="all", n_batches=len(batches),
        estimator="both", rank=4, null=True, halves=True,
    )  # fmt: skip

    sums = [
        measure_resident_shard(model, batches, wanted, each)
        for each in split(len(batches), len(batches))
    ]
    found = measure_resident(model, batches, replace(wanted, shards=sums))

    assert any(module.n_experts for module in found.modules)
    assert_identical(found, measure_resident(model, batches, wanted))


def test_sums_whose_parts_take_too_much_are_equal_to_rounding():
    """They are added shard by shard; what is of single examples stays as it is."""
    model, targets = tiny(NAME)
    batches, wanted = batches_for(), settings_for(targets, **ALL)
    whole = measure_resident(model, batches, wanted)

    found = merged(model, batches, wanted, cut([2, 3], parts_bytes=0))

    assert_close(found, whole, 1e-6)
    for name, part in whole.parts.items():
        assert_close(found.parts[name], part, 1e-6)
    assert {n: v.tolist() for n, v in found.example_energies.items()} == {
        n: v.tolist() for n, v in whole.example_energies.items()
    }


def test_both_executors_measure_shards_of_one_run(tmp_path):
    """Some resident and some streamed, put together by either."""
    model, targets = tiny(NAME)
    resident = save(model, tmp_path)
    batches, wanted = batches_for(unlabelled=(2,)), settings_for(targets, **ALL)
    whole = measure_resident(resident, batches, wanted)
    first, second, third = cut([2, 3])

    sums = [
        measure_streamed_shard(tmp_path, batches, wanted, first),
        measure_streamed_shard(tmp_path, batches, wanted, second),  # without a label
        measure_resident_shard(resident, batches, wanted, third),
    ]

    together = replace(wanted, shards=sums)
    assert_identical(measure_streamed(tmp_path, batches, together), whole)
    assert_identical(measure_resident(resident, batches, together), whole)


def test_forward_only_shards_are_streamed_too(tmp_path):
    """What is recorded on the way forward is put together alike."""
    model, targets = tiny(NAME)
    resident = save(model, tmp_path)
    wanted = settings_for(targets, estimator="none", record=["moments", "layer_similarity"])
    batches = batches_for()

    sums = [
        measure_streamed_shard(tmp_path, batches, wanted, each)
        for each in split(len(batches), 2)
    ]

    found = measure_streamed(tmp_path, batches, replace(wanted, shards=sums))
    assert_identical(found, measure_resident(resident, batches, wanted))


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_a_shard_that_was_cut_off_goes_on(executor, tmp_path):
    """From its own file, to the same sums."""
    model, targets = tiny(NAME)
    resident, batches = save(model, tmp_path), batches_for()
    shard = Shard(1, 5)

    def measured(**options) -> ShardSums:
        wanted = settings_for(targets, **ALL, **options)
        if executor == "streamed":
            return measure_streamed_shard(tmp_path, batches, wanted, shard)
        return measure_resident_shard(resident, batches, wanted, shard)

    seen: list[tuple[int, int]] = []

    def stop(done: int, expected: int) -> None:
        seen.append((done, expected))
        if done >= 2:
            raise StopError

    file = ProgressFile(
        tmp_path / "progress", max_share=math.inf, on_resume=lambda *at: seen.append(at)
    )
    with pytest.raises(StopError):
        measured(progress_file=file, on_batch=stop)
    found = measured(progress_file=file)

    wanted = measured()
    assert seen[-1][0] >= 2
    assert seen[-1][1] == 4  # batches of its own
    assert found.learned == wanted.learned
    assert found.sums.keys() == wanted.sums.keys()
    assert all(torch.equal(found.sums[key], wanted.sums[key]) for key in wanted.sums)


def test_a_run_without_any_label_is_refused_when_it_is_put_together():
    """A shard without one is not: the others may have some."""
    model, targets = tiny(NAME)
    batches = batches_for(unlabelled=tuple(range(len(LENGTHS))))

    with pytest.raises(NoLabelledExample):
        merged(model, batches, settings_for(targets), cut([3]))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"train_mode": True}, "dropout is drawn batch after batch"),
        ({"record": "input_components"}, "each batch updates"),
        ({"estimator": "none", "record": "weight_condition"}, "reads no batch"),
    ],
)
def test_what_depends_on_batches_before_is_refused_by_name(options, why):
    """Never measured in another order than in one run."""
    model, targets = tiny(NAME)

    with pytest.raises(InvalidOption, match=why):
        measure_resident_shard(
            model, batches_for(), settings_for(targets, **options), Shard(0, 2)
        )


@pytest.fixture(scope="module")
def halves() -> list[ShardSums]:
    model, targets = tiny(NAME)
    wanted = settings_for(targets, seed=1, estimator="exact")
    return [measure_resident_shard(model, batches_for(), wanted, each) for each in cut([3])]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda one, other: [one], "shards hold 3 batches, and the run has 6"),
        (lambda one, other: [other], "one begins at batch 3"),
        (lambda one, other: [one, one, other], "do not follow each other"),
        (
            lambda one, other: [replace(one, identity={**one.identity, "seed": 2}), other],
            "its seed differs",
        ),
        (
            lambda one, other: [replace(one, batches=[*one.batches[:-1], "0" * 64]), other],
            "its batches differs",
        ),
        (
            lambda one, other: [
                replace(one, identity={**one.identity, "fimlora version": "0"}), other
            ],
            "its fimlora version differs",
        ),
    ],
    ids=["one missing", "first missing", "twice", "setting", "batch", "version"],
)  # fmt: skip
def test_shards_that_are_not_the_run_are_refused(change, why, halves):
    """By what differs; nothing is added up then."""
    model, targets = tiny(NAME)
    wanted = settings_for(targets, seed=1, estimator="exact", shards=change(*halves))

    with pytest.raises(InvalidProgress, match=why):
        measure_resident(model, batches_for(), wanted)


def test_putting_together_twice_changes_nothing(halves):
    """The shards are read, never written to."""
    model, targets = tiny(NAME)
    wanted = settings_for(targets, seed=1, estimator="exact", shards=halves)

    one, other = (measure_resident(model, batches_for(), wanted) for _ in range(2))

    assert_identical(one, other)


# What is of single examples is no sum: the run keeps all of it, in one run as in shards.
OF_EXAMPLES = ("examples/", "states/")


class Watched(Mapping):
    """Sums of which a copy is given out, and that knows which shards have some at large."""

    def __init__(self, sums: Mapping[str, torch.Tensor], shard: int, at_large: list[int]):
        self.sums, self.shard, self.at_large = sums, shard, at_large
        self.most = 0

    def __getitem__(self, key: str) -> torch.Tensor:
        found = self.sums[key].clone()
        if key.removeprefix("null.").startswith(OF_EXAMPLES):
            return found
        self.at_large.append(self.shard)
        self.most = max(self.most, len(set(self.at_large)))
        weakref.finalize(found, self.at_large.remove, self.shard)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.sums)

    def __len__(self) -> int:
        return len(self.sums)


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_whoever_puts_shards_together_holds_the_sums_of_one_at_a_time(executor, tmp_path):
    """Beside the run's own: those of all would take as many times the memory."""
    model, targets = tiny(NAME)
    resident = save(model, tmp_path)
    batches, wanted = batches_for(), settings_for(targets, **ALL)
    at_large: list[int] = []
    shards = [
        measure_resident_shard(resident, batches, wanted, each)
        for each in split(len(batches), len(batches))
    ]
    watched = [
        replace(each, sums=Watched(each.sums, each.shard.start, at_large)) for each in shards
    ]
    together = replace(wanted, shards=watched)

    if executor == "streamed":
        found = measure_streamed(tmp_path, batches, together)
    else:
        found = measure_resident(resident, batches, together)

    gc.collect()
    assert [each.sums.most for each in watched] == [1] * len(batches)
    assert at_large == []
    assert_identical(found, measure_resident(resident, batches, wanted))


def test_sums_stay_in_their_file_until_they_are_asked_for(halves, tmp_path):
    """One that goes meanwhile is refused by its batches, so that others can measure it anew."""
    path = tmp_path / "shard"
    halves[1].save(path)
    loaded = ShardSums.load(path)
    assert loaded.sums.keys() == halves[1].sums.keys()
    assert all(torch.equal(loaded.sums[key], halves[1].sums[key]) for key in loaded.sums)
    path.unlink()
    model, targets = tiny(NAME)
    shards = [halves[0], loaded]
    wanted = settings_for(targets, seed=1, estimator="exact", shards=shards)

    with pytest.raises(InvalidProgress, match="cannot read the sums of the shard") as refused:
        measure_resident(model, batches_for(), wanted)
    assert refused.value.batches == (3, 6)


def test_a_damaged_file_is_refused_by_name(halves, tmp_path):
    """Its content has a checksum."""
    path = tmp_path / "shard"
    halves[0].save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(InvalidProgress, match="measure its batches anew"):
        ShardSums.load(path)


@pytest.mark.parametrize("at", [9, -1])
def test_a_file_that_is_cut_off_is_refused_by_name(at, halves, tmp_path):
    """In its header or in its sums."""
    path = tmp_path / "shard"
    halves[0].save(path)
    path.write_bytes(path.read_bytes()[:at])

    with pytest.raises(InvalidProgress, match="measure its batches anew"):
        ShardSums.load(path)


@given(n_batches=st.integers(1, 300), n_shards=st.integers(1, 40))
def test_a_split_holds_every_batch_once_and_is_even(n_batches, n_shards):
    """No shard is empty, and none has two batches more than another."""
    shards = split(n_batches, n_shards)

    numbers = [n for shard in shards for n in range(shard.start, shard.stop)]
    sizes = [shard.stop - shard.start for shard in shards]
    assert numbers == list(range(n_batches))
    assert max(sizes) - min(sizes) <= 1
    assert len(shards) == min(n_batches, n_shards)
