"""Every column that is named is read, or the request is refused by name."""

from itertools import combinations

import pytest

from fimlora_contract.references import Columns
from fimlora_jobs.datasets.columns import (
    BEGINNINGS,
    ColumnError,
    TextFields,
    check_row,
    find_fields,
)

ROLES = tuple(Columns.model_fields)
TASKS = ("auto", "causal_lm", "regression")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("usual", [[], ["text"], ["text", "label"], ["messages"],
    ["prompt", "completion"], ["instruction", "output"], ["premise", "hypothesis", "label"]])  # fmt: skip
def test_whatever_is_named_is_read_or_refused(usual, task):
    """All choices of up to three roles, beside all usual columns."""
    found = 0
    for n in range(4):
        for roles in combinations(ROLES, n):
            columns = {role: f"my_{role}" for role in roles}
            try:
                fields = find_fields(
                    [*usual, *columns.values()], columns=Columns(**columns), task=task
                )
            except ColumnError:
                continue
            found += 1
            left = {"label"} if task == "causal_lm" else set()  # which is how one is left aside
            assert {r: getattr(fields, r) for r in {*roles} - left} == {
                r: name for r, name in columns.items() if r not in left
            }
            assert sum(bool(getattr(fields, role)) for role in BEGINNINGS) == 1
            assert not (fields.text_pair and (fields.images or fields.audio))
    assert found >= 1


@pytest.mark.parametrize("role", ["images", "audio"])
@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["premise", "hypothesis"], {}),
        (["premise", "hypothesis", "label"], {}),
        (["a", "b"], {"text": "a", "text_pair": "b"}),
    ],
)
def test_two_texts_beside_what_is_shown_are_refused(role, names, columns):
    """By the names of all three, and with the ways out."""
    message = rf"the rows have '{role}' beside two texts, '\w+' and '\w+'.*--column {role}="

    with pytest.raises(ColumnError, match=message):
        find_fields([*names, role], columns=Columns(**columns), task="causal_lm")

    fields = find_fields(
        [*names, role], columns=Columns(**columns, **{role: ""}), task="causal_lm"
    )
    assert fields.text_pair


def test_both_texts_of_a_pair_are_modelled_whatever_the_task_is_called():
    """Without a label, and with one that the task leaves aside."""
    wanted = TextFields(text="premise", text_pair="hypothesis")
    for names in (["premise", "hypothesis"], ["premise", "hypothesis", "label"]):
        assert find_fields(names, columns=Columns(), task="causal_lm") == wanted
    assert find_fields(["premise", "hypothesis"], columns=Columns()) == wanted


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "a", "tools": "b"}, r"names tools \('b'\), which would not be read.*'text': 'a'"),
        ({"text": "a", "label": "b", "system": "c"}, r"names system \('c'\)"),
        ({"prompt": "a", "completion": "b", "input": "c"}, r"names input \('c'\)"),
        ({"messages": "a", "completion": "b"}, "a completion without a prompt"),
        ({"text": "a", "messages": "b"}, "names text and messages: a row is read as one of text,"),
        ({"prompt": "a", "instruction": "b", "completion": "c"}, "names prompt and instruction"),
        ({"instruction": "a", "completion": "b", "tools": "c"}, r"names tools \('c'\)"),
    ],
)  # fmt: skip
def test_what_would_be_left_aside_is_named(columns, message):
    """With how the rows would be read."""
    with pytest.raises(ColumnError, match=message):
        find_fields(["a", "b", "c"], columns=Columns(**columns))


def test_of_two_usual_columns_of_images_one_is_to_be_named():
    """Neither is a better guess than the other."""
    names = ["text", "image", "images"]

    with pytest.raises(
        ColumnError, match=r"the rows have 'images' and 'image'.*--column images="
    ):
        find_fields(names, columns=Columns())

    assert find_fields(names, columns=Columns(images="image")).images == "image"
    assert find_fields(names, columns=Columns(images="")).images is None


@pytest.mark.parametrize(
    ("held", "is_read"),
    [(None, True), ("", True), ([], True), ("[]", True), ("Be brief.", False), ([{}], False)],
)
@pytest.mark.parametrize("role", ["tools", "system"])
def test_what_no_template_reads_is_refused_in_its_row(role, held, is_read):
    """A prompt of text goes through none; a prompt of messages does."""
    fields = TextFields(prompt="p", completion="c", **{role: "more"})
    row = {"p": "a", "c": "b", "more": held}

    if is_read:
        check_row(row, fields, where="row 1")
        return
    with pytest.raises(ColumnError, match=f"row 1: column 'more' holds .*--column {role}="):
        check_row(row, fields, where="row 1")


@pytest.mark.parametrize(("role", "name"), [("images", "picture"), ("audio", "sound")])
def test_what_is_shown_beside_a_usual_label_is_refused_with_the_way_to_read_it(role, name):
    """The way out that is named is one."""
    names, columns = ["text", "label", name], Columns(**{role: name})

    with pytest.raises(ColumnError, match=rf"names {role} \('{name}'\).*set task causal_lm"):
        find_fields(names, columns=columns)

    assert find_fields(names, columns=columns, task="causal_lm") == TextFields(
        text="text", **{role: name}
    )


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["prompt", "prompt_id", "messages"], {"messages": "messages"}),
        (["messages", "text"], {"messages": "messages"}),
        (["text", "prompt"], {"text": "text"}),
        (["text", "prompt", "completion"], {"prompt": "prompt", "completion": "completion"}),
        (["instruction", "input", "output", "text"],
         {"instruction": "instruction", "input": "input", "completion": "output"}),
        (["conversations", "system", "tools"],
         {"messages": "conversations", "system": "system", "tools": "tools"}),
        (["prompt", "completion", "label"], {"prompt": "prompt", "completion": "completion"}),
    ],
)  # fmt: skip
def test_columns_that_public_datasets_have_beside_each_other_need_no_naming(names, wanted):
    """More than one way to begin a row is refused only where a request names both."""
    assert find_fields(names, columns=Columns()) == TextFields(**wanted)


@pytest.mark.parametrize(
    ("names", "example"),
    [
        (["txt", "label"], "txt"),
        (["label", "aspect", "Sentences"], "Sentences"),
        (["review", "Labels"], "review"),
        (["contents", "a"], "contents"),
        (["b", "a"], "a"),
    ],
)
def test_the_example_of_a_missing_text_is_a_column_that_may_hold_it(names, example):
    """Of a near name, and never the label."""
    with pytest.raises(ColumnError, match=f"--column text={example}, ") as caught:
        find_fields(names, columns=Columns(), task="auto")

    assert str(caught.value).count("--column") == 1


def test_no_example_where_no_column_is_free():
    """Labels alone, one by its own name; rows without columns are said to have none."""
    with pytest.raises(ColumnError) as alone:
        find_fields(["label"], columns=Columns(), task="auto")
    with pytest.raises(ColumnError) as named:
        find_fields(["stars"], columns=Columns(label="stars"), task="auto")
    with pytest.raises(ColumnError, match="the rows have no columns; expected one of") as bare:
        find_fields([], columns=Columns(), task="auto")

    assert not any("--column" in str(found.value) for found in (alone, named, bare))
    assert "among" not in str(bare.value)
