"""Which tokens of a conversation carry a label: the assistant's, found without asking it twice.

The reference is slow and knows each family by heart: it splits the rendered text by a regular
expression of the family, tokenises the pieces one by one and labels those of the assistant.
Control tokens stand at every edge, so that the pieces have the tokens of the whole.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from fimlora_jobs.datasets.columns import TextFields
from fimlora_jobs.datasets.conversations import read_conversation
from fimlora_worker.errors import DatasetSchema
from fimlora_worker.inputs.chat.encoding import ChatEncoder, Tokens, chat_encoder
from fimlora_worker.inputs.examples import Encoder
from fimlora_worker.inputs.token_spans import IGNORED
from support.chats import (
    CHATML,
    CLOSED,
    GEMMA,
    LLAMA,
    MISTRAL,
    TAGGED,
    THINKING,
    assistant,
    chat_tokenizer,
    system,
    user,
)

# What the assistant writes is group 1: content and what closes the turn.
FAMILIES = {
    "chatml": (CHATML, r"<\|im_start\|>assistant\n(.*?<\|im_end\|>\n)"),
    "tagged": (TAGGED, r"<\|im_start\|>assistant\n(.*?<\|im_end\|>\n)"),
    "llama": (LLAMA, r"<\|header\|>assistant<\|/header\|>\n\n(.*?<\|eot\|>)"),
    "mistral": (MISTRAL, r"\[/INST\]( .*?</s>)"),
    "gemma": (GEMMA, r"<start_of_turn>model\n(.*?<end_of_turn>\n)"),
    "closed": (CLOSED, r"<\|header\|>assistant<\|/header\|>(.*?<\|eot\|>(?:</s>)?)"),
}
LONG = "The quick parser formats long paragraphs of text, é漢字 and all.\n\n" * 9
CONVERSATIONS = {
    "one turn": [user("How do I wrap text?"), assistant("Use textwrap.")],
    "several turns": [
        user("Hello"), assistant("Hello.  What is it?"), user(LONG), assistant(LONG),
        user("x"), assistant("y"),
    ],
    "ends with a question": [user("Hello"), assistant("Good day"), user("And now?")],
}  # fmt: skip


def slow_reference(tokenizer, messages, pattern, *, template=None):
    """Token by token what a person would label."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template)
    ids, labels, last = [], [], 0
    for match in re.finditer(pattern, text, flags=re.DOTALL):
        for piece, is_learned in ((text[last : match.start(1)], False), (match[1], True)):
            new = tokenizer(piece, add_special_tokens=False)["input_ids"]
            ids += new
            labels += new if is_learned else [IGNORED] * len(new)
        last = match.end(1)
    rest = tokenizer(text[last:], add_special_tokens=False)["input_ids"]
    return ids + rest, labels + [IGNORED] * len(rest)


@pytest.fixture(scope="module")
def encode() -> Iterator[Callable[..., tuple[Tokens | None, ChatEncoder]]]:
    """Encode a conversation; a template has one process for all tests of this file."""
    opened: dict[tuple[str, str], ChatEncoder] = {}
    with ExitStack() as stack:

        def encode(tokenizer, messages, choice="assistant", **more):
            key = (json.dumps(tokenizer.chat_template), choice)
            if key not in opened:
                opened[key] = stack.enter_context(chat_encoder(tokenizer, choice))
            conversation = read_conversation(messages, **more)
            return opened[key].encode(conversation, where="row 3"), opened[key]

        yield encode


def learned(tokenizer, tokens) -> str:
    """The text that carries labels."""
    return tokenizer.decode([label for label in tokens[1] if label != IGNORED])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_assistant_s_tokens_carry_labels_and_no_others(family):
    """Every family, by tags or by the prefix, as the slow reference has it."""
    template, pattern = FAMILIES[family]
    tokenizer = chat_tokenizer(template)
    fixed = template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")

    with chat_encoder(tokenizer, "assistant") as encoder:
        for messages in CONVERSATIONS.values():
            tokens = encoder.encode(read_conversation(messages), where="row 3")
            assert tokens == slow_reference(tokenizer, messages, pattern, template=fixed)
            assert 0 < sum(label != IGNORED for label in tokens[1]) < len(tokens[0])

    assert encoder.decided_by == {"generation tags" if family == "tagged" else "prefix"}


