"""A streamed run that was cut off on its way back goes on from the block it had finished."""

import math
from pathlib import Path

import pytest
import torch
import transformers

from fimlora import ProgressFile, Settings, measure, measure_streamed
from fimlora.errors import InvalidProgress
from fimlora.measuring.streamed.progress import _laid_out, _without_repeats
from support.models import make_batch, tiny
from support.statistics import assert_identical

LENGTHS = ([9, 5, 7, 2], [6, 9, 3])


class StopError(Exception):
    """What a caller ends a run with."""


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def batches_for(name: str) -> list[dict]:
    return [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]


class Calls:
    """Counts the calls of ``on_batch``; ends the run at one of them."""

    def __init__(self, stop_at: float = math.inf) -> None:
        self.n, self.stop_at = 0, stop_at

    def __call__(self, done: int, expected: int) -> None:
        self.n += 1
        if self.n == self.stop_at:
            raise StopError


CASES = {
    "bert_classifier": {"estimator": "both", "rank": 4, "null": True},
    "deberta_v2_classifier": {
        "null": True,
        "halves": True,
    },  # one example at a time, and graphs between the blocks
    "llama_tied_lm": {
        "record": ["spectra", "moments", "batch_energies"],
        "micro_batch_size": 2,
        "null": True,
        "halves": True,
    },
    "mixtral_lm": {"estimator": "sampled"},
    "gpt2_lm": {"target_modules": ["h.1.attn.c_attn"]},
}


def cut_off(folder: Path, batches, *, at: int, file: Path, **options) -> None:
    with pytest.raises(StopError):
        measure_streamed(
            folder, batches, Settings(progress_file=file, on_batch=Calls(at), **options)
        )


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_streamed_run_that_goes_on_gives_the_same_statistics(name, tmp_path):
    """Wherever it was cut off on its way back."""
    model, targets = tiny(name)
    folder, batches, whole = tmp_path / "model", batches_for(name), Calls()
    model.save_pretrained(folder, max_shard_size="20KB")
    options = {"target_modules": targets} | CASES[name]
    wanted = measure_streamed(folder, batches, Settings(on_batch=whole, **options))
    n_calls = []
    for at in range(whole.n // 2, whole.n):
        file, calls = tmp_path / f"sums {at}", Calls()

        cut_off(folder, batches, at=at, file=file, **options)
        if not file.exists():  # still on its way there
            continue
        found = measure_streamed(
            folder, batches, Settings(progress_file=file, on_batch=calls, **options)
        )

        assert_identical(found, wanted)
        n_calls.append(calls.n)
    assert whole.n > n_calls[0]
    assert n_calls == sorted(n_calls, reverse=True)
    assert n_calls[-1] == 1  # nothing was left to do


def test_a_run_may_be_cut_off_again(tmp_path):
    """What the first run had finished is kept while the second goes further."""
    model, _ = tiny("llama_gqa_lm")
    model.save_pretrained(tmp_path / "model")
    folder, batches, file = tmp_path / "model", batches_for("llama_gqa_lm"), tmp_path / "sums"
    wanted = measure_streamed(folder, batches)
    told: list[tuple[int, int]] = []

    cut_off(folder, batches, at=3, file=file)  # two blocks there, one back
    cut_off(folder, batches, at=2, file=file)  # one block there, one back
    progress = ProgressFile(file, on_resume=lambda *args: told.append(args))
    found = measure_streamed(folder, batches, Settings(progress_file=progress))

    assert_identical(found, wanted)
    assert told == [(1, 2)]


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A model's folder, and the file of a run over it that was cut off."""
    folder = tmp_path_factory.mktemp("cut")
    model, _ = tiny("llama_gqa_lm")
    model.save_pretrained(folder / "model")
    cut_off(folder / "model", batches_for("llama_gqa_lm"), at=3, file=folder / "sums")
    return folder


@pytest.mark.parametrize(
    ("field", "settings", "options"),
    [
        ("weights_seed", {}, {"weights_seed": 3}),
        ("seed", {"seed": 3}, {}),
        ("micro_batch_size", {"micro_batch_size": 1}, {}),
        ("model parameters", {}, {"dtype": torch.float64}),
    ],
)
def test_another_run_is_refused_by_name(field, settings, options, cut):
    """As for a resident one."""
    batches = batches_for("llama_gqa_lm")

    with pytest.raises(InvalidProgress) as refused:
        measure_streamed(
            cut / "model",
            batches,
            Settings(progress_file=cut / "sums", **settings),
            **options,
        )

    assert refused.value.field == field


def test_other_batches_or_executors_or_weights_are_refused(cut, tmp_path):
    """All batches are compared before the first runs; weights are sampled from the files."""
    batches, file = batches_for("llama_gqa_lm"), cut / "sums"
    model, _ = tiny("llama_gqa_lm")

    with pytest.raises(InvalidProgress, match="batch 1"):
        measure_streamed(cut / "model", batches[::-1], Settings(progress_file=file))
    with pytest.raises(InvalidProgress, match=r"its batch 2 is .*, this run's is None"):
        measure_streamed(cut / "model", batches[:1], Settings(progress_file=file))
    with pytest.raises(
        InvalidProgress, match="executor is 'streamed', this run's is 'resident'"
    ):
        measure(model, batches, progress_file=file)
    with torch.no_grad():
        model.lm_head.weight[-1] += 1
    model.save_pretrained(tmp_path)
    with pytest.raises(InvalidProgress, match="model weights"):
        measure_streamed(tmp_path, batches, Settings(progress_file=file))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).view(2, 3, 4),
        torch.arange(24.0).view(2, 3, 4).transpose(1, 2),
        torch.arange(3.0)[None, :, None].expand(2, 3, 4),
        torch.arange(8, dtype=torch.bfloat16).view(2, 1, 4).expand(2, 3, 4),
    ],
    ids=["dense", "transposed", "one axis", "half precision"],
)
def test_a_gradient_is_laid_out_as_it_was(tensor):
    """Kernels may round otherwise for another layout."""
    layout = (list(tensor.shape), list(tensor.stride()))

    again = _laid_out(_without_repeats(tensor).contiguous(), layout)

    assert torch.equal(again, tensor)
    assert again.stride() == tensor.stride()
