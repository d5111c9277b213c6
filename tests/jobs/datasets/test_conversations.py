"""Messages in every usual shape come to one form, from every container."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fimlora_contract.references import Columns
from fimlora_jobs.datasets.columns import (
    ColumnError,
    TextFields,
    check_row,
    conversation_of,
    find_fields,
    has_chat,
)
from fimlora_jobs.datasets.conversations import ConversationError, read_conversation
from fimlora_jobs.datasets.files import read_files

OPENAI = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "messages",
    [
        OPENAI,
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}],
        [{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}],
        [{"from": "human", "value": "a", "role": None}, {"from": "gpt", "value": "b"}],
        [{"role": "user", "content": "a", "tool_calls": None}, OPENAI[1]],
        {"role": ["user", "assistant"], "content": ["a", "b"]},
        json.dumps(OPENAI),
    ],
    ids=[
        "openai",
        "sharegpt",
        "sharegpt by role",
        "mixed",
        "null role",
        "null calls",
        "columns",
        "json",
    ],
)
def test_one_conversation_in_many_shapes(messages):
    """What templates see does not depend on who exported the rows."""
    assert read_conversation(messages).messages == tuple(OPENAI)


def test_a_system_column_is_the_first_message_unless_there_is_one():
    """ShareGPT rows often keep it apart."""
    first = {"role": "system", "content": "s"}

    assert read_conversation(OPENAI, system="s").messages == (first, *OPENAI)
    assert read_conversation([first, *OPENAI], system="other").messages == (first, *OPENAI)
    assert read_conversation(OPENAI, system="").messages == tuple(OPENAI)


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_tools_as_a_list_or_as_text(tools):
    """JSON text keeps Arrow from filling schemas with nulls, so many rows have it."""
    assert read_conversation(OPENAI, tools=tools).tools == (TOOL,)


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_no_tools(tools):
    """An empty list is none: templates would write a headline for it."""
    assert read_conversation(OPENAI, tools=tools).tools is None


@pytest.mark.parametrize(
    ("messages", "more", "message"),
    [
        ("text", {}, "list of objects with role and content, it holds str 'text'"),
        ([], {}, "it holds list"),
        (["text"], {}, "message 1 is str 'text'"),
        ([OPENAI[0], {"content": "b"}], {}, "message 2 has nothing as its role"),
        ([{"role": "user"}], {}, "message 1 has nothing as its content"),
        ([{"role": "user", "content": 5}], {}, "message 1 has int '5' as its content"),
        (
            [{"from": "alien", "value": "a"}],
            {},
            "str 'alien' as the speaker of message 1; known",
        ),
        (
            [{"from": "function_call", "value": "{}"}],
            {},
            "calls of tools are written as tool_calls",
        ),
        (
            [{"role": "user", "content": [{"type": "video", "url": "x"}]}],
            {},
            "part in message 1 that is str 'video'; only parts of text",
        ),
        (OPENAI, {"tools": "no json"}, "list of JSON schemas"),
        (OPENAI, {"tools": [5]}, "list of JSON schemas"),
        (OPENAI, {"completion": "text"}, "it holds str 'text'"),
        (OPENAI, {"system": 5}, "text for a system message, it has int"),
    ],
)
def test_what_is_no_conversation_is_named(messages, more, message):
    """Which message, what it holds, and what is allowed."""
    with pytest.raises(ConversationError, match=message):
        read_conversation(messages, **more)


def test_jsonl_and_parquet_give_the_same_conversation(tmp_path):
    """Arrow fills every struct with the keys of all others; the template sees none of it."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": "Bern"}}}
    other = {"type": "function", "function": {"name": "g", "arguments": {"day": 3}}}
    rows = [
        {"messages": [*OPENAI, {"role": "assistant", "content": None, "tool_calls": [call]}]},
        {"messages": [OPENAI[0], {"role": "assistant", "content": "", "tool_calls": [other]}],
         "tools": [TOOL]},
        {"messages": [{"role": "user", "content": "x", "name": "Ada"}, OPENAI[1]]},
    ]  # fmt: skip
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.Table.from_pylist([*rows[1:], rows[0]]).schema), table)  # fmt: skip
    fields = find_fields(["messages", "tools"], columns=Columns())

    read = [
        [
            conversation_of(row, fields, where=where)
            for where, row in read_files([file], ["messages", "tools"])
        ]
        for file in (lines, table)
    ]

    assert read[0] == read[1]
    assert read[0][0].messages[2] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert read[0][1].tools == (TOOL,)
    nulls = [row for _, row in read_files([table], ["messages"])]
    assert nulls[0]["messages"][0]["tool_calls"] is None  # there was something to drop


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        (["conversations"], TextFields(messages="conversations")),
        (["messages", "tools"], TextFields(messages="messages", tools="tools")),
        (
            ["conversations", "system", "tools"],
            TextFields(messages="conversations", system="system", tools="tools"),
        ),
        (
            ["instruction", "input", "output"],
            TextFields(instruction="instruction", input="input", completion="output"),
        ),
        (
            ["instruction", "input", "output", "text"],
            TextFields(instruction="instruction", input="input", completion="output"),
        ),
        (["instruction", "output"], TextFields(instruction="instruction", completion="output")),
        (
            ["prompt", "completion", "tools"],
            TextFields(prompt="prompt", completion="completion", tools="tools"),
        ),
    ],
)
def test_usual_names_are_found(names, fields):
    """Alpaca, ShareGPT and what goes with messages."""
    assert find_fields(names, columns=Columns()) == fields
    assert find_fields(names, columns=Columns(), task="causal_lm") == fields


