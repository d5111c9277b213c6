"""A head that is fitted: one model whoever measures it, and one that adapters carry.

Families are tried from their base model alone, which is what people fine-tune.
"""

import pytest
import torch
import transformers
from peft import PeftModel

from fimlora import (
    Settings,
    Statistics,
    allocate,
    fit_head,
    fit_head_streamed,
    measure,
    measure_streamed,
    score,
    write_adapter,
)
from fimlora.errors import InvalidOption
from fimlora.measuring.head.fitted import head_of, with_head
from fimlora.model.loading import load
from fimlora.model.skeleton import build_skeleton
from fimlora.model.targets import head_tensors
from support.classifiers import (
    FAMILIES,
    TASK,
    config_of,
    labelled_batch,
    load_classifier,
    save_base,
)
from support.streaming import assert_same, quiet

__all__ = ["quiet"]  # a fixture of every test here

SEED = 5
# Blocks that run twice, or that keep a cache by themselves, are measured resident only.
NOT_STREAMED = {"Albert", "Flaubert", "XLM"}
ENDS_ALIKE = {"Bart", "MBart", "T5", "MT5"}  # they want the same number of ends


def head_batches(family):
    if family in ENDS_ALIKE:
        return [labelled_batch(family, [9, 7]), labelled_batch(family, [5, 5, 5])]
    return [labelled_batch(family, [150, 9, 7, 3]), labelled_batch(family, [12, 5]),
            labelled_batch(family, [40, 6, 6])]  # fmt: skip


def loaded_from(folder):
    skeleton = build_skeleton(folder, model_class=TASK, config=config_of(folder))
    return load(skeleton, folder, seed=SEED)


def streamed_head(family, folder, **options):
    return fit_head_streamed(
        folder,
        head_batches(family),
        model_class=TASK,
        config=config_of(folder),
        weights_seed=SEED,
        **options,
    )


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_both_executors_fit_one_head(family, tmp_path):
    """To the last bit, and so are the statistics that are measured under it."""
    save_base(family, tmp_path)
    loaded = loaded_from(tmp_path)

    resident = fit_head(loaded.model, head_batches(family), drawn=loaded.drawn)
    streamed = streamed_head(family, tmp_path)

    assert streamed.facts == resident.facts
    assert streamed.weights.keys() == resident.weights.keys()
    for name, weight in resident.weights.items():
        assert torch.equal(streamed.weights[name], weight)
        assert torch.equal(loaded.model.get_parameter(name), weight)
    if family in NOT_STREAMED:
        return
    options = {"target_modules": "all-linear", "micro_batch_size": 2, "seed": 3}
    batches = head_batches(family)[:2]
    found = measure_streamed(
        tmp_path,
        batches,
        Settings(**options),
        model_class=TASK,
        config=config_of(tmp_path),
        weights_seed=SEED,
        head_weights=streamed.weights,
    )
    wanted = measure(loaded.model, batches, exclude_modules=sorted(loaded.drawn), **options)
    found, wanted = streamed.stated_in(found), resident.stated_in(wanted)
    for name in wanted.row_energies:
        assert (found.row_energies[name] == wanted.row_energies[name]).all(), name
    assert found.provenance()["head"] == wanted.provenance()["head"] == resident.facts


