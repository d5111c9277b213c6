"""Second moments of inputs, against the inputs that plain hooks see."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch

from fimlora import find_targets, measure
from fimlora.errors import InvalidStatistics
from fimlora.measuring.recording.input_moments import InputMoments
from fimlora.measuring.recording.quantity import Pass, SeenCall
from fimlora.plan import TargetModule
from support.models import TINY_MODELS, make_batch, tiny
from support.reference import relative_error

LENGTHS = ([9, 5, 7, 2], [6, 9, 3])
BOTH = ("spectra", "moments")


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_moments_are_those_of_the_tokens_that_are_not_padding(name):
    """Inputs seen by plain hooks, one unpadded example at a time, give the same sums."""
    batches = [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]
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
        for batch in batches:
            for row, mask in enumerate(batch["attention_mask"]):
                ids = batch["input_ids"][row : row + 1, : int(mask.sum())]
                model(input_ids=ids, attention_mask=torch.ones_like(ids))

    statistics = measure(model, batches, target_modules=targets, record="moments")

    for module in modules:
        found = statistics.input_squares[module.name]
        assert relative_error(found, wanted[module.name]) <= 1e-10, module.name
        assert statistics.token_counts[module.name].tolist() == [counts[module.name]]


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


def test_modules_on_one_input_have_sums_of_their_own():
    """It is squared once for all of them; what one adds later is not added to the others."""
    modules = [TargetModule(name, 3, 2) for name in ("query", "key", "value")]
    moments, g = InputMoments(modules), torch.ones(2, 4, 2)
    passes = [torch.arange(24.0).reshape(2, 4, 3) + k for k in range(3)]

    for x in passes:
        moments.begin(Pass(torch.ones(2), None, is_whole=True))
        for module in modules:
            moments.add(module.name, [SeenCall((x.detach(),), g)])
        moments.commit()

    found = moments.results(6)
    wanted = sum(x.double().square().sum(dim=(0, 1)) for x in passes).tolist()
    for module in modules:
        assert found["input_squares"][module.name].tolist() == wanted
        assert found["token_counts"][module.name].tolist() == [24]
