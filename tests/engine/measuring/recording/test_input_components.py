"""Principal components of inputs: from hooks and micro-batches, those of the rows themselves."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from fimlora import Settings, Statistics, measure, measure_streamed
from fimlora.errors import NumericalFailure, UnsupportedModule
from fimlora.measuring.recording.input_components import InputComponents
from fimlora.measuring.recording.quantity import Pass, SeenCall
from fimlora.memory.need import bytes_recorded
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import Statistics as Saved
from support.models import TINY_MODELS, make_batch, tiny
from support.seq2seq import SEQ2SEQ_MODELS
from support.statistics import assert_identical
from support.streaming import quiet, save

__all__ = ["quiet"]  # a fixture of every test here

LENGTHS = ([30, 9, 7, 3], [6, 31, 3], [8, 8, 2])
WANTED = {"estimator": "none", "record": "input_components"}


def batches_for(name: str) -> list[dict]:
    return [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]


def rows_by_hook(model: nn.Module, batches: list[dict], name: str) -> list[np.ndarray]:
    """Rows of each batch that go into a module, one forward pass of the whole batch each."""
    seen, by_batch = [], []
    module = model.get_submodule(name)
    with module.register_forward_pre_hook(lambda module, args: seen.append(args[0])):
        for batch in batches:
            seen.clear()
            with torch.no_grad():
                model(**batch)
            (x,) = seen
            mask = batch["attention_mask"] != 0
            if batch["labels"].shape == mask.shape:
                mask &= batch["labels"] != -100
            rows = x[mask] if x.dim() == 3 else x
            by_batch.append(rows.double().numpy())
    return by_batch


def assert_close(found: Statistics, wanted: Statistics, atol: float) -> None:
    """The same shares, and components that point the same way where their shares tell them."""
    n_compared = 0
    for name, shares in wanted.quantities["input_variances"].items():
        assert found.quantities["input_variances"][name] == pytest.approx(shares, abs=atol)
        ours, theirs = (s.quantities["input_components"][name] for s in (found, wanted))
        assert ours.shape == theirs.shape
        gaps = -np.diff(shares[: len(theirs)], append=0)
        told = np.minimum(gaps, np.concatenate([[1], gaps[:-1]])) > 1e-3
        assert (ours * theirs).sum(axis=1)[told] == pytest.approx(1, abs=1e-4)
        n_compared += told.sum()
    assert n_compared


@pytest.mark.parametrize("name", ["bert_classifier", "llama_gqa_lm", "gpt2_lm"])
def test_components_are_those_of_all_rows(name):
    """Of tokens with a label or of all that are not padding, and of vectors per example."""
    model, targets = tiny(name)
    batches = batches_for(name)
    is_bert = name == "bert_classifier"
    targets = [*targets, *(["pooler.dense"] if is_bert else [])]

    found = measure(model, batches, target_modules=targets, **WANTED)

    for module in found.modules:
        rows = np.concatenate(rows_by_hook(model, batches, module.name))
        whole = PCA().fit(rows)
        shares = found.quantities["input_variances"][module.name]
        n = min(len(rows) - 1, module.d_in)
        assert shares[:n] == pytest.approx(whole.explained_variance_ratio_[:n], abs=1e-5)
        _, n_rows, n_updates = found.quantities["input_convergence"][module.name]
        assert (n_rows, n_updates) == (len(rows), 3)
    assert {"pooler" in m.name for m in found.modules} == (
        {False, True} if is_bert else {False}
    )


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_streamed_and_in_a_run_with_gradients_they_are_the_same(name, tmp_path):
    """To the last bit streamed; with a backward pass up to rounding, and no null is made."""
    model, targets = tiny(name)
    resident, batches = save(model, tmp_path), batches_for(name)
    options = {"target_modules": targets, "halves": True, "n_components": 6}

    found = measure(resident, batches, **options, **WANTED)

    streamed = measure_streamed(tmp_path, batches, Settings(**options, **WANTED))
    assert_identical(streamed, found)
    both = options | {"record": ("input_components", "moments"), "null": True}
    beside = measure(resident, batches, **both)
    assert_close(beside, found, 1e-5)
    assert beside.null.input_squares
    assert not beside.null.quantities
    assert_identical(measure_streamed(tmp_path, batches, Settings(**both)), beside)


@pytest.mark.parametrize("n_rows", [1024, 16])
def test_micro_batches_change_nothing(n_rows):
    """Nor does it matter when rows are let go of: updates fall where they fell."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 7, 20, generator=generator) * torch.arange(1, 21).pow(-0.6)
    mask = torch.rand(9, 7, generator=generator) < 0.7

    whole, *others = (
        arrays_of(x, mask, sizes, n_rows=n_rows) for sizes in ([9], [1] * 9, [4, 4, 1], [2, 7])
    )

    for other in others:
        for mine, theirs in zip(other, whole, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-6)
    assert whole[2][2] == (1 if n_rows == 1024 else -(-int(mask.sum()) // 16))


def arrays_of(x: torch.Tensor, mask: torch.Tensor, sizes: list[int], *, n_rows: int) -> list:
    """What is recorded of one batch in passes of these sizes, each of them tried twice."""
    quantity = InputComponents([TargetModule("a", 20, 4)], n_components=5, n_rows=n_rows)
    starts = itertools.accumulate(sizes, initial=0)
    for start, size in zip(starts, sizes, strict=False):
        part, its_mask = x[start : start + size], mask[start : start + size]
        for succeeds in (False, True):
            at_hand = Pass(torch.ones(size), None, size == len(x), label_mask=its_mask)
            show(quantity, at_hand, {"a": part})
            quantity.commit() if succeeds else quantity.discard()
    quantity.end_batch(None)
    return [groups["a"] for groups in quantity.results(9).values()]


def show(quantity: InputComponents, at_hand: Pass, inputs: dict[str, torch.Tensor]) -> None:
    quantity.begin(at_hand)
    for name, x in inputs.items():
        kept = quantity.keep(name, x, list)
        quantity.add(name, [SeenCall(kept, torch.empty(0))])


def test_modules_with_one_input_have_their_components_once():
    """While it is one: where they see different inputs once, both have their own from then on."""
    modules = [TargetModule(name, 8, 4) for name in "qkv"]
    x, y = (torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    quantity = InputComponents(modules)
    at_hand = Pass(torch.ones(4), None, is_whole=True)

    show(quantity, at_hand, {"q": x, "k": x, "v": x})
    quantity.commit()
    quantity.end_batch(None)
    n_before = len(quantity.learned()["components"]["counts"])
    show(quantity, at_hand, {"q": x, "k": x, "v": y})
    quantity.commit()
    quantity.end_batch(None)

    assert n_before == 1
    assert len(quantity.learned()["components"]["counts"]) == 2
    found = quantity.results(8)["input_variances"]
    assert found["q"] is found["k"]
    for name, seen in {"k": (x, x), "v": (x, y)}.items():
        whole = PCA().fit(torch.cat(seen).flatten(0, 1).double().numpy())
        assert found[name] == pytest.approx(whole.explained_variance_ratio_, abs=1e-6)


def test_a_module_that_runs_twice_has_the_rows_of_both_calls():
    """In a pass forward, call by call, and in one with gradients, all at once."""
    x, y = (torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    at_hand = Pass(torch.ones(4), None, is_whole=True)
    whole = PCA().fit(torch.cat([x, y]).flatten(0, 1).double().numpy())
    found = []
    for at_once in (False, True):
        quantity = InputComponents([TargetModule("a", 6, 4)])
        quantity.begin(at_hand)
        calls = [
            SeenCall(quantity.keep("a", tensor, list), torch.empty(0)) for tensor in (x, y)
        ]
        for some in [calls] if at_once else [[call] for call in calls]:
            quantity.add("a", some)
        quantity.commit()
        quantity.end_batch(None)
        found.append(quantity.results(4))

    for groups in found:
        shares = groups["input_variances"]["a"]
        assert shares == pytest.approx(whole.explained_variance_ratio_, abs=1e-6)
        assert groups["input_convergence"]["a"][1] == 72


def test_halves_are_of_their_own_batches():
    """Every other one, as if each had been measured alone."""
    model, targets = tiny("llama_gqa_lm")
    batches = batches_for("llama_gqa_lm")
    options = {"target_modules": targets, **WANTED}

    found = measure(model, batches, halves=True, **options)

    alone = [measure(model, some, **options) for some in (batches, batches[::2], batches[1::2])]
    for part, other in zip((found, *found.halves), alone, strict=True):
        assert_close(part, other, 1e-6)
        for name, told in other.quantities["input_convergence"].items():
            assert (part.quantities["input_convergence"][name][1:] == told[1:]).all()


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("halves", [False, True])
def test_a_run_that_was_cut_off_goes_on(after, halves, tmp_path):
    """To the same bytes, and modules with one input go on with one state."""
    model, targets = tiny("llama_gqa_lm")
    batches, file = batches_for("llama_gqa_lm"), tmp_path / "sums.safetensors"
    options = {"target_modules": targets, "halves": halves, **WANTED}

    def stop(done: int, expected: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, batches, progress_file=file, on_batch=stop, **options)

    resumed = measure(model, batches, progress_file=file, **options)

    assert_identical(resumed, measure(model, batches, **options))
    resumed.save(tmp_path / "statistics.safetensors")
    read = Saved.load(tmp_path / "statistics.safetensors")
    assert_identical(read, resumed, in_order=False)


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_is_foreseen_to_the_byte(halves, dtype):
    """Components of run and halves, those that a pass replaces, and as many rows as may wait."""
    modules = [TargetModule("a", 30, 4), TargetModule("b", 80, 4)]
    quantity = InputComponents(modules)
    seen = {}
    for number in range(4):
        if halves:
            quantity.keep_apart(is_second=number % 2 == 1)
        x = {m.name: torch.randn(2, 600, m.d_in, dtype=dtype) for m in modules}
        show(quantity, Pass(torch.ones(2), None, is_whole=False), x)
        if number == 3:  # before the last commit: all states that are held at once
            seen = held_by(quantity)
        quantity.commit()
        if number < 3:
            quantity.end_batch(None)

    wanted = bytes_recorded(modules, "input_components", halves=halves, itemsize=dtype.itemsize)
    rows = (1 + halves) * 1024 * dtype.itemsize * sum(m.d_in for m in modules)
    assert wanted == sum(t.numel() * t.itemsize for t in seen) + rows


def held_by(quantity: InputComponents) -> set[torch.Tensor]:
    """Tensors of all states, committed and not."""
    states = [*quantity._held.values(), *quantity._staged.values()]
    found = {g.components for by_key in states for g in by_key.values()} - {None}
    fields = ("mean", "total", "values", "vectors", "similarity")
    return {getattr(components, field) for components in found for field in fields}


def test_an_input_that_is_not_finite_is_named():
    """By its module, before any solver fails on it."""
    model, _ = tiny("llama_gqa_lm")
    name = "model.layers.1.mlp.down_proj"
    batches = batches_for("llama_gqa_lm")
    loss_fn = lambda outputs, batch: torch.zeros(len(batch["labels"]))  # noqa: E731

    with (
        model.get_submodule("model.layers.1.mlp.act_fn").register_forward_hook(
            lambda module, args, output: output * torch.nan
        ),
        pytest.raises(NumericalFailure, match=name),
    ):
        measure(model, batches, target_modules=[name], loss_fn=loss_fn, **WANTED)


def test_encoder_decoders_are_refused():
    """Their tokens are of two kinds, and labels stand at those of one."""
    model = SEQ2SEQ_MODELS["t5"]()

    with pytest.raises(UnsupportedModule, match="record='input_components'"):
        measure(model, [], **WANTED)
