"""A run that was cut off and goes on from its file ends as if nothing had happened."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fimlora import ProgressFile, measure
from fimlora.errors import InvalidOption, InvalidProgress
from support.endless_run import run_endlessly
from support.models import make_batch, tiny
from support.statistics import assert_identical
from support.streaming import RECORDS

LENGTHS = ([9, 5, 7], [6, 3], [8, 8, 2], [4, 9])


class StopError(Exception):
    """What a caller ends a run with."""


def stop_after(n_done: int):
    def on_batch(done: int, expected: int) -> None:
        if done == n_done:
            raise StopError

    return on_batch


def batches_for(name: str) -> list[dict]:
    return [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]


def cut_off(path: Path, model, batches, *, after: int, **options) -> None:
    with pytest.raises(StopError):
        measure(model, batches, progress_file=path, on_batch=stop_after(after), **options)


@pytest.mark.parametrize("after", [1, 3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "exact"},
        {"estimator": "sampled", "rank": 4},
        {"estimator": "both", "rank": 4, "micro_batch_size": 2},
        {"record": RECORDS},
        {"estimator": "sampled", "record": "spectra", "spectra_bytes": 0},
        {"estimator": "both", "train_mode": True},
        {"record": RECORDS, "null": True, "halves": True},
    ],
    ids=["exact", "sampled", "both", "records", "sketched", "dropout", "parts"],
)
def test_a_run_that_goes_on_gives_the_same_statistics(options, after, tmp_path):
    """Whatever is recorded, wherever it was cut off, also behind the last batch."""
    model, targets = tiny("bert_classifier")
    batches, options = batches_for("bert_classifier"), options | {"target_modules": targets}
    file, calls = tmp_path / "sums.safetensors", []

    cut_off(file, model, batches, after=after, **options)
    resumed = measure(
        model,
        batches,
        progress_file=file,
        on_batch=lambda done, expected: calls.append(done),
        **options,
    )

    assert_identical(resumed, measure(model, batches, **options))
    assert calls == list(range(after + 1, 5))


def test_sketches_go_on_too(tmp_path):
    """Where the gradient is larger than its sketch, both products are kept."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(900, 1000), torch.nn.Tanh())
    model.forward = lambda x: torch.nn.Sequential.forward(model, x)
    batches = [{"x": torch.randn(3, 900)} for _ in range(3)]
    options = {
        "target_modules": ["0"],
        "record": "spectra",
        "spectra_bytes": 0,
        "loss_fn": squared_sum,
    }

    cut_off(tmp_path / "sums", model, batches, after=2, **options)
    resumed = measure(model, batches, progress_file=tmp_path / "sums", **options)

    wanted = measure(model, batches, **options)
    assert wanted.spectrum_errors["0"] > 0
    assert_identical(resumed, wanted)


def squared_sum(outputs, batch):
    return outputs.square().sum(dim=1)


def other_loss(outputs, batch):
    return outputs.abs().sum(dim=1)


def test_what_was_learned_of_the_model_is_kept(tmp_path):
    """A model that runs modules twice, one at a time, goes on that way."""
    model, targets = tiny("deberta_v2_classifier")
    batches = batches_for("deberta_v2_classifier")

    cut_off(tmp_path / "sums", model, batches, after=2, target_modules=targets)
    resumed = measure(model, batches, progress_file=tmp_path / "sums", target_modules=targets)

    assert_identical(resumed, measure(model, batches, target_modules=targets))


def test_a_halved_micro_batch_stays_halved(tmp_path):
    """A run that had run out of memory goes on with the size that fitted."""
    model, _ = tiny("bert_classifier")
    batches = batches_for("bert_classifier")

    def refuse(module, args, kwargs):
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = model.register_forward_pre_hook(refuse, with_kwargs=True)
    cut_off(tmp_path / "sums", model, batches, after=1)
    handle.remove()
    resumed = measure(model, batches, progress_file=tmp_path / "sums")

    assert resumed.execution.micro_batch_size == 1  # three examples, halved


def test_a_loader_that_draws_from_torch_goes_on_with_the_same_draws(tmp_path):
    """Skipped batches are drawn, and dropout's random numbers come back after them."""
    model, _ = tiny("bert_classifier")

    def shuffled():
        order = torch.randperm(4).tolist()
        for index in order:
            yield batches_for("bert_classifier")[index]

    cut_off(tmp_path / "sums", model, shuffled(), after=2, train_mode=True)
    resumed = measure(
        model, shuffled(), progress_file=tmp_path / "sums", train_mode=True, n_batches=8
    )

    assert_identical(resumed, measure(model, shuffled(), train_mode=True, n_batches=8))


