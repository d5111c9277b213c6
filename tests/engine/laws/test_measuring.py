"""What must not change the statistics, and what hooks must see through."""

import pytest
import torch

from fimlora import measure, score
from fimlora.numerics.seeded_draws import draw_lora_a
from support.models import make_batch, tiny
from support.reference import relative_error
from support.statistics import assert_close
from support.toys import BETWEEN, make_toy, squared_sum, toy_batch, toy_gradients

# Models run in float64; what is left is the order of additions.
SAME = 1e-10
MODELS = ("bert_classifier", "deberta_v2_classifier", "llama_gqa_lm", "gpt2_lm")


def measured(name, batches, **options):
    model, targets = tiny(name, torch.float64)
    options = {"target_modules": targets, "estimator": "both", "rank": 4, **options}
    return measure(model, batches, **options)


def measured_toy(between, batch, **options):
    options = {"target_modules": ["first", "second"], "estimator": "both", **options}
    return measure(make_toy(between), [batch], loss_fn=squared_sum, **options)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 99])
def test_micro_batch_size_changes_nothing(name, micro_batch_size):
    """The gradients of one calibration batch are summed before they are squared."""
    batches = [make_batch(name, [9, 4, 6, 2, 8]), make_batch(name, [3, 5], seed=1)]

    found = measured(name, batches, micro_batch_size=micro_batch_size)

    assert_close(found, measured(name, batches), SAME)


@pytest.mark.parametrize("name", MODELS)
def test_batch_size_changes_no_per_example_statistic(name):
    """The same examples one by one, or together, have the same energies."""
    together = make_batch(name, [9, 4, 6])
    alone = [{k: v[i : i + 1] for k, v in together.items()} for i in range(3)]

    found = measured(name, alone, estimator="exact")

    assert_close(found, measured(name, [together], estimator="exact"), SAME)


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing(name):
    """Wider padding adds tokens whose gradient is zero."""
    lengths = [9, 4, 6]

    found = measured(name, [make_batch(name, lengths, width=17)])

    assert_close(found, measured(name, [make_batch(name, lengths)]), SAME)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_merged_shards_equal_one_run(order):
    """Sums over batches may be taken on different machines, in any order."""
    name = "bert_classifier"
    batches = [make_batch(name, [5, 3, 4], seed=i) for i in range(3)]
    shards = [measured(name, [batch]) for batch in batches]

    found = shards[order[0]].merge(shards[order[1]]).merge(shards[order[2]])

    whole = measured(name, batches)
    assert (found.n_examples, found.n_batches) == (whole.n_examples, whole.n_batches) == (9, 3)
    assert_close(found, whole, SAME, groups=("row_energies", "squared_gradients"))
    for module in whole.modules:
        pair = (s.example_energies[module.name] for s in (found, whole))
        assert relative_error(*(sorted(values) for values in pair)) <= SAME


def test_an_example_without_labels_does_not_count():
    """It is left out before the forward pass, from the sums and from their number."""
    batch = make_batch("llama_gqa_lm", [9, 4, 6])
    batch["labels"][1] = -100
    others = {name: value[[0, 2]] for name, value in batch.items()}

    found = measured("llama_gqa_lm", [batch])

    assert found.n_examples == 2
    assert_close(found, measured("llama_gqa_lm", [others]), SAME)


@pytest.mark.parametrize("between", sorted(BETWEEN))
def test_each_habit_of_a_model_is_seen_through(between):
    """Energies equal those of one backward pass per example on the weights themselves."""
    batch = toy_batch()

    found = measured_toy(between, batch, estimator="exact")

    for module in found.modules:
        rows = toy_gradients(between, batch, module.name).square().sum(dim=(0, 2))
        assert relative_error(found.row_energies[module.name], rows) <= SAME


@pytest.mark.parametrize("between", sorted(BETWEEN))
def test_sampled_is_the_batch_gradient_projected_by_the_lora_a(between):
    """``G A^T`` of the mean loss, squared, whatever the model does between its modules."""
    batch = toy_batch()

    found = measured_toy(between, batch, estimator="sampled", rank=3, seed=5)

    for module in found.modules:
        G = toy_gradients(between, batch, module.name).mean(dim=0)
        A = draw_lora_a(module, rank=3, seed=5).double()
        squares = (G @ A.T).square()
        # The weights of the examples are float32.
        assert relative_error(found.squared_gradients[module.name], squares) <= 1e-6


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_of_transformers_changes_nothing(use_reentrant):
    """Forward passes that run again in the backward pass report one gradient."""
    batch = make_batch("llama_gqa_lm", [9, 4, 6])
    model, targets = tiny("llama_gqa_lm", torch.float64)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    runs = 0

    def count(module, *_):
        nonlocal runs
        runs += module.training  # else it is only asked something

    model.model.layers[0].self_attn.q_proj.register_forward_hook(count)

    found = measure(
        model, [batch], target_modules=targets, estimator="both", rank=4, train_mode=True
    )

    assert runs == 2
    assert_close(found, measured("llama_gqa_lm", [batch]), SAME)


def test_long_examples_take_the_direct_product_and_agree():
    """Where tokens outnumber features, energies come from the gradients themselves."""
    batch = toy_batch(n_tokens=40)

    found = measured_toy("plain", batch, estimator="exact")

    for module in found.modules:
        examples = toy_gradients("plain", batch, module.name).square().sum(dim=(1, 2))
        assert relative_error(found.example_energies[module.name], examples) <= SAME


def test_the_estimators_do_not_depend_on_being_asked_together():
    """Both at once give bit for bit what each gives alone."""
    batches = [make_batch("bert_classifier", [5, 3, 4])]

    both = measured("bert_classifier", batches)
    exact = measured("bert_classifier", batches, estimator="exact")
    sampled = measured("bert_classifier", batches, estimator="sampled")

    for module in both.modules:
        assert (both.row_energies[module.name] == exact.row_energies[module.name]).all()
        found = both.squared_gradients[module.name]
        assert (found == sampled.squared_gradients[module.name]).all()


def test_other_targets_change_no_module():
    """A module's statistics are its own: the A too depends on nothing but its name."""
    batches = [make_batch("bert_classifier", [5, 3, 4])]

    alone = measured("bert_classifier", batches, target_modules=["value"])

    among = measured("bert_classifier", batches, target_modules="all-linear")
    for module in alone.modules:
        assert (
            alone.squared_gradients[module.name] == among.squared_gradients[module.name]
        ).all()
        assert (alone.row_energies[module.name] == among.row_energies[module.name]).all()


def test_the_seed_changes_the_sampled_estimate_only():
    """With A integrated out, no seed changes a score."""
    batches = [make_batch("bert_classifier", [5, 3, 4])]

    zero, one = (measured("bert_classifier", batches, seed=seed) for seed in (0, 1))

    assert score(zero).by_module == score(one).by_module
    assert (
        score(zero, estimator="sampled").by_module != score(one, estimator="sampled").by_module
    )
