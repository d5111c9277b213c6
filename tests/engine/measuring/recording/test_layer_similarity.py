"""How alike a layer's input and output are, against hidden states that the model itself gives."""

import numpy as np
import pytest
import torch

from fimlora import (
    Settings,
    Statistics,
    allocate,
    measure,
    measure_folder,
    measure_streamed,
    score,
)
from fimlora.allocation.layers import n_layers_of
from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.measuring.recording.layer_similarity import LayerSimilarity, token_of
from fimlora.measuring.recording.quantity import Pass
from fimlora.methods.registry import find_method
from fimlora.model.end_token import is_last_token
from support.models import TINY_MODELS, make_batch, tiny
from support.seq2seq import SEQ2SEQ_MODELS
from support.streaming import quiet, save

__all__ = ["quiet"]  # a fixture of every test here

FLOAT64 = 1e-10
LENGTHS = ([31, 9, 7, 3], [12, 5, 20], [4, 17])
LAST = {"llama_gqa_lm": True, "gpt2_lm": True, "bert_classifier": False}
BLOCKS = {
    "llama_gqa_lm": "model.layers.{}",
    "gpt2_lm": "transformer.h.{}",
    "bert_classifier": "bert.encoder.layer.{}",
}


def batches_of(name, *, left=False):
    """Uneven rows, padded on the right or on the left."""
    batches = [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
    if left:
        for batch in batches:
            for row, n in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
                for value in batch.values():
                    if value.dim() == 2:
                        value[row] = value[row].roll(value.shape[1] - n)
    return batches


def states_of(model, batches, *, is_last):
    """Hidden states around each layer, one example at a time (L+1 N D)."""
    found = []
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            with torch.no_grad():
                states = model(
                    input_ids=ids[None], attention_mask=mask[None], output_hidden_states=True
                ).hidden_states
            places = [i for i, is_token in enumerate(mask.tolist()) if is_token]
            at = places[-1] if is_last else places[0]
            found.append(torch.stack([s[0, at] for s in states]))
    return torch.stack(found, dim=1).double().numpy()


def debiased_cka(X, Y):
    """Song et al.'s sum over all i, j, k, l that differ, as a U-statistic without a trick."""

    def hsic(A, B):
        K, L = A @ A.T, B @ B.T
        n = len(K)
        np.fill_diagonal(K, 0)
        np.fill_diagonal(L, 0)
        total = np.trace(K @ L) + K.sum() * L.sum() / ((n - 1) * (n - 2))
        return (total - 2 * K.sum(axis=0) @ L.sum(axis=0) / (n - 2)) / (n * (n - 3))

    return hsic(X, Y) / np.sqrt(hsic(X, X) * hsic(Y, Y))


def biased_cka(X, Y):
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    return np.linalg.norm(X.T @ Y) ** 2 / (np.linalg.norm(X.T @ X) * np.linalg.norm(Y.T @ Y))


def similarity_of(statistics: Statistics, block: str) -> np.ndarray:
    """What the modules of a layer all have."""
    found = {
        tuple(statistics.quantities["layer_similarity"][m.name])
        for m in statistics.modules
        if m.block == block
    }
    [one] = found
    return np.array(one)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", sorted(LAST))
def test_it_is_that_of_the_hidden_states_the_model_gives(name, left):
    """At the last token of decoders and the first of encoders, wherever the padding is."""
    model, targets = tiny(name, torch.float64)
    batches = batches_of(name, left=left)
    states = states_of(model, batches, is_last=LAST[name])

    statistics = measure(
        model, batches, target_modules=targets, record="layer_similarity", micro_batch_size=3
    )

    n_layers = 2
    for i in range(n_layers - 1):  # the model norms what comes out of the last one
        X, Y = states[i], states[i + 1]
        debiased, biased, n, last = similarity_of(statistics, BLOCKS[name].format(i))
        assert (n, last) == (9, LAST[name])
        if not LAST[name] and i == 0:  # one embedding for all: [CLS]s do not differ
            assert np.ptp(X, axis=0).max() == 0 or debiased == pytest.approx(debiased_cka(X, Y))
            continue
        assert debiased == pytest.approx(debiased_cka(X, Y), rel=1e-5)  # states are float32
        assert biased == pytest.approx(biased_cka(X, Y), rel=1e-5)


def test_the_last_layer_is_compared_before_the_final_norm():
    """Its output is the block's own."""
    model, targets = tiny("llama_gqa_lm", torch.float64)
    batches = batches_of("llama_gqa_lm")
    outputs = []
    handle = model.model.layers[1].register_forward_hook(
        lambda module, args, output: outputs.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    before = states_of(model, batches, is_last=True)[1]
    handle.remove()
    lengths = [n for batch in batches for n in batch["attention_mask"].sum(dim=1).tolist()]
    ends = [output[0, n - 1] for output, n in zip(outputs, lengths, strict=True)]
    after = torch.stack(ends).double().numpy()

    statistics = measure(model, batches, target_modules=targets, record="layer_similarity")

    debiased, biased, *_ = similarity_of(statistics, "model.layers.1")
    assert debiased == pytest.approx(debiased_cka(before, after), rel=1e-5)
    assert biased == pytest.approx(biased_cka(before, after), rel=1e-5)


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_streamed_it_is_the_same_to_the_last_bit(name, tmp_path):
    """With halves and a null beside it, in micro-batches."""
    model, targets = tiny(name)
    resident, batches = save(model, tmp_path), batches_of(name)
    options = {
        "target_modules": targets, "record": "layer_similarity", "halves": True, "null": True,
        "micro_batch_size": 3,
    }  # fmt: skip

    streamed = measure_streamed(tmp_path, batches, Settings(**options))
    wanted = measure(resident, batches, **options)

    assert streamed.to_bytes() == wanted.to_bytes()
    assert streamed.quantities["layer_similarity"]
    assert wanted.null is not None
    assert not wanted.null.quantities  # no label moves it


@pytest.mark.parametrize("name", ["llama_gqa_lm", "bert_classifier", "gpt2_lm"])
def test_forward_passes_alone_give_it(name, tmp_path):
    """Nothing goes back; resident, streamed, with halves, and after an interruption."""
    model, targets = tiny(name)
    resident, batches = save(model, tmp_path), batches_of(name)
    options = {
        "target_modules": targets, "record": "layer_similarity", "halves": True,
        "estimator": "none", "micro_batch_size": 3,
    }  # fmt: skip
    whole = measure(resident, batches, **options | {"estimator": "exact"})
    calls = []

    def stop(done, of):
        calls.append(done)
        if len(calls) == 1:  # behind a block
            raise KeyboardInterrupt

    forward = measure(resident, batches, **options)
    streamed = measure_streamed(tmp_path, batches, Settings(**options))
    file = tmp_path / "sums"
    with pytest.raises(KeyboardInterrupt):
        measure_streamed(
            tmp_path, batches, Settings(on_batch=stop, progress_file=file, **options)
        )
    resumed = measure_streamed(tmp_path, batches, Settings(progress_file=file, **options))

    assert not forward.row_energies
    assert streamed.to_bytes() == resumed.to_bytes() == forward.to_bytes()
    assert forward.halves is not None
    assert forward.halves[0].quantities["layer_similarity"]
    for module, alike in whole.quantities["layer_similarity"].items():
        assert forward.quantities["layer_similarity"][module] == pytest.approx(alike, rel=1e-5)


def test_micro_batches_and_the_order_in_a_batch_change_no_more_than_rounding():
    """Rows are sorted by length inside; the estimate does not know."""
    model, targets = tiny("llama_gqa_lm", torch.float64)
    batches = batches_of("llama_gqa_lm")
    backwards = [{key: value.flip(0) for key, value in batch.items()} for batch in batches]
    options = {"target_modules": targets, "record": "layer_similarity"}

    once, *others = (
        similarity_of(measure(model, some, **more, **options), "model.layers.0")
        for some, more in (
            (batches, {}),
            (batches, {"micro_batch_size": 1}),
            (backwards, {}),
            ([*batches[1:], batches[0]], {}),
        )
    )

    for other in others:
        assert other == pytest.approx(once, rel=1e-6)


def test_halves_are_those_of_their_own_examples():
    """Every other batch, as a run over these alone has it."""
    model, targets = tiny("llama_gqa_lm")
    batches = batches_of("llama_gqa_lm")
    options = {"target_modules": targets, "record": "layer_similarity"}

    statistics = measure(model, batches, halves=True, **options)

    assert statistics.halves is not None
    alone = measure(model, batches[::2], **options)
    assert (
        similarity_of(statistics.halves[0], "model.layers.0").tolist()
        == similarity_of(alone, "model.layers.0").tolist()
    )
    assert not statistics.halves[1].quantities  # three examples are too few


def test_a_run_that_was_cut_off_goes_on_to_the_same(tmp_path):
    """With the hidden states of the batches before."""
    model, targets = tiny("llama_gqa_lm")
    batches = batches_of("llama_gqa_lm")
    options = {"target_modules": targets, "record": "layer_similarity", "halves": True}
    wanted = measure(model, batches, **options)

    def stop(done, _):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, batches, on_batch=stop, progress_file=tmp_path / "sums", **options)
    resumed = measure(model, batches, progress_file=tmp_path / "sums", **options)

    assert resumed.to_bytes() == wanted.to_bytes()


def test_a_streamed_run_that_was_cut_off_goes_on_to_the_same(tmp_path):
    """Block by block."""
    model, targets = tiny("llama_gqa_lm")
    save(model, tmp_path)
    batches = batches_of("llama_gqa_lm")
    options = {"target_modules": targets, "record": "layer_similarity"}
    wanted = measure_streamed(tmp_path, batches, Settings(**options))
    calls = []

    def stop(done, of):
        calls.append(done)
        if len(calls) == 3:  # behind both blocks forward and one on the way back
            raise KeyboardInterrupt

    file = tmp_path / "sums"
    with pytest.raises(KeyboardInterrupt):
        measure_streamed(
            tmp_path, batches, Settings(on_batch=stop, progress_file=file, **options)
        )
    assert file.exists()
    resumed = measure_streamed(tmp_path, batches, Settings(progress_file=file, **options))

    assert resumed.to_bytes() == wanted.to_bytes()


def test_hidden_states_are_kept_of_the_first_examples_alone():
    """The rest of a long run costs no memory."""
    model, targets = tiny("llama_gqa_lm")
    modules = measure(model, batches_of("llama_gqa_lm")[:1], target_modules=targets).modules
    found = []
    for most, n_batches in ((7, 2), (100, 2)):
        quantity = LayerSimilarity(modules, most_examples=most)
        for seed in range(n_batches):
            quantity.begin(pass_of(5))
            for name in (m.name for m in modules):
                assert quantity.keep(name, torch.zeros(5, 4, 8), list) == ()
                quantity.add(name, [])
            for layer in range(2):
                x, y = torch.randn(
                    2, 5, 4, 8, generator=torch.Generator().manual_seed(seed + layer)
                )
                quantity.see_layer(f"model.layers.{layer}", x, y, is_last=True)
            quantity.commit()
            quantity.end_batch(None)
        found.append(next(iter(quantity.results(10)["layer_similarity"].values()))[2])

    assert found == [7, 10]


def pass_of(n):
    return Pass(torch.ones(n), None, True)


def test_a_token_is_found_on_either_side_of_padding():
    """And without a mask, or with one of other tokens, at the end of the row."""
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]])

    assert token_of(mask, 4, 4, is_last=True).tolist() == [1, 3, 3, 2]
    assert token_of(mask, 4, 4, is_last=False).tolist() == [0, 2, 0, 1]
    assert token_of(None, 2, 5, is_last=True).tolist() == [4, 4]
    assert token_of(mask, 4, 9, is_last=False).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_encoders_are_told_from_decoders(name):
    """By what their architecture is trained to do."""
    model, _ = tiny(name)

    assert is_last_token(model) == (
        not name.startswith(("bert", "deberta", "roberta", "distil"))
    )