def test_a_finished_run_is_read_back_without_the_model_running(tmp_path):
    """The file stays; how far it was is told."""
    model, _ = tiny("bert_classifier")
    batches, told = batches_for("bert_classifier"), []
    file = ProgressFile(
        tmp_path / "sums", max_share=math.inf, on_resume=lambda *args: told.append(args)
    )
    first = measure(model, batches, progress_file=file, record="spectra")
    handle = model.register_forward_pre_hook(lambda *args: pytest.fail("the model ran"))

    again = measure(model, batches, progress_file=file, record="spectra")

    handle.remove()
    assert_identical(again, first)
    assert told == [(4, 4)]


def changed_values(model):
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.mul_(1.001)


REFUSALS = {
    "estimator": {"estimator": "both"},
    "rank": {"rank": 5},
    "seed": {"seed": 1},
    "scale": {"scale": 3},
    "target_modules": {"target_modules": ["query"]},
    "record": {"record": ["moments"]},
    "spectra_bytes": {"spectra_bytes": 1},
    "train_mode": {"train_mode": True},
    "n_batches": {"n_batches": 3},
    "micro_batch_size": {"micro_batch_size": 1},
    "null": {"null": True},
    "halves": {"halves": True},
    "first_example": {"first_example": 1},
    "loss_fn": {"loss_fn": other_loss},
}


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A file with two of four batches."""
    file = tmp_path_factory.mktemp("cut") / "sums.safetensors"
    model, _ = tiny("bert_classifier")
    cut_off(file, model, batches_for("bert_classifier"), after=2)
    return file


@pytest.mark.parametrize("field", sorted(REFUSALS))
def test_another_setting_is_refused_by_name(field, cut):
    """The error says which one, what the file has and what this run has."""
    model, _ = tiny("bert_classifier")
    before = cut.read_bytes()

    with pytest.raises(InvalidProgress, match=f"its {field} is .*, this run's is") as refused:
        measure(model, batches_for("bert_classifier"), progress_file=cut, **REFUSALS[field])

    error = refused.value
    assert (error.field, error.path) == (field, cut)
    assert error.given != error.expected
    assert cut.read_bytes() == before


def halved(model):
    return model.double()


def with_other_config(model):
    model.config.hidden_act = "relu"


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("model weights", changed_values),
        ("model parameters", halved),
        ("model config", with_other_config),
    ],
)
def test_another_model_is_refused(field, change, cut):
    """Other values, another dtype, another config."""
    model, _ = tiny("bert_classifier")
    change(model)

    with pytest.raises(InvalidProgress) as refused:
        measure(model, batches_for("bert_classifier"), progress_file=cut)

    assert refused.value.field == field


def test_a_digest_that_the_caller_gives_is_compared(cut):
    """For callers who know the whole checkpoint by one."""
    model, _ = tiny("bert_classifier")
    file = ProgressFile(cut, model_digest="sha256:1")

    with pytest.raises(InvalidProgress, match="model_digest is None, this run's is 'sha256:1'"):
        measure(model, batches_for("bert_classifier"), progress_file=file)


def test_other_batches_are_refused(cut):
    """In another order, with another value, or too few."""
    model, _ = tiny("bert_classifier")
    batches = batches_for("bert_classifier")
    batches[1]["input_ids"][0, 0] += 1

    with pytest.raises(InvalidProgress) as refused:
        measure(model, [batches[2], *batches], progress_file=cut)
    assert refused.value.field == "batch 1"
    with pytest.raises(InvalidProgress) as refused:
        measure(model, batches, progress_file=cut)
    assert refused.value.field == "batch 2"
    with pytest.raises(InvalidProgress, match="number of batches is 2, this run's is 1"):
        measure(model, batches[:1], progress_file=cut)


def test_another_number_of_threads_is_refused(cut):
    """Products may round otherwise."""
    model, _ = tiny("bert_classifier")
    n_threads = torch.get_num_threads()
    torch.set_num_threads(n_threads + 1)
    try:
        with pytest.raises(InvalidProgress) as refused:
            measure(model, batches_for("bert_classifier"), progress_file=cut)
    finally:
        torch.set_num_threads(n_threads)

    assert refused.value.field == "number of threads"


def test_another_autocast_is_refused(cut):
    """Sums of two widths are no sums."""
    model, _ = tiny("bert_classifier")

    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(
            InvalidProgress, match="its autocast is '', this run's is 'cpu"
        ) as refused,
    ):
        measure(model, batches_for("bert_classifier"), progress_file=cut)

    assert refused.value.field == "autocast"


def flipped(content: bytes) -> bytes:
    at = len(content) - 100
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"\xff" * 100,
        lambda content: (20).to_bytes(8, "little") + b"[1, 2, 3]           ",
        flipped,
        lambda content: content.replace(b'counts\\": [2,', b'counts\\": [3,'),
    ],
    ids=["empty", "header cut", "data cut", "longer", "noise", "no object", "one bit", "facts"],
)
def test_a_damaged_file_is_refused(damage, cut, tmp_path):
    """Its path is named, nothing is measured from it."""
    model, _ = tiny("bert_classifier")
    file = tmp_path / "sums"
    file.write_bytes(damage(cut.read_bytes()))

    with pytest.raises(
        InvalidProgress, match=r"cannot go on from .*sums.*measure anew"
    ) as refused:
        measure(model, batches_for("bert_classifier"), progress_file=file)

    assert refused.value.field is None


def test_a_folder_that_is_not_there_is_refused_before_anything_runs(tmp_path):
    """As is a share that nothing could be saved within."""
    model, _ = tiny("bert_classifier")
    for file in (tmp_path / "no" / "sums", ProgressFile(tmp_path / "sums", max_share=0)):
        with pytest.raises(InvalidOption):
            measure(model, iter(()), progress_file=file)


def test_a_file_that_cannot_be_written_ends_the_run_unless_the_caller_says_otherwise(tmp_path):
    """A caller for whom the statistics are worth more is told, and gets them."""
    model, _ = tiny("bert_classifier")
    batches, errors = batches_for("bert_classifier"), []
    file = tmp_path / ("long" * 62)  # no room for the name of the temporary file
    with pytest.raises(OSError, match="name too long"):
        measure(model, batches, progress_file=file)
    told = ProgressFile(file, max_share=math.inf, on_error=errors.append)
    found = measure(model, batches, progress_file=told)

    assert_identical(found, measure(model, batches))
    assert len(errors) == 4


def test_the_file_is_safetensors_and_alone(cut):
    """Other tools can look into it; no temporary file is left beside it."""
    from safetensors import safe_open

    with safe_open(cut, "pt") as file:
        kinds = {key.partition("/")[0] for key in file.keys()}  # noqa: SIM118 - no mapping
    assert kinds == {"batches", "random", "rows", "examples"}
    assert list(cut.parent.iterdir()) == [cut]


def test_saving_keeps_to_its_share_of_the_time(tmp_path):
    """The next save waits until the last one is a small part of what has passed."""
    from fimlora.measuring.resume.progress_file import SavedSums

    now = [0.0]

    class SlowFile(SavedSums):
        def save(self, tensors, facts):
            saved.append(now[0])
            now[0] += 2
            self._saved_at, self._cost_s = now[0], 2

    saved: list[float] = []
    sums = SlowFile(ProgressFile(tmp_path / "sums", max_share=0.1), {}, [], lambda: now[0])
    for _ in range(60):
        now[0] += 1
        if sums.is_due():
            sums.save_if_due({"a": torch.zeros(1)}, {})

    assert saved == [1, 23, 45]


CHILD = """
import sys, torch
from pathlib import Path
from fimlora.statistics.options import Record
from support.endless_run import run_endlessly
torch.set_num_threads(1)
run_endlessly(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_kill_while_saving_leaves_a_sound_file(tmp_path):
    """It takes most of this run's time; whenever the kill comes, another run goes on."""
    file, resumed = tmp_path / "sums", []
    command = [sys.executable, "-c", CHILD, str(file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment) as child:
        deadline = time.monotonic() + 60
        while not (file.exists() and len(list(tmp_path.iterdir())) > 1):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)  # so that a save is caught in the middle
        child.kill()

    def stop(done: int, expected: int) -> None:
        resumed.append(done)
        raise StopError

    with pytest.raises(StopError):
        run_endlessly(file, stop)

    assert resumed[0] >= 1
