"""Entries mean what comparing each with each name says, by work that does not multiply."""

import random
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from fimlora_contract.requests import CalibrationRequest
from fimlora_service import errors
from fimlora_service.calibrations.checkpoint_sizes import find_target_shapes
from fimlora_service.evaluations.resolving import check_targets
from fimlora_service.resolve.endings import Endings
from fimlora_service.resolve.exclusion_checks import check_exclusions
from fimlora_service.resolve.saved_checks import check_saved, saved_parameters
from fimlora_service.resolve.target_checks import match_entries

WORDS = ["a", "b", "q_proj", "0", "1", "", "layers"]


def is_meant(entry: str, name: str) -> bool:
    """What an entry means, as one would write it down."""
    return name == entry or name.endswith(f".{entry}") or entry.endswith(f".{name}")


def some_name(random: random.Random) -> str:
    return ".".join(random.choices(WORDS, k=random.randint(1, 5)))


@pytest.mark.parametrize("seed", range(200))
def test_entries_mean_what_a_slow_loop_finds(seed):
    """Names, endings, and names under a prefix that the checkpoint lacks; in the names' order."""
    rng = random.Random(seed)
    names = list(dict.fromkeys(some_name(rng) for _ in range(rng.randint(0, 30))))
    entries = [some_name(rng) for _ in range(30)]
    endings = Endings(names)

    for entry in entries:
        expected = [name for name in names if is_meant(entry, name)]
        assert endings.meant(entry) == expected
        assert (entry in endings) == bool(expected)
    assert endings.meant_by(entries) == {
        name for name in names if any(is_meant(entry, name) for entry in entries)
    }


def in_slow_loops(request, shapes):
    """Target shapes as they were found before there was an index."""
    matrices = {n.removesuffix(".weight"): s for n, s in shapes.items() if len(s) == 2}
    names = [n for e in request.target_modules for n in matrices if is_meant(e, n)]
    names = [n for n in names if not any(is_meant(e, n) for e in request.exclude_modules or ())]
    saved = request.modules_to_save or ()
    holders = {n: [n[:i] for i, letter in enumerate(n) if letter == "."] + [n] for n in names}
    names = [n for n in names if not any(is_meant(e, h) for e in saved for h in holders[n])]
    return {name: matrices[name] for name in names} or None


@pytest.mark.parametrize("seed", range(60))
def test_what_is_left_of_the_targets_is_what_a_slow_loop_leaves(seed):
    """Targets, without what is excluded and what is inside of modules that train whole."""
    rng = random.Random(seed)
    shapes = {f"m.layers.{i}.{part}.{leaf}.weight": (4, 8)
              for i in range(3) for part in ("attn", "mlp") for leaf in ("q", "k", "up")}  # fmt: skip
    pool = ["q", "k", "up", "attn.q", "mlp.up", "layers.1.attn.k", "base.m.layers.2.mlp.q"]
    some = {
        "target_modules": rng.sample(pool, rng.randint(1, 5)),
        "exclude_modules": rng.choice([None, rng.sample(pool, 2)]),
        "modules_to_save": rng.choice([None, ["attn"], ["layers.0", "1.mlp"], ["m.layers.2"]]),
    }
    request = CalibrationRequest(base_model="m", dataset="d", budget=4, **some)

    assert find_target_shapes(request, shapes=shapes, config={}) == in_slow_loops(
        request, shapes
    )


def n_calls(work):
    """How many functions are called, Python's own included."""
    counted = Counter()
    before = sys.getprofile()
    sys.setprofile(lambda _, event, __: counted.update([event]))
    try:
        work()
    finally:
        sys.setprofile(before)
    return counted["call"] + counted["c_call"]


def without_leaf(shapes):
    return {name.removesuffix(".weight"): shape for name, shape in shapes.items()}


N = 600
LISTS = {
    "targets": lambda r, shapes: match_entries(
        r.target_modules, without_leaf(shapes), config={}
    ),
    "sizes": lambda r, shapes: find_target_shapes(r, shapes=shapes, config={}),
    "exclusions": lambda r, shapes: check_exclusions(r, shapes=shapes, config={}),
    "saved": lambda r, shapes: check_saved(r, shapes=shapes, config={}),
    "saved parameters": lambda r, shapes: saved_parameters(r, shapes=shapes, config={}),
}


@pytest.mark.parametrize("look", LISTS.values(), ids=LISTS)
def test_many_entries_are_not_each_held_against_every_name(look):
    """Twice as many entries and names are twice the work, where a loop in a loop takes four times."""

    def work(n):
        shapes = {f"m.layers.{i}.{kind}.weight": (4, 8) for i in range(n) for kind in "qkv"}
        ends = {kind: [f"layers.{i}.{kind}" for i in range(n)] * 2 for kind in "qkv"}
        request = CalibrationRequest(
            base_model="m",
            dataset="d",
            budget=4,
            target_modules=ends["q"],
            exclude_modules=ends["k"],
            modules_to_save=ends["v"],
        )
        return n_calls(lambda: look(request, shapes))

    assert work(120) > 120
    assert work(240) < 2.5 * work(120)


def test_a_plan_is_not_held_against_each_of_many_entries_of_an_evaluation():
    """What an evaluation's plans adapt is looked up as a request's targets are."""
    maps = {"plan": plan_of([f"m.layers.{i}.q" for i in range(N)])}
    entries = [f"layers.{i}.q" for i in range(N)]
    request = SimpleNamespace(
        target_modules=entries, exclude_modules=None, target_parameters=None
    )

    assert N < n_calls(lambda: check_targets(request, maps)) < N * N / 3
    request.target_modules = [*entries, "layers.0.k"]
    with pytest.raises(errors.ValidationFailed, match=r"adapts no 'layers\.0\.k'"):
        check_targets(request, maps)
    request.target_modules, request.exclude_modules = entries, ["5.q"]
    with pytest.raises(errors.ValidationFailed, match=r"adapts 'm\.layers\.5\.q'"):
        check_targets(request, maps)


def plan_of(names):
    return SimpleNamespace(
        modules=[SimpleNamespace(name=name, n_experts=None) for name in names]
    )
