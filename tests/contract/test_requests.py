"""What a calibration request may say."""

from typing import get_args

import pytest
from pydantic import ValidationError

from fimlora.adapter.initial import registry
from fimlora.adapter.initial.registry import INITS, init_records
from fimlora.statistics.options import Record
from fimlora_contract.adapter_options import InitName
from fimlora_contract.comparison_requests import ComparisonRequest
from fimlora_contract.confidence import START_CODES
from fimlora_contract.evaluations import EvaluationRequest
from fimlora_contract.methods import FEWEST_EXAMPLES
from fimlora_contract.references import Columns
from fimlora_contract.request_checks import NOT_ADDED_UP
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.datasets.columns import ColumnError, check_row, find_fields

SHORT = {"base_model": "org/model@v1", "dataset": "local:reviews", "budget": 8}


def test_short_forms_expand_to_tagged_references():
    """A string, a string and an integer are enough."""
    request = CalibrationRequest.model_validate(SHORT)

    assert request.base_model.model_dump() == {
        "source": "hub",
        "id": "org/model",
        "revision": "v1",
    }
    assert request.dataset.source == "local"
    assert (request.budget.unit, request.budget.value) == ("rank", 8)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"budget": "lots"}, "is no budget; write 8 "),
        ({"budget": True}, "must be an integer"),
        ({"budget": float("nan")}, "must be an integer"),
        ({"budget": {"rank": 8, "bytes": 1}}, "exactly one"),
        ({"budget": {}}, "exactly one"),
        ({"budget": {"fraction": float("nan")}}, "fraction"),
        ({"budget": {"rank": 0}}, "rank"),
        ({"base_model": "../etc/passwd"}, "base_model"),
        ({"base_model": "a/b/c"}, "base_model"),
        ({"base_model": "/abs"}, "base_model"),
        ({"dataset": "https://x.example/d"}, "dataset"),
        ({"dataset": {"source": "url", "url": "x"}}, "dataset"),
        ({"allocation": {"r_min": 9, "r_max": 8}}, "above r_max"),
        ({"adapter": {"scale": 0}}, "0.0009765625"),
        ({"adapter": {"scale": "2"}}, "must be a number; it is text"),
        ({"adapter": {"scale": True}}, "must be a number; it is true or false"),
        ({"adapter": {"scale": 10**400}}, "must be a finite number"),
        ({"adapter": {"alpha": float("nan")}}, "must be a finite number"),
        ({"adapter": {"rslora": True}}, "rslora needs alpha"),
        ({"adapter": {"alpha": 16, "scale": 3}}, "give one of both"),
        ({"adapter": {"alpha": 16, "layout": "C"}}, "layout C has one scale"),
        (
            {"allocation": {"groups": "towers"}},
            "must be one of type, fused, layer.*it is 'towers'",
        ),
        ({"allocation": {"groups": ["q_proj"]}}, "its group 1 is text"),
        ({"allocation": {"groups": [[]]}}, "its group 1 is empty"),
        ({"allocation": {"groups": [[""]]}}, "1 to 256 characters"),
        ({"allocation": {"groups": [["a"]] * 1025}}, "at most 1024 groups"),
        ({"allocation": {"groups": [["a"] * 4097]}}, "at most 4096 names"),
        (
            {"allocation": {"groups": [[f"*.{i}" for i in range(65)]]}},
            "at most 64 entries with",
        ),
        ({"allocation": {"rank_menu": "threes"}}, "powers-of-two, vllm, or a list"),
        ({"allocation": {"rank_menu": [4, 2]}}, "in rising order"),
        ({"allocation": {"rank_menu": [2, 2]}}, "in rising order"),
        ({"allocation": {"rank_menu": [0, 2]}}, "from 1 to 8192"),
        ({"allocation": {"rank_menu": [2, 4.0]}}, "a list of whole ranks"),
        ({"allocation": {"rank_menu": [2, True]}}, "a list of whole ranks"),
        ({"allocation": {"rank_menu": list(range(1, 66))}}, "at most 64 ranks"),
        ({"allocation": {"rank_menu": [2, 4], "multiple_of": 2}}, "beside a rank_menu"),
        (
            {"allocation": {"per_type": {"q": {"share": 0.6}, "v": {"share": 0.5}}}},
            "add up to 1.1",
        ),
        ({"allocation": {"per_type": {"q": {"share": 0}}}}, "share"),
        ({"allocation": {"per_type": {"q": {"rank": 2}}}}, "rank"),
        ({"allocation": {"per_type": {"q": {"r_min": 3, "r_max": 2}}}}, "above r_max"),
        ({"allocation": {"per_type": {"q": {"r_min": 0}}}}, "only method spectral"),
        ({"allocation": {"per_type": {f"t{i}": {} for i in range(65)}}}, "per_type"),
        ({"allocation": {"max_lora_rank": 4, "r_min": 5}}, "above max_lora_rank=4"),
        ({"allocation": {"max_lora_rank": 4}}, "feasible interval"),
        ({"allocation": {"r_min": 9}}, "feasible interval"),
        ({"allocation": {"r_min": 0}}, "only method spectral"),
        ({"allocation": {"n_layers": 2}}, "only method fisher-layers or "),
        ({"allocation": {"method": "cka-layers", "n_layers": 0}}, "n_layers"),
        ({"allocation": {"method": "cka-layers", "r_min": 0}}, "only method spectral"),
        ({"allocation": {"r_min": -1, "method": "spectral"}}, "r_min"),
        ({"allocation": {"rmin": 2}}, "rmin"),
        (
            {"allocation": {"method": "coherent"}, "calibration": {"estimator": "sampled"}},
            "method coherent needs the energy of each example's gradient, .* use auto, exact",
        ),
        *(
            (
                {
                    "allocation": {"method": method},
                    "calibration": {"n_batches": 1, "batch_size": fewest - 1},
                },
                f"method {method} compares at least {fewest} examples, and at most {fewest - 1}",
            )
            for method, fewest in FEWEST_EXAMPLES.items()
        ),
        ({"calibration": {"n_batches": "8"}}, "n_batches"),
        ({"calibration": {"tolerance": 0.0}}, "tolerance"),
        ({"calibration": {"max_batches": 0}}, "max_batches"),
        *(
            ({"calibration": {"n_batches": "auto"}, "allocation": {"method": method}}, said)
            for method, said in [
                (
                    "spectral",
                    "with method spectral: only a plan of fim tells when to stop",
                ),
                ("uniform", "with method uniform: no row moves it"),
                ("random", "with method random: no row moves it"),
            ]
        ),
        (
            {"calibration": {"n_batches": "auto"}, "allocation": {"aggregation": "max"}},
            "with aggregation max",
        ),
        ({"calibration": {"n_batches": "auto", "estimator": "sampled"}}, "estimator sampled"),
        ({"dataset": {"rows": []}}, "has no source; source must be one of"),
        ({"base_model": {"source": ["hub"]}}, r"source must be one of \['hub', 'local'\]"),
        ({"base_model": 5}, "must be text .* it is a number"),
        ({"target_modules": "query"}, "a list of names such as .* a name belongs in a list"),
        ({"target_modules": "(q|v"}, "is no regular expression: it goes wrong at character 1"),
        ({"target_modules": "(" * 500 + ")" * 500}, "regular expression|nests too much"),
        ({"target_modules": "(q){99999999999999999}"}, "it repeats or nests too much"),
        ({"target_modules": ".*" * 513}, "1 to 1024 characters; it has 1026"),
        ({"exclude_modules": "all-linear"}, "a list of names .* a name belongs in a list"),
        ({"exclude_modules": "*q"}, "is no regular expression: it goes wrong at character 1"),
        ({"modules_to_save": "lm_head"}, r'such as \["lm_head"\], or null; it is text'),
        ({"modules_to_save": []}, "must have 1 to 500 names; it has 0"),
        ({"modules_to_save": ["lm_head"] * 501}, "must have 1 to 500 names; it has 501"),
        ({"modules_to_save": [1]}, "name 1 must be text; it is a number"),
        ({"exclude_modules": {}}, "must be a list of names .*; it is an object"),
        (
            {"target_parameters": "experts"},
            'must be "all", a list of names .*; it is other text',
        ),
        ({"target_parameters": {}}, 'must be "all", a list of names .*; it is an object'),
        ({"target_parameters": [""]}, "name 1 must have 1 to 256 characters"),
        ({"target_modules": []}, "must have 1 to 10000 names; it has 0"),
        ({"target_modules": ["q", None]}, "name 2 must be text; it is null"),
        ({"target_modules": ["q" * 257]}, "1 to 256 characters; it has 257"),
        ({"metadata": {"k": 1}}, "metadata"),
    ],
)
def test_a_wrong_request_is_refused_where_it_is_wrong(change, where):
    """No field is coerced, ignored or read as a path."""
    with pytest.raises(ValidationError, match=where):
        CalibrationRequest.model_validate(SHORT | change)


