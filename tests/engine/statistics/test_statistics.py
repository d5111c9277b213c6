"""Statistics on disk, merged, and as facts."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from fimlora import Statistics, allocate, measure, score
from fimlora.errors import InvalidStatistics
from fimlora.methods.registry import METHODS, records_needed
from support.models import make_batch, tiny
from support.statistics import GROUPS, assert_identical

NAME = "bert_classifier"
ALL_GROUPS = (*GROUPS, "spectrum_errors")


def measured(data=0, lengths=(5, 3), **options):
    model, targets = tiny(NAME)
    options = {"target_modules": targets, "estimator": "both", "rank": 4, **options}
    return measure(model, [make_batch(NAME, [*lengths], seed=data)], **options)


@pytest.fixture(scope="module")
def statistics():
    return measured()


@pytest.mark.parametrize("estimator", ["exact", "sampled", "both"])
def test_a_saved_file_reads_back_to_the_last_bit(tmp_path, estimator):
    """Facts, modules and sums."""
    statistics = measured(estimator=estimator)
    statistics.save(tmp_path / "s.safetensors")

    found = Statistics.load(tmp_path / "s.safetensors")

    assert_identical(found, statistics, in_order=False)
    assert score(found) == score(statistics)


class Noted(Mapping):
    """Sums that note the name of their group when one is looked at."""

    def __init__(self, sums, group, read):
        self.sums, self.group, self.read = sums, group, read

    def __getitem__(self, name):
        self.read.add(self.group)
        return self.sums[name]

    def __iter__(self):
        return iter(self.sums)

    def __len__(self):
        return len(self.sums)


@pytest.mark.parametrize(
    ("method", "estimator"),
    [
        (name, estimator)
        for name, method in METHODS.items()
        for estimator in ("exact", "sampled", "both")
        if estimator != "sampled" or not method.needs_examples
    ],
)
def test_an_open_file_gives_the_plan_of_the_whole_one(tmp_path, method, estimator):
    """The sums that a method does not look at, which may be most of the file, are not read."""
    record = ["moments", "batch_energies", *records_needed(*METHODS)]
    null, asks_retain = METHODS[method].needs_null, METHODS[method].needs_retain
    retain = [make_batch(NAME, [4, 2], seed=1)] if asks_retain else None
    lengths = (5, 3, 4, 6)  # as many as any method compares
    measured(
        lengths=lengths, estimator=estimator, record=record, null=null, retain=retain
    ).save(tmp_path / "s")
    options = {"budget": 2}
    whole, read = Statistics.load(tmp_path / "s"), set()
    with Statistics.opened(tmp_path / "s") as stored:
        noted = replace(stored, **{g: Noted(getattr(stored, g), g, read) for g in ALL_GROUPS})
        read.clear()  # what the check of annotations has looked at
        plan = allocate(score(noted, method), **options)
        used = read - {"spectra", "mean_energies", "spectrum_errors"}
        assert_identical(
            replace(stored, **{g: dict(getattr(stored, g)) for g in ALL_GROUPS}), whole
        )

    assert plan == allocate(score(whole, method), **options)
    scored = {"squared_gradients" if estimator == "sampled" else "row_energies"}
    of_noise = set() if estimator == "sampled" else {"example_energies"}  # for its scale
    by_fisher = method in {"fim", "fim-over-null", "vila", "fisher-layers", "uniform", "random"}
    assert used == of_noise | (scored if by_fisher else set())


def test_what_a_file_lacks_is_no_error_of_the_one_who_looks(tmp_path, statistics):
    """Only opening says that a file is damaged; errors inside the block are its own."""
    statistics.save(tmp_path / "s")

    with pytest.raises(KeyError, match="absent"), Statistics.opened(tmp_path / "s") as stored:
        stored.row_energies["absent"]


def test_the_same_run_gives_the_same_bytes(tmp_path, statistics):
    """So a digest can name the content."""
    statistics.save(tmp_path / "a")
    measured().save(tmp_path / "b")

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_saving_replaces_a_file_in_one_step(tmp_path, statistics):
    """Nothing else is left in the folder."""
    (tmp_path / "s").write_text("old")

    statistics.save(tmp_path / "s")

    assert Statistics.load(tmp_path / "s").n_examples == 2
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    "content",
    [b"", b"not safetensors at all", b"\x02\0\0\0\0\0\0\0{}"],
    ids=["empty", "text", "safetensors_of_something_else"],
)
def test_another_file_is_refused_by_name(tmp_path, content):
    """The message has the path."""
    path = tmp_path / "other.bin"
    path.write_bytes(content)

    with pytest.raises(InvalidStatistics, match=r"cannot read statistics from .*other\.bin"):
        Statistics.load(path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    """Not as an error of the operating system."""
    with pytest.raises(InvalidStatistics, match="absent"):
        Statistics.load(tmp_path / "absent")


def test_a_truncated_file_is_refused(tmp_path, statistics):
    """A crash while copying leaves half a file."""
    statistics.save(tmp_path / "s")
    content = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(content[: len(content) // 2])

    with pytest.raises(InvalidStatistics):
        Statistics.load(tmp_path / "s")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 5}, "differ in rank: 4 and 5"),
        ({"seed": 1}, "differ in seed: 0 and 1"),
        ({"scale": 1}, "differ in scale: 2 and 1"),
        ({"train_mode": True}, "differ in train_mode: False and True"),
        ({"estimator": "exact"}, "differ in estimator"),
        ({"target_modules": ["query"]}, "differ in modules; not merged"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unlike_runs_are_not_merged(statistics, options, message):
    """The message names the setting and both values."""
    with pytest.raises(InvalidStatistics, match=message):
        statistics.merge(measured(**options))


def test_exact_runs_merge_whatever_their_seed(statistics):
    """The exact estimate has no seed."""
    merged = measured(estimator="exact").merge(measured(estimator="exact", seed=1, data=1))

    assert merged.n_examples == 4
    assert "seed" not in merged.provenance()
    assert "rank" not in merged.provenance()


def test_merging_changes_neither_side(statistics):
    """The sums are new arrays."""
    before = {k: v.copy() for k, v in statistics.row_energies.items()}

    statistics.merge(statistics)

    assert all(np.array_equal(before[k], statistics.row_energies[k]) for k in before)


def test_provenance_is_plain_data(statistics):
    """It goes into the rank map as it is."""
    assert json.loads(json.dumps(statistics.provenance())) == {
        "estimator": "both",
        "base_parameters": sum(p.numel() for p in tiny(NAME)[0].parameters()),
        "loss": "single_label_classification",
        "dtype": "float32",
        "scale": 2,
        "train_mode": False,
        "rank": 4,
        "seed": 0,
        "n_examples": 2,
        "n_batches": 1,
    }


def test_reading_and_scoring_need_no_torch(tmp_path, statistics):
    """So a service without the engine can plan again from a stored file."""
    statistics.save(tmp_path / "s")
    code = (
        "import sys; from fimlora import Statistics, score;"
        f"scores = score(Statistics.load({str(tmp_path / 's')!r})).by_module;"
        "assert 'torch' not in sys.modules; print(len(scores))"
    )
    path = ":".join(entry for entry in sys.path if entry)

    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip

    assert done.stdout.strip() == str(len(statistics.modules))


def with_parts(data=0, **options):
    """Two batches, their null and their halves."""
    model, targets = tiny(NAME)
    batches = [make_batch(NAME, [5, 3, 4], seed=2 * data + i) for i in range(2)]
    return measure(model, batches, target_modules=targets, null=True, halves=True, **options)


def test_null_and_halves_are_saved_beside_the_run(tmp_path):
    """In the same file, to the last bit; a plan of each is made like one of the run."""
    statistics = with_parts(record=["spectra"])
    statistics.save(tmp_path / "s")

    found = Statistics.load(tmp_path / "s")

    assert_identical(found, statistics, in_order=False)
    assert list(found.parts) == ["null.", "half 1.", "half 2."]
    assert found.null is not None
    assert found.null.null_targets == (6, statistics.null.null_targets[1])
    with Statistics.opened(tmp_path / "s") as stored:
        for name, part in statistics.parts.items():
            assert score(stored.parts[name]) == score(part)


def test_a_run_without_null_and_halves_has_the_file_it_had(statistics):
    """Their names are in no file that does not hold them."""
    content = statistics.to_bytes()
    assert not any(name in content for name in (b"null.", b"half ", b"parts"))
    assert not statistics.parts


def test_another_scale_is_that_of_null_and_halves_too():
    """Their scores compare with those of the run."""
    statistics = with_parts()

    found = statistics.rescaled(4)

    for name, part in found.parts.items():
        before = score(statistics.parts[name]).by_module
        assert score(part).by_module == pytest.approx({m: 4 * s for m, s in before.items()})


def test_null_and_halves_are_merged_where_both_runs_have_them():
    """Part by part; what one run lacks is not known of both."""
    one, two = with_parts(), with_parts(1)

    merged = one.merge(two)

    for name, part in merged.parts.items():
        mine, theirs = one.parts[name], two.parts[name]
        assert_identical(part, mine.merge(theirs))
        assert part.n_examples == mine.n_examples + theirs.n_examples
    assert merged.null is not None
    pairs = zip(one.null.null_targets, two.null.null_targets, strict=True)
    assert merged.null.null_targets == tuple(map(sum, pairs))
    assert not one.merge(two.with_parts({})).parts
