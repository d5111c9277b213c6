"""Settings outside their range are refused, by what was given and what is allowed."""

import pytest
import torch

from fimlora import Settings, measure
from fimlora.errors import InvalidOption
from support.models import make_batch, tiny
from support.statistics import assert_identical

NAME = "bert_classifier"


@pytest.fixture
def model():
    return tiny(NAME)[0]


@pytest.fixture
def batches():
    return [make_batch(NAME, [5, 3], seed=i) for i in range(3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"estimator": "fisher"},
            "estimator='fisher'; allowed are 'auto', 'exact', 'sketched', 'sampled', 'both'",
        ),
        ({"n_batches": 0}, "n_batches=0: it must be at least 1"),
        ({"n_batches": True}, "n_batches=True: it must be an integer of at least 1"),
        ({"scale": 0}, "scale=0: it must be a number above 0 and finite"),
        ({"scale": float("nan")}, "scale=nan: it must be a number above 0 and finite"),
        ({"rank": 0}, "rank=0: it must be at least 1"),
        ({"micro_batch_size": 0}, "micro_batch_size=0: it must be at least 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_argument_outside_its_range_is_refused(model, batches, options, message):
    """The message says what was given and what is allowed."""
    with pytest.raises(InvalidOption, match=message):
        measure(model, batches, target_modules=["query"], **options)


def test_inference_mode_is_refused(model, batches):
    """No graph is recorded there, whatever is enabled inside."""
    with (
        torch.inference_mode(),
        pytest.raises(InvalidOption, match=r"outside; torch.no_grad"),
    ):
        measure(model, batches, target_modules=["query"])


def test_an_unknown_record_is_refused_before_anything_is_read():
    """The message says what can be recorded."""
    with pytest.raises(
        InvalidOption, match=r"'spectrum'.*'spectra', 'moments', 'batch_energies'"
    ):
        Settings(record="spectrum")


def test_an_unknown_record_is_refused_by_name():
    """The message says what can be recorded."""
    model, targets = tiny("bert_classifier")

    with pytest.raises(InvalidOption, match=r"'spectrum'.*'spectra', 'moments'"):
        measure(model, [], target_modules=targets, record="spectrum")


def refuse_to_choose(*_):
    raise AssertionError("chosen anew")


def test_what_was_chosen_is_not_chosen_anew(model, batches, tmp_path):
    """By neither executor; the result is that of choosing."""
    from fimlora import measure_streamed
    from fimlora.measuring.resident import measure_resident

    model.save_pretrained(tmp_path)
    settings = Settings(
        target_modules=["query", "value"], exclude_modules=["0.attention.self.value"]
    )
    choice = settings.choose(model)
    known = Settings(unadaptable=refuse_to_choose, choice=choice)

    wanted = measure_resident(model, batches, settings)
    resident = measure_resident(model, batches, known)
    streamed = measure_streamed(tmp_path, batches, known, model_class=type(model))

    assert [m.name for m in wanted.modules] == [m.name for m in choice.modules]
    assert len(wanted.modules) == 3
    assert_identical(resident, wanted)
    assert_identical(streamed, wanted)
    with pytest.raises(AssertionError, match="chosen anew"):
        measure_resident(model, batches, Settings(unadaptable=refuse_to_choose))