@pytest.mark.parametrize(
    ("names", "columns", "fields"),
    [
        (["messages", "tools"], {"tools": ""}, TextFields(messages="messages")),
        (
            ["messages", "tools", "system"],
            {"tools": "", "messages": "messages"},
            TextFields(messages="messages", system="system"),
        ),
        (["messages", "tools", "system"], {"tools": "", "system": ""},
         TextFields(messages="messages")),
        (["prompt", "completion", "tools"], {"tools": ""},
         TextFields(prompt="prompt", completion="completion")),
        (["instruction", "input", "output"], {"input": ""},
         TextFields(instruction="instruction", completion="output")),
        (["instruction", "tools", "output"], {"input": "tools", "tools": ""},
         TextFields(instruction="instruction", input="tools", completion="output")),
        (["messages"], {"tools": ""}, TextFields(messages="messages")),
    ],
)  # fmt: skip
def test_an_empty_name_leaves_a_column_alone(names, columns, fields):
    """Whatever the column holds: no template or wording gets it."""
    assert find_fields(names, columns=Columns(**columns)) == fields
    assert find_fields(names, columns=Columns(**columns), task="causal_lm") == fields


def test_columns_that_are_needed_have_a_name():
    """An empty one is a slip."""
    with pytest.raises(ColumnError, match=r"an empty name for text; .* tools, system, input"):
        find_fields(["text"], columns=Columns(text=""))


def test_other_names_are_given():
    """Dolly's columns, by their roles."""
    columns = Columns(instruction="instruction", input="context", completion="response")
    names = ["instruction", "context", "response", "category"]

    assert find_fields(names, columns=columns) == TextFields(
        instruction="instruction", input="context", completion="response"
    )
    with pytest.raises(ColumnError, match="an instruction without a completion"):
        find_fields(names, columns=Columns(instruction="instruction"))


def test_prompt_and_completion_are_of_one_kind():
    """Both text or both lists; which one, the row says."""
    fields = TextFields(prompt="p", completion="c")
    chat = {"p": OPENAI[:1], "c": OPENAI[1:]}

    check_row(chat, fields, where="row 1")
    check_row({"p": "a", "c": "b"}, fields, where="row 1")
    assert has_chat(chat, fields)
    conversation = conversation_of(chat, fields, where="row 1")
    assert conversation is not None
    assert (conversation.messages, conversation.n_given) == (tuple(OPENAI), 1)
    for row, message in [
        ({"p": OPENAI, "c": "b"}, "column 'c' must be a list of messages as column 'p' is"),
        ({"p": OPENAI}, "column 'c' must be a list of messages as column 'p' is"),
        ({"p": OPENAI, "c": None}, "column 'c' must be a list of messages as column 'p' is"),
        ({"p": "a", "c": OPENAI}, "row 1: column 'c' must be text, it holds list"),
    ]:
        with pytest.raises(ColumnError, match=message):
            check_row(row, fields, where="row 1")


def test_an_input_is_text_or_nothing():
    """Alpaca rows often have none."""
    fields = TextFields(instruction="i", input="n", completion="o")

    check_row({"i": "a", "n": None, "o": "b"}, fields, where="row 1")
    check_row({"i": "a", "o": "b"}, fields, where="row 1")
    with pytest.raises(ColumnError, match="column 'n' must be text or nothing, it holds int"):
        check_row({"i": "a", "n": 5, "o": "b"}, fields, where="row 1")