def test_only_methods_by_spectra_may_leave_modules_out():
    """A floor of 0 is kept, not read as none given."""
    asked = SHORT | {"allocation": {"r_min": 0, "method": "spectral"}}

    assert CalibrationRequest.model_validate(asked).allocation.r_min == 0


@pytest.mark.parametrize(
    ("names", "task", "expected"),
    [
        (["text", "label"], "sequence_classification", {"text": "text", "label": "label"}),
        (
            ["premise", "hypothesis", "label"],
            "sequence_classification",
            {"text": "premise", "text_pair": "hypothesis", "label": "label"},
        ),
        (
            ["prompt", "completion"],
            "causal_lm",
            {"prompt": "prompt", "completion": "completion"},
        ),
        (["messages"], "causal_lm", {"messages": "messages"}),
        (["text"], "causal_lm", {"text": "text"}),
    ],
    ids=["text", "pair", "completion", "chat", "plain"],
)
def test_usual_columns_are_found(names, task, expected):
    """The usual names need no configuration."""
    fields = find_fields(names, columns=Columns())

    assert fields.task == task
    assert {k: getattr(fields, k) for k in expected} == expected


def test_given_columns_win_and_must_exist():
    """A named column is used; a wrong name lists what there is."""
    fields = find_fields(["body", "topic"], columns=Columns(text="body", label="topic"))
    assert (fields.text, fields.label) == ("body", "topic")

    with pytest.raises(
        ColumnError, match=r"no column 'txt'; the columns are \['body', 'topic'\]"
    ):
        find_fields(["body", "topic"], columns=Columns(text="txt"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"messages": "chat", "label": "topic"}, "names a label.*name the text column too"),
        ({"prompt": "a", "completion": "b", "label": "topic"}, "names a label"),
        ({"text_pair": "a"}, "names a text_pair without a text"),
    ],
)
def test_columns_that_do_not_go_together_are_refused(columns, message):
    """Rather than one of them left aside, or the worker tripped."""
    names = ["chat", "a", "b", "topic", "text"]

    with pytest.raises(ColumnError, match=message):
        find_fields(names, columns=Columns(**columns))