def test_tags_agree_with_transformers(encode):
    """The mask is that of ``return_assistant_tokens_mask``, which TRL labels by."""
    tokenizer = chat_tokenizer(TAGGED)
    messages = CONVERSATIONS["several turns"]
    tokens, _ = encode(tokenizer, messages)
    theirs = tokenizer.apply_chat_template(
        messages, return_assistant_tokens_mask=True, return_dict=True
    )

    assert tokens[0] == theirs["input_ids"]
    assert [label != IGNORED for label in tokens[1]] == [
        bool(mask) for mask in theirs["assistant_masks"]
    ]


def test_a_thought_of_the_last_turn_is_learned(encode):
    """One question and one answer: the thought is what the assistant writes."""
    tokenizer = chat_tokenizer(THINKING)
    messages = [user("Why?"), assistant("So.", reasoning_content="Because")]

    tokens, _ = encode(tokenizer, messages)

    assert learned(tokenizer, tokens) == "<think>\nBecause\n</think>\n\nSo.<|im_end|>\n"


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_ways_out(encode):
    """Earlier thoughts go once the conversation goes on; both options work in their place."""
    tokenizer = chat_tokenizer(THINKING)
    messages = [
        user("Why?"), assistant("So.", reasoning_content="Because"),
        user("Why not?"), assistant("Well.", reasoning_content="Hm"),
    ]  # fmt: skip

    with pytest.raises(DatasetSchema, match=r"row 3: .*writes message 2 otherwise.*last .*all"):
        encode(tokenizer, messages)
    last, by_last = encode(tokenizer, messages, "last")
    every, by_all = encode(tokenizer, messages, "all")

    assert learned(tokenizer, last) == "<think>\nHm\n</think>\n\nWell.<|im_end|>\n"
    assert every[1] == every[0] == last[0]
    assert (by_last.decided_by, by_all.decided_by) == ({"prefix"}, {"all"})


def test_the_last_turn_alone_by_tags(encode):
    """Tags of earlier turns are left aside."""
    tokenizer = chat_tokenizer(TAGGED)

    tokens, _ = encode(tokenizer, CONVERSATIONS["several turns"], "last")

    assert learned(tokenizer, tokens) == "y<|im_end|>\n"


def test_a_header_that_asks_for_more_counts_as_far_as_it_agrees(encode):
    """A prompt for a thought, before a turn that has none."""
    asks = CHATML.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    )
    tokenizer = chat_tokenizer(asks)

    tokens, _ = encode(tokenizer, CONVERSATIONS["one turn"])

    assert learned(tokenizer, tokens) == "Use textwrap.<|im_end|>\n"


def test_a_system_message_moved_to_the_last_question_is_refused(encode):
    """Then nothing that was rendered before is the beginning of the whole."""
    moves = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST]"
        "{% if loop.index0 >= messages | length - 2 %}{{ messages[0].content }}{% endif %}"
        "{{ m.content }}[/INST]{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}"
        "{% endfor %}"
    )
    messages = [system("Be brief"), user("a"), assistant("b"), user("c"), assistant("d")]

    with pytest.raises(DatasetSchema, match="writes message 3 otherwise"):
        encode(chat_tokenizer(moves), messages)


@pytest.mark.parametrize(
    "messages", [[user("Hello")], [system("Be brief"), user("Hello")]], ids=["user", "system"]
)
def test_a_conversation_without_an_answer_teaches_nothing(encode, messages):
    """It is dropped, and counted by who draws."""
    tokens, _ = encode(chat_tokenizer(CHATML), messages)

    assert tokens is None