# --- the methods -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cka-layers", "cka-layers-biased"])
def test_the_layers_least_like_their_input_are_chosen(method):
    """By either estimate; the provenance has them, and which token was compared."""
    model, targets = tiny("llama_gqa_lm")
    statistics = measure(
        model, batches_of("llama_gqa_lm"), target_modules=targets, record="layer_similarity"
    )
    place = 0 if method == "cka-layers" else 1
    wanted = {
        f"model.layers.{i}": similarity_of(statistics, f"model.layers.{i}")[place]
        for i in range(2)
    }

    scores = score(statistics, method)
    plan = allocate(scores, 4)

    assert scores.by_layer == pytest.approx({block: 1 - cka for block, cka in wanted.items()})
    assert {m.block for m in plan.modules if plan.ranks[m.name]} == {
        min(wanted, key=wanted.get)
    }
    assert n_layers_of(plan.modules, plan.ranks) == 1
    assert plan.provenance["layer_similarity"] == pytest.approx(wanted)
    assert plan.provenance["similarity_token"] == "last"
    assert plan.provenance["similarity_examples"] == 9
    assert not find_method(method).reads_labels


def test_too_few_examples_are_refused():
    """The debiased estimate divides by their number less three."""
    model, targets = tiny("llama_gqa_lm")
    statistics = measure(
        model,
        [make_batch("llama_gqa_lm", [9, 5, 4])],
        target_modules=targets,
        record="layer_similarity",
    )

    with pytest.raises(InvalidOption, match=r"cka-layers.* there are 3; measure at least four"):
        score(statistics, "cka-layers")


@pytest.mark.parametrize("executor", ["resident", "streamed"])
@pytest.mark.parametrize(("lengths", "there"), [([9, 5, 4], "are 3"), ([7], "is one")])
def test_a_run_that_compares_too_few_says_so(lengths, there, executor, tmp_path):
    """Nothing is recorded then, and no gradient was wanted."""
    model, targets = tiny("llama_gqa_lm")
    save(model, tmp_path)
    settings = Settings(target_modules=targets, record="layer_similarity", estimator="none")

    with pytest.raises(InvalidOption, match=f"there {there}; measure at least 4"):
        measure_folder(
            tmp_path, [make_batch("llama_gqa_lm", lengths)], settings, executor=executor
        )


@pytest.mark.parametrize("name", sorted(SEQ2SEQ_MODELS)[:1])
def test_two_stacks_are_not_ranked_with_each_other(name):
    """Refused before anything is measured, with what is allowed."""
    model = SEQ2SEQ_MODELS[name]()

    with pytest.raises(UnsupportedModule, match=r"two stacks .* 'fisher-layers' is allowed"):
        measure(model, [], record="layer_similarity")