def test_rows_go_in_groups_where_less_may_flow_at_once(tmp_path):
    """The same head, from several sweeps, and all blocks are counted on the way."""
    save_base("Bert", tmp_path)
    seen, wanted = [], streamed_head("Bert", tmp_path)

    found = streamed_head(
        "Bert", tmp_path, frontier_bytes=1, on_batch=lambda *where: seen.append(where)
    )

    assert found.facts == wanted.facts
    for name, weight in wanted.weights.items():
        assert torch.equal(found.weights[name], weight)
    assert seen == [(n // 2, 3) for n in range(1, 7)]


def test_a_checkpoint_with_its_head_is_not_fitted(tmp_path):
    save_base("Bert", tmp_path / "base")
    load_classifier(tmp_path / "base", seed=1).save_pretrained(tmp_path / "whole")

    head = streamed_head("Bert", tmp_path / "whole")

    assert (head.facts, head.weights) == ({"kind": "pretrained"}, {})


def test_only_what_is_drawn_may_be_given(tmp_path):
    save_base("Bert", tmp_path)
    weights = {"bert.embeddings.LayerNorm.weight": torch.ones(32)}

    with pytest.raises(InvalidOption, match="none that the checkpoint lacks"):
        measure_streamed(
            tmp_path, head_batches("Bert"), model_class=TASK, config=config_of(tmp_path),
            head_weights=weights,
        )  # fmt: skip


def test_a_fitted_head_is_lent_to_a_model(tmp_path):
    """So that a model which stays loaded is the drawn one again, whatever happens."""
    save_base("Bert", tmp_path)
    model = loaded_from(tmp_path).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head = streamed_head("Bert", tmp_path)

    def fail():
        with with_head(model, head.weights):
            assert all(torch.equal(model.get_parameter(n), w) for n, w in head.weights.items())
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_keep_the_head_that_they_were_measured_under(dtype, tmp_path):
    """In their file, to the last bit."""
    save_base("Bert", tmp_path, dtype=dtype)
    head = streamed_head("Bert", tmp_path, dtype=dtype)
    statistics = head.stated_in(measure(loaded_from(tmp_path).model, head_batches("Bert")))

    statistics.save(tmp_path / "statistics.safetensors")
    stored = Statistics.load(tmp_path / "statistics.safetensors")

    assert_same(stored, statistics)
    kept = head_of(stored)
    assert kept is not None
    assert kept.facts == head.facts
    for name, weight in head.weights.items():
        assert weight.dtype is dtype
        assert torch.equal(kept.weights[name].to(dtype), weight)


@pytest.mark.parametrize(
    "family",
    ["Bert", "DebertaV2", "DistilBert", "GPT2", "Llama", "ModernBert", "Roberta", "XLM"],
)
def test_an_adapter_carries_the_fitted_head(family, tmp_path):
    """Stock PEFT on bases with heads of two seeds: equal logits, those of the fitted model."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_base(family, base)
    loaded = loaded_from(base)
    head = fit_head(loaded.model, head_batches(family), drawn=loaded.drawn)
    statistics = head.stated_in(
        measure(
            loaded.model, head_batches(family), target_modules="all-linear",
            exclude_modules=sorted(loaded.drawn),
        )
    )  # fmt: skip
    plan = allocate(score(statistics), 4)

    write_adapter(
        plan,
        adapter,
        base_model=str(base),
        task_type="SEQ_CLS",
        weights=True,
        head=head_tensors(loaded.model, drawn=loaded.drawn),
        model=loaded.model,
    )

    batch = labelled_batch(family, [9, 9])
    batch.pop("labels")
    wanted = loaded.model(**batch).logits
    assert not torch.allclose(loaded_from(base).model(**batch).logits, wanted, atol=1e-3)
    for seed in (0, 1):
        adapted = PeftModel.from_pretrained(load_classifier(base, seed=seed), adapter).eval()
        torch.testing.assert_close(adapted(**batch).logits, wanted, rtol=1e-6, atol=1e-6)
    assert plan.provenance["head"] == head.facts


def test_statistics_of_other_heads_are_not_merged(tmp_path):
    save_base("Bert", tmp_path)
    model = loaded_from(tmp_path).model
    one = measure(model, head_batches("Bert"))
    transformers.set_seed(0)

    with pytest.raises(ValueError, match="differ in head"):
        streamed_head("Bert", tmp_path).stated_in(one).merge(one)


def test_the_parts_of_a_run_were_measured_under_its_head(tmp_path):
    """What comes from a file adds up with what was measured now, its null and halves too."""
    save_base("Bert", tmp_path)
    measured = measure(
        loaded_from(tmp_path).model, head_batches("Bert"), null=True, halves=True
    )
    statistics = streamed_head("Bert", tmp_path).stated_in(measured)
    statistics.save(tmp_path / "statistics.safetensors")
    stored = Statistics.load(tmp_path / "statistics.safetensors")

    assert [part.head for part in stored.parts.values()] == [statistics.head] * 3
    both = stored.merge(statistics)
    assert both.parts.keys() == statistics.parts.keys()
    assert both.to_bytes() == statistics.merge(statistics).to_bytes()