def test_calls_and_results_of_tools(encode):
    """The call is the assistant's, the result is not; schemas reach the template."""
    tokenizer = chat_tokenizer(LLAMA)
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    messages = [
        user("Rain?"), assistant("", tool_calls=[call]),
        {"role": "tool", "content": "sun"}, assistant("No."),
    ]  # fmt: skip
    tokens, _ = encode(tokenizer, messages, tools=[tool])
    called, _ = encode(chat_tokenizer(CHATML), messages)

    assert '"name": "weather"' in tokenizer.decode(tokens[0])
    assert learned(tokenizer, tokens) == "<|eot|>No.<|eot|>"
    assert learned(tokenizer, called) == (
        '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call><|im_end|>\n'
        "No.<|im_end|>\n"
    )


def test_a_completion_is_learned_and_the_prompt_s_answers_are_not(encode):
    """Prompt and completion as lists: the assistant's turns of the completion alone."""
    messages = CONVERSATIONS["several turns"]
    for template in (CHATML, TAGGED):
        tokenizer = chat_tokenizer(template)
        tokens, _ = encode(tokenizer, messages[:5], completion=messages[5:])
        assert learned(tokenizer, tokens) == "y<|im_end|>\n"


def test_content_in_parts_is_joined_or_handed_on(encode):
    """A template of text gets text, one that reads parts gets parts, whatever the row has."""
    reads_parts = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% for part in m.content %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    parts = [{"type": "text", "text": "Use "}, {"type": "text", "text": "textwrap."}]
    text = CONVERSATIONS["one turn"]
    in_parts = [text[0], {"role": "assistant", "content": parts}]
    tokenizer = chat_tokenizer(CHATML)
    expected, _ = encode(tokenizer, text)

    for template in (CHATML, reads_parts):
        for messages in (text, in_parts):
            assert encode(chat_tokenizer(template), messages)[0] == expected


def test_the_date_is_on_record_and_not_today_s(encode):
    """Equal requests give equal tokens tomorrow."""
    tokenizer = chat_tokenizer(LLAMA)
    tokens, encoder = encode(tokenizer, CONVERSATIONS["one turn"])
    _, dateless = encode(chat_tokenizer(CHATML), CONVERSATIONS["one turn"])

    assert "Today: 26 Jul 2024" in tokenizer.decode(tokens[0])
    assert encoder.read_date
    assert not dateless.read_date


def test_a_template_for_tools_of_its_own(encode):
    """Several templates by name: the one for tools is taken where there are tools."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": "TOOLS " + CHATML}
    messages = CONVERSATIONS["one turn"]
    with_tools, _ = encode(tokenizer, messages, tools=[{"type": "function"}])
    without, _ = encode(tokenizer, messages)

    assert tokenizer.decode(with_tools[0]) == "TOOLS " + tokenizer.decode(without[0])


def test_an_answer_that_is_cut_away_drops_the_row():
    """Within max_length there is only the question."""
    tokenizer = chat_tokenizer(CHATML)
    fields = TextFields(messages="m")
    row = {"m": [user(LONG), assistant("yes")]}
    with chat_encoder(tokenizer, "assistant") as chat:
        cut = Encoder(tokenizer, fields, 64, None, chat).encode(row, where="row 1")
        whole = Encoder(tokenizer, fields, 5000, None, chat).encode(row, where="row 1")

    assert cut is None
    assert learned(tokenizer, (whole["input_ids"], whole["labels"])) == "yes<|im_end|>\n"


def test_a_part_cannot_be_told_by_tags_where_the_beginning_changes(encode):
    """All that tags enclose can be had; the last turn of it only if the rest stays as it was."""
    tokenizer = chat_tokenizer("{{ messages | length }} messages\n" + TAGGED)
    messages = CONVERSATIONS["several turns"]

    tokens, _ = encode(tokenizer, messages)
    with pytest.raises(DatasetSchema, match=r"to assistant or all"):
        encode(tokenizer, messages, "last")

    assert learned(tokenizer, tokens).endswith("y<|im_end|>\n")