@pytest.mark.parametrize("extra", [["label"], ["labels", "score"]])
@pytest.mark.parametrize("task", ["causal_lm", "auto"])
def test_a_label_beside_prompts_is_no_class(extra, task):
    """It says whether the completion is wanted; there is no text to classify."""
    fields = find_fields(["prompt", "completion", *extra], columns=Columns(), task=task)

    assert (fields.prompt, fields.completion, fields.label) == ("prompt", "completion", None)


def test_a_text_to_classify_wins_over_prompts():
    """Unless the task says that labels do not count."""
    names = ["prompt", "completion", "text", "label"]

    classified = find_fields(names, columns=Columns())
    modelled = find_fields(names, columns=Columns(), task="causal_lm")

    assert (classified.text, classified.label) == ("text", "label")
    assert (modelled.prompt, modelled.completion) == ("prompt", "completion")


@pytest.mark.parametrize("task", ["sequence_classification", "regression"])
def test_a_task_with_labels_needs_them(task):
    """Both kinds of it."""
    assert find_fields(["text", "label"], columns=Columns(), task=task).label == "label"
    with pytest.raises(ColumnError, match=f"task {task} needs a label column"):
        find_fields(["text"], columns=Columns(), task=task)


def test_very_many_columns_are_not_all_listed():
    """The message stays readable."""
    names = [f"c{n:04}" for n in range(2_000)]

    with pytest.raises(ColumnError, match=r"'c0029'\] and 1970 more"):
        find_fields(names, columns=Columns())


def test_a_label_beside_messages_is_left_out_of_language_modelling():
    """The task says that it does not count."""
    columns = Columns(messages="chat", label="topic")

    fields = find_fields(["chat", "topic"], columns=columns, task="causal_lm")

    assert (fields.messages, fields.label) == ("chat", None)


