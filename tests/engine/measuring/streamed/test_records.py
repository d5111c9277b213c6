"""What a streamed run records besides energies is the resident run's, one block at a time."""

import gc

import pytest
import torch
import transformers

from fimlora import Settings, measure, measure_streamed
from fimlora.measuring.recording.mean_gradient import MeanGradient
from fimlora.memory.need import MOMENT_RECORDS, sketch_is_smaller
from fimlora.statistics.groups import GROUPS
from support.models import PAD, VOCABULARY, make_batch, tiny
from support.streaming import ALL, RECORDS, assert_same, batches_for, quiet, save

__all__ = ["quiet"]  # a fixture of every test here


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
@pytest.mark.parametrize("record", RECORDS)
def test_each_record_beside_each_estimator(estimator, record, tmp_path):
    """In micro-batches too; and nothing is recorded that was not asked for."""
    model, targets = tiny("llama_gqa_lm")
    resident, batches = save(model, tmp_path), batches_for("llama_gqa_lm")
    options = {"target_modules": targets, "estimator": estimator, "record": record}

    streamed = measure_streamed(tmp_path, batches, Settings(micro_batch_size=3, **options))

    assert_same(streamed, measure(resident, batches, micro_batch_size=3, **options))
    assert bool(streamed.spectra) == (record == "spectra")
    assert bool(streamed.input_squares) == (record in MOMENT_RECORDS)
    assert bool(streamed.batch_energies) == (record == "batch_energies")
    assert bool(streamed.quantities.get(record)) == (record in GROUPS)


def test_sketches_are_the_resident_ones(tmp_path):
    """Gradients of all modules together, not of one block, are what has to fit."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        pad_token_id=PAD,
        hidden_size=800,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=16,
    )
    resident = save(transformers.LlamaForCausalLM(config), tmp_path)
    batches = [make_batch("llama_gqa_lm", [9, 5])]
    needed = 2 * 2 * 4 * 800**2
    options = {"target_modules": ["q_proj", "k_proj"], "record": "spectra"}

    sketched, exact = (
        measure_streamed(tmp_path, batches, Settings(spectra_bytes=n_bytes, **options))
        for n_bytes in (needed - 1, needed)
    )

    assert all(sketch_is_smaller(module) for module in sketched.modules)
    assert all(error > 0 for error in sketched.spectrum_errors.values())
    assert all(error == 0 for error in exact.spectrum_errors.values())
    assert_same(sketched, measure(resident, batches, spectra_bytes=needed - 1, **options))
    assert_same(exact, measure(resident, batches, spectra_bytes=needed, **options))


def n_mean_gradients() -> int:
    """How many sums of gradients are in memory."""
    gc.collect()
    return sum(isinstance(each, MeanGradient) for each in gc.get_objects())


def test_gradients_of_one_block_are_in_memory_at_once(tmp_path):
    """Whatever the number of blocks; each one's are gone when the next one's begin."""
    model, targets = tiny("gpt2_lm")
    save(model, tmp_path)
    before, counts = n_mean_gradients(), []
    options = {"on_batch": lambda *_: counts.append(n_mean_gradients()), **ALL}

    batches = batches_for("gpt2_lm")
    streamed = measure_streamed(tmp_path, batches, Settings(target_modules=targets, **options))

    one = MeanGradient(streamed.modules)
    assert n_mean_gradients() == before + 1, one
    assert len(counts) > 2
    assert set(counts) == {before}
    assert streamed.spectra.keys() == {module.name for module in streamed.modules}
