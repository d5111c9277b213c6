"""One live model in several threads: each measurement is what it would be alone."""

import copy
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fimlora import apply_fim_ranks, measure
from fimlora.model.exclusive import exclusive
from support.models import make_batch, tiny
from support.statistics import assert_identical

BATCHES = [make_batch("llama_gqa_lm", [30, 9, 7, 3]), make_batch("llama_gqa_lm", [5, 12])]


class Slow:
    """Batches whose reader lets other threads go first, inside of the measurement."""

    def __init__(self, batches):
        self._batches = batches

    def __iter__(self):
        for batch in self._batches:
            time.sleep(0.05)
            yield batch
            time.sleep(0.05)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped by PEFT"])
def test_threads_that_measure_one_model_wait_for_each_other(wrapped):
    """Other targets, other batches, the model itself or its wrapper: as one after the other."""
    model, _ = tiny("llama_gqa_lm")
    seen = [model, model]
    if wrapped:
        peft_model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
        seen = [peft_model, peft_model.get_base_model()]
    runs = [
        (seen[i % 2], Slow(BATCHES[i % 2 :]), ["q_proj", "up_proj"][: 1 + i % 2])
        for i in range(4)
    ]

    def run(subject, batches, targets):
        return measure(subject, batches, target_modules=targets, estimator="both")

    wanted = [run(*options) for options in runs]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda options: run(*options), runs))

    for one, other in zip(found, wanted, strict=True):
        assert_identical(one, other)
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert not any(module._forward_hooks for module in model.modules())


def test_two_models_do_not_wait_for_each_other():
    """Each waits inside of its own measurement until the other is inside, too."""
    both = threading.Barrier(2, timeout=30)

    def run(model):
        def loss(outputs, batch):
            both.wait()
            return outputs.logits.square().mean(dim=(1, 2))

        return measure(
            model, BATCHES[:1], target_modules=["q_proj"], loss_fn=loss, micro_batch_size=4
        )

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, [tiny("llama_gqa_lm")[0] for _ in range(2)]))

    assert_identical(*found)


def test_ranks_are_applied_by_one_thread_at_a_time():
    """The second one measures the adapter that the first has left."""

    def model():
        torch.manual_seed(0)
        base = tiny("llama_gqa_lm")[0]
        return get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], r=4))

    alone, shared = model(), model()
    wanted = [apply_fim_ranks(alone, Slow(BATCHES)).ranks for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = [
            plan.ranks
            for plan in pool.map(lambda _: apply_fim_ranks(shared, Slow(BATCHES)), range(2))
        ]

    assert found == wanted


def test_a_model_in_use_is_copied_and_pickled_as_ever():
    """Nothing is put on it, and a thread may enter twice."""
    model, _ = tiny("bert_classifier")

    with exclusive(model), exclusive(model):
        twin = copy.deepcopy(model)
        again = pickle.loads(pickle.dumps(model))

    assert vars(model).keys() == vars(twin).keys() == vars(again).keys()
