"""Templates come from strangers: what they may take, and how they end."""

import pathlib
import re

import pytest

from fimlora_jobs.datasets.conversations import read_conversation
from fimlora_worker.errors import DatasetSchema, UnsupportedArchitecture
from fimlora_worker.inputs.chat.encoding import chat_encoder
from fimlora_worker.inputs.chat.templates import ChatTemplate, Limits, Request
from support.chats import CHATML, assistant, chat_tokenizer, user

LIMITS = Limits(max_seconds=2, max_bytes=1 << 30, max_chars=100_000, max_spans=1_000)
MESSAGES = [user("Hello"), assistant("Good day")]


def render(template: str):
    with ChatTemplate(chat_tokenizer(template), limits=LIMITS) as opened:
        return opened.render([Request(MESSAGES)], where="row 7")[0]


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 7 ** (7 ** 9) }}",
    ],
    ids=["loops", "one number"],
)
def test_a_template_that_does_not_end_is_ended(template):
    """Also inside one operation, which no thread could interrupt."""
    with pytest.raises(UnsupportedArchitecture, match=r"row 7: .*more than 2 seconds; use"):
        render(template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'a' * 10 ** 10 }}", "it needs more than 1024 MiB of memory"),
        ("{{ 'a'|center(10 ** 10) }}", "it needs more than 1024 MiB of memory"),
        (
            "{% for i in range(2000) %}{% generation %}a{% endgeneration %}{% endfor %}",
            "it marks more than 1000 parts of its text",
        ),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", "attribute '__class__' .* is unsafe"),
        ("{{ 'a' * 10 ** 6 }}", "it writes more than 100000 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it calls itself too deeply"),
        ("{{ '\ud800' }}", r"it writes half a character \(a lone surrogate\)"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ a.b.c }}", "'a' is undefined"),
        ("{% include '/etc/passwd' %}", "no loader for this environment specified"),
        ("{{ messages | map(attribute='x.y') | list | tojson }}", "has no attribute 'x'"),
    ],
)
def test_what_a_template_does_wrong_is_named(template, message):
    """In its own words or ours, and without a path of this machine."""
    rendered = render(template)

    assert re.search(message, rendered.error)
    assert "site-packages" not in rendered.error
    assert rendered.text == ""


@pytest.mark.parametrize("template", ["{% for %}", "a\n{{ 1 +* }}", "{% nothing %}"])
def test_a_template_that_is_none_is_the_model_s_fault(template):
    """No row could be rendered by it."""
    with pytest.raises(UnsupportedArchitecture, match=r"template is not sound: .* in line \d"):
        render(template)


def test_a_row_that_the_template_refuses_is_named():
    """Templates raise on roles they do not know."""
    tokenizer = chat_tokenizer("{{ raise_exception('no such role') }}")
    with (
        chat_encoder(tokenizer, "all") as encoder,
        pytest.raises(DatasetSchema, match="row 7: the chat template refuses it: no such role"),
    ):
        encoder.encode(read_conversation(MESSAGES), where="row 7")


def test_without_a_template_the_message_says_what_to_use_instead():
    """Messages cannot be turned into text."""
    with (
        chat_encoder(chat_tokenizer(), "all") as encoder,
        pytest.raises(DatasetSchema, match="has no chat template; use a chat model"),
    ):
        encoder.encode(read_conversation(MESSAGES), where="row 7")


def test_several_templates_without_a_default_are_refused():
    """Nobody says which one is meant."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = {"rag": CHATML, "tools": CHATML}

    with pytest.raises(UnsupportedArchitecture, match="none that is called default"):
        ChatTemplate(tokenizer)


def test_what_is_secret_here_is_not_known_there(monkeypatch):
    """The process gets none of this one's environment but what it needs to start."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with ChatTemplate(chat_tokenizer(CHATML), limits=LIMITS) as opened:
        opened.render([Request(MESSAGES)], where="row 1")
        process = opened._process.pid
        with pathlib.Path(f"/proc/{process}/environ").open() as file:
            environment = file.read()

    assert "PATH=" in environment
    assert "hf_secret" not in environment


def test_the_process_ends_with_the_block():
    """Nothing is left behind."""
    with ChatTemplate(chat_tokenizer(CHATML), limits=LIMITS) as opened:
        opened.render([Request(MESSAGES)], where="row 1")
        process = opened._process

    assert process.returncode is not None