def test_a_bad_row_is_named():
    """The message has the row, the column and what it holds."""
    fields = find_fields(["text", "label"], columns=Columns())

    with pytest.raises(
        ColumnError, match=r"line 3: column 'text' must be text, it holds int '7'"
    ):
        check_row({"text": 7, "label": 1}, fields, where="line 3")
    with pytest.raises(ColumnError, match=r"column 'text' must be text, it holds null$"):
        check_row({"text": None, "label": 1}, fields, where="line 3")
    with pytest.raises(ColumnError, match=r"column 'label' must be a label.*nothing"):
        check_row({"text": "a"}, fields, where="line 3")


def adapter_of(**adapter):
    return CalibrationRequest.model_validate(SHORT | {"adapter": adapter}).adapter


def test_a_name_of_initial_weights_means_that_they_are_written():
    """Each choice has one form, however it was spelled, and survives being read again."""
    assert adapter_of(init="gora") == adapter_of(init="gora", weights=True)
    assert adapter_of(init="gora").weights
    assert adapter_of(weights=True) == adapter_of(init="kaiming")
    assert adapter_of() == adapter_of(weights=False)
    assert (adapter_of().weights, adapter_of().init, adapter_of().initial) == (
        False,
        None,
        "kaiming",
    )
    for adapter in ({}, {"weights": True}, {"init": "lora-ga"}):
        request = CalibrationRequest.model_validate(SHORT | {"adapter": adapter})
        assert CalibrationRequest.model_validate(request.model_dump(mode="json")) == request


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter": {"init": "pissa"}}, "'kaiming', 'eva', 'lora-ga'"),
        ({"adapter": {"init": "gora", "weights": False}}, "initial weights are weights"),
        (
            {"adapter": {"init": "lora-one"}, "calibration": {"n_batches": "auto"}},
            "do not add up over rounds",
        ),
    ],
    ids=str,
)
def test_initial_weights_that_cannot_be_had_are_refused(change, message):
    """With what is allowed; gora's gradients do add up over rounds."""
    with pytest.raises(ValidationError, match=message):
        CalibrationRequest.model_validate(SHORT | change)
    CalibrationRequest.model_validate(
        SHORT | {"adapter": {"init": "gora"}, "calibration": {"n_batches": "auto"}}
    )


def test_the_wire_names_the_initial_weights_that_the_engine_has():
    """In its order, as do those that rounds are refused for."""
    assert get_args(InitName) == INITS
    not_added = {Record.GRADIENT_FACTORS, Record.INPUT_COMPONENTS}
    assert set(NOT_ADDED_UP) == {name for name in INITS if not_added & init_records(name)}
    assert START_CODES == registry.START_CODES


def test_a_whole_scale_is_one_request_however_it_is_written():
    """2 and 2.0 have one digest; a fraction stays one."""
    two, also_two, other = (
        CalibrationRequest.model_validate(SHORT | {"adapter": {"scale": scale}})
        for scale in (2, 2.0, 1.5)
    )

    assert two.model_dump_json() == also_two.model_dump_json()
    assert two == CalibrationRequest.model_validate(SHORT)
    assert other.adapter.scale == 1.5


def test_arms_of_one_alpha_would_have_other_learning_rates():
    """So an evaluation takes a scale, also a fraction, and no alpha."""
    with pytest.raises(ValidationError, match="all arms must have one scale"):
        EvaluationRequest.model_validate(SHORT | {"adapter": {"alpha": 16}})

    asked = EvaluationRequest.model_validate(SHORT | {"adapter": {"scale": 0.5}})
    assert asked.adapter.scaling == {"scale": 0.5, "alpha": None, "rslora": False}


def test_a_comparison_leaves_out_by_itself_what_compares_more_examples():
    """One that was named is refused; one example alone is enough for the others."""
    few = {"n_batches": 1, "batch_size": 1}
    every = ComparisonRequest.model_validate(SHORT)
    fewer = ComparisonRequest.model_validate(SHORT | {"calibration": few})

    assert set(every.methods_measured) - set(fewer.methods_measured) == {
        "coherent",
        "spectral-denoised",
    }
    with pytest.raises(ValidationError, match="coherent compares at least 2 examples"):
        ComparisonRequest.model_validate(
            SHORT | {"calibration": few, "methods": ["fim", "coherent"]}
        )
