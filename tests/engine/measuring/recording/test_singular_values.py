"""Spectra of mean gradients and input moments, against the gradients and inputs themselves."""

from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from fimlora import Statistics, find_targets, measure
from fimlora.errors import InvalidOption, InvalidStatistics
from fimlora.measuring.recording.mean_gradient import MeanGradient, Signs, SketchedSum
from fimlora.measuring.recording.quantity import SeenCall
from fimlora.measuring.recording.singular_values import N_LEADING, exact_spectrum
from fimlora.memory.need import sketch_is_smaller
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import RESOLVED_ERROR
from support.models import TINY_MODELS, make_batch, minilm_path, tiny
from support.reference import relative_error, weight_gradients_by_example

FLOAT32 = 1e-5
SKETCH = 0.01  # what is promised of each of the leading values
LENGTHS = ([9, 5, 7, 2], [6, 9, 3])
BOTH = ("spectra", "moments")


@pytest.fixture(params=sorted(TINY_MODELS))
def name(request):
    return request.param


@pytest.fixture
def padded_batches(name):
    return [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]


def matrix_with(values, d_out, d_in):
    """A matrix of given singular values between random directions."""
    values = torch.as_tensor(values, dtype=torch.float64)
    U = torch.linalg.qr(torch.randn(d_out, len(values), dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(d_in, len(values), dtype=torch.float64)).Q
    return (U * values) @ V.T


def sketched(G, *, width=256, n_parts=1):
    """Feed a matrix to a sketch as if tokens had made it, in several batches."""
    d_out, d_in = G.shape
    g, x = G.T, torch.eye(d_in, dtype=G.dtype)  # one token for each input feature
    sketch = SketchedSum(TargetModule("m", d_in, d_out), Signs(width))
    for some_x, some_g in zip(x.chunk(n_parts), g.chunk(n_parts), strict=True):
        sketch.add(some_x, some_g)
        for staged in sketch.sums():
            staged.commit()
    return sketch.spectrum(1)


# --- what a run records ------------------------------------------------------------------


def test_spectra_are_those_of_the_mean_gradient(name, padded_batches):
    """Values and energy equal a full SVD of the mean of all examples' own gradients."""
    model, targets = tiny(name)
    gradients = weight_gradients_by_example(model, padded_batches, find_targets(model, targets))

    statistics = measure(model, padded_batches, target_modules=targets, record="spectra")

    for module in statistics.modules:
        G = gradients[module.name].mean(dim=0).double()
        values = torch.linalg.svdvals(G)
        found = torch.as_tensor(statistics.spectra[module.name])
        assert (found - values).abs().max() <= FLOAT32 * values[0]
        assert statistics.mean_energies[module.name] == pytest.approx(
            G.square().sum().item(), rel=FLOAT32
        )
        assert statistics.resolved_shares()[module.name] == pytest.approx(1, rel=FLOAT32)
    assert statistics.unresolved_spectra() == ()


def test_moments_are_those_of_the_tokens_that_are_not_padding(name, padded_batches):
    """Inputs seen by plain hooks, one unpadded example at a time, give the same sums."""
    model, targets = tiny(name, torch.float64)
    modules = find_targets(model, targets)
    wanted = {m.name: torch.zeros(m.d_in, dtype=torch.float64) for m in modules}
    counts = dict.fromkeys(wanted, 0)

    def see(module, args, output, *, name):
        x = args[0].detach().flatten(0, -2)
        wanted[name] += x.square().sum(dim=0)
        counts[name] += len(x)

    with ExitStack() as stack:
        for module in modules:
            hook = partial(see, name=module.name)
            handle = model.get_submodule(module.name).register_forward_hook(hook)
            stack.callback(handle.remove)
        for batch in padded_batches:
            for row, mask in enumerate(batch["attention_mask"]):
                ids = batch["input_ids"][row : row + 1, : int(mask.sum())]
                model(input_ids=ids, attention_mask=torch.ones_like(ids))

    statistics = measure(model, padded_batches, target_modules=targets, record="moments")

    for module in modules:
        found = statistics.input_squares[module.name]
        assert relative_error(found, wanted[module.name]) <= 1e-10, module.name
        assert statistics.token_counts[module.name].tolist() == [counts[module.name]]


@pytest.mark.parametrize("estimator", ["exact", "sampled", "both"])
def test_recording_more_changes_nothing_else(estimator):
    """The sums of the estimators stay the same to the last bit, and cost is opt-in."""
    model, targets = tiny("llama_gqa_lm")
    batches = [make_batch("llama_gqa_lm", [9, 5, 7])]
    options = {"target_modules": targets, "estimator": estimator}

    plain = measure(model, batches, **options)
    more = measure(model, batches, record=BOTH, **options)

    for group in ("row_energies", "example_energies", "squared_gradients"):
        for module, values in getattr(plain, group).items():
            assert np.array_equal(values, getattr(more, group)[module])
    assert plain.spectra == plain.input_squares == {}
    assert set(more.spectra) == set(more.input_squares) == {m.name for m in more.modules}


def test_micro_batches_and_the_split_into_batches_change_nothing():
    """Sums run over tokens, so how these are grouped is rounding at most."""
    model, targets = tiny("bert_classifier", torch.float64)
    whole = make_batch("bert_classifier", [9, 5, 7, 2])
    halves = [{k: v[:2] for k, v in whole.items()}, {k: v[2:] for k, v in whole.items()}]
    options = {"target_modules": targets, "record": BOTH}

    runs = [
        measure(model, [whole], **options),
        measure(model, [whole], micro_batch_size=1, **options),
        measure(model, halves, **options),
    ]

    for other in runs[1:]:
        for name, values in runs[0].spectra.items():
            assert relative_error(other.spectra[name], values) <= 1e-7
            moments = runs[0].input_squares[name]
            assert relative_error(other.input_squares[name], moments) <= 1e-12


def test_statistics_with_spectra_and_moments_survive_a_file(tmp_path):
    """What is read is what was written, bit by bit."""
    model, targets = tiny("gpt2_lm")
    batches = [make_batch("gpt2_lm", [9, 5])]
    statistics = measure(model, batches, target_modules=targets, record=BOTH)

    statistics.save(tmp_path / "s")
    found = Statistics.load(tmp_path / "s")

    for group in ("spectra", "mean_energies", "spectrum_errors", "input_squares"):
        mine, theirs = getattr(statistics, group), getattr(found, group)
        assert mine.keys() == theirs.keys() != set()
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert found.provenance() == statistics.provenance()


def test_moments_merge_and_spectra_refuse_to():
    """Singular values do not add up, so merging names them instead of guessing."""
    model, targets = tiny("bert_classifier", torch.float64)
    first, second = (make_batch("bert_classifier", [9, 5], seed=i) for i in range(2))
    options = {"target_modules": targets}

    def run(batches, record):
        return measure(model, batches, record=record, **options)

    merged = run([first], "moments").merge(run([second], "moments"))
    at_once = run([first, second], "moments")

    for name, values in at_once.input_squares.items():
        assert relative_error(merged.input_squares[name], values) <= 1e-12
        assert merged.token_counts[name] == at_once.token_counts[name]
    with pytest.raises(InvalidStatistics, match="spectra"):
        run([first], BOTH).merge(run([second], "moments"))
    with pytest.raises(InvalidStatistics, match="input_squares"):
        run([first], ()).merge(run([second], "moments"))


def test_an_unknown_record_is_refused_by_name():
    """The message says what can be recorded."""
    model, targets = tiny("bert_classifier")

    with pytest.raises(InvalidOption, match=r"'spectrum'.*'spectra', 'moments'"):
        measure(model, [], target_modules=targets, record="spectrum")


# --- the sketch --------------------------------------------------------------------------

J = np.arange(1, 641)
DECAYS = {
    "one over j": 1 / J,
    "j to the -1.5": J**-1.5,
    "exponential": 0.95**J,
    "steps": np.where(J <= 8, 1.0, np.where(J <= 40, 0.3, 1e-3)),
}


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("shape", [(960, 640), (640, 960)], ids=["tall", "wide"])
def test_the_sketch_is_within_a_hundredth_of_exact_svd(decay, shape):
    """Each of the leading 16 values, where gradients decay as real ones do."""
    torch.manual_seed(0)
    G = matrix_with(DECAYS[decay], *shape)

    spectrum = sketched(G, n_parts=3)

    wanted = torch.linalg.svdvals(G)[:N_LEADING]
    assert ((spectrum.values[:N_LEADING] - wanted).abs() / wanted).max() <= SKETCH
    assert spectrum.error <= RESOLVED_ERROR
    assert spectrum.energy == pytest.approx(G.square().sum().item(), rel=SKETCH)


@pytest.mark.parametrize("power", [0.0, 0.5, 0.75, 1.0, 1.5])
def test_the_stated_error_covers_the_error_or_says_unresolved(power):
    """Flat spectra are marked; the energy is right for them too."""
    torch.manual_seed(1)
    G = matrix_with(J**-power, 960, 640)
    wanted = torch.linalg.svdvals(G)[:N_LEADING].square().sum().item()

    spectrum = sketched(G)

    error = abs(spectrum.values[:N_LEADING].square().sum().item() / wanted - 1)
    assert error <= spectrum.error or spectrum.error > RESOLVED_ERROR
    assert (spectrum.error > RESOLVED_ERROR) == (power < 0.75)
    assert spectrum.energy == pytest.approx(G.square().sum().item(), rel=0.05)


def test_a_gradient_of_few_tokens_is_sketched_to_rounding():
    """Its rank is below the width of the sketch, so nothing is in the tail."""
    torch.manual_seed(0)
    G = matrix_with(J[:20] ** -0.5, 960, 640)

    spectrum = sketched(G)

    wanted = torch.linalg.svdvals(G)
    assert (spectrum.values[:20] - wanted[:20]).abs().max() <= 1e-7
    assert spectrum.values[20:].max() <= 1e-7
    assert spectrum.error <= 0.001 + 1e-9


def test_sketches_of_a_pretrained_models_gradients():
    """Each of the leading values of MiniLM's gradients is within a hundredth."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm_path(), num_labels=3)
    batches = [make_batch("bert_classifier", [24] * 8, seed=i) for i in range(2)]
    modules = find_targets(model, ["output.dense", "intermediate.dense"])[:4]
    gradients = weight_gradients_by_example(model, batches, modules)

    for module in modules:
        G = gradients[module.name].mean(dim=0).double()
        spectrum, wanted = sketched(G), exact_spectrum(G)
        leading = wanted.values[:N_LEADING]
        error = (spectrum.values[:N_LEADING] - leading).abs() / leading
        assert error.max() <= SKETCH, (module.name, error)
        assert spectrum.error <= RESOLVED_ERROR
        assert spectrum.energy == pytest.approx(wanted.energy, rel=SKETCH)


def test_gradients_are_sketched_above_the_memory_bound_and_only_where_it_saves():
    """Query, key and value see one input through the same signs and differ all the same."""
    torch.manual_seed(0)
    big = [TargetModule(name, 1024, d_out) for name, d_out in (("q", 1024), ("v", 1400))]
    small = TargetModule("small", 1024, 8)
    modules = [*big, small]
    x = torch.randn(300, 1024) @ matrix_with(1 / np.arange(1, 301), 1024, 1024).float()
    gs = {m.name: torch.randn(300, m.d_out) for m in modules}
    needed = 4 * sum(m.d_in * m.d_out for m in modules)

    def run(spectra_bytes):
        sums = MeanGradient(modules, spectra_bytes=spectra_bytes)
        for m in modules:
            sums.add(m.name, [SeenCall((x.detach()[None],), gs[m.name][None])])
        sums.commit()
        return sums.results(2)

    exact, sketch = run(needed), run(needed - 1)

    assert [sketch_is_smaller(m) for m in modules] == [True, True, False]
    assert [exact["spectrum_errors"][m.name].item() for m in modules] == [0, 0, 0]
    assert np.array_equal(exact["spectra"]["small"], sketch["spectra"]["small"])
    for module in big:
        wanted = torch.linalg.svdvals(gs[module.name].mT @ x / 2)[:N_LEADING]
        found = sketch["spectra"][module.name]
        assert sketch["spectrum_errors"][module.name].item() > 0
        assert relative_error(found[:N_LEADING], wanted) <= SKETCH
        assert found.shape == (64,)
