"""Chat messages need a tokenizer with a chat template: told from its files, before queueing."""

import json
from pathlib import Path
from typing import Any

import pytest

from fimlora_jobs.datasets.columns import NO_CHAT_TEMPLATE
from fimlora_service.app import create_app
from fimlora_service.resolve.chat_templates import templates_in
from fimlora_worker.inputs.models import load_tokenizer
from support.model_folders import CHAT_TEMPLATE, make_decoder, make_tokenizer
from support.service import make_model
from support.testclient import TestClient

CHAT = [{"messages": [{"role": "user", "content": "w1"}]}]


def plain(folder: Path) -> None:
    make_tokenizer(eos_token="[EOS]").save_pretrained(folder)


def in_a_file(folder: Path) -> None:
    plain(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def in_the_configuration(folder: Path, template: Any = CHAT_TEMPLATE) -> None:
    plain(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))


def named_in_the_configuration(folder: Path) -> None:
    in_the_configuration(folder, [{"name": "default", "template": CHAT_TEMPLATE}])


def empty_in_the_configuration(folder: Path) -> None:
    in_the_configuration(folder, "")


def two_in_the_configuration(folder: Path) -> None:
    entries = {"default": CHAT_TEMPLATE, "tool_use": f"{CHAT_TEMPLATE}!"}
    in_the_configuration(folder, [{"name": n, "template": t} for n, t in entries.items()])


def in_a_file_and_in_the_configuration(folder: Path) -> None:
    in_the_configuration(folder, "{% another %}")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def in_a_file_with_another(folder: Path) -> None:
    in_a_file(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    (folder / "additional_chat_templates" / "note.txt").write_text("no template")


def additional(folder: Path) -> None:
    plain(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text(CHAT_TEMPLATE)


def of_a_processor(folder: Path) -> None:
    plain(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))


def without_a_configuration(folder: Path) -> None:
    plain(folder)
    (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    "make",
    [
        plain, in_a_file, in_the_configuration, named_in_the_configuration,
        empty_in_the_configuration, additional, of_a_processor, without_a_configuration,
        two_in_the_configuration, in_a_file_and_in_the_configuration, in_a_file_with_another,
    ],
)  # fmt: skip
def test_the_files_tell_what_the_tokenizer_has(tmp_path, make):
    """Whatever way a template is kept, service and worker agree."""
    folder = make_decoder(tmp_path / "m")
    make(folder)

    found, wanted = templates_in(folder), load_tokenizer(folder).chat_template
    assert found.is_certain
    assert found.by_name == (wanted if isinstance(wanted, dict) else by_default(wanted))
    assert found.are_named is isinstance(wanted, dict)


def by_default(template: str | None) -> dict[str, str]:
    return {"default": template} if template else {}


def test_a_doubt_is_left_to_the_worker(tmp_path):
    """A broken file, or a tokenizer of another library, is none without a template."""
    broken, other = make_model(tmp_path / "a"), make_model(tmp_path / "b")
    (broken / "tokenizer_config.json").write_text("{")
    (other / "tekken.json").write_text("{}")

    assert not templates_in(broken).is_certain
    assert not templates_in(other).is_certain


def ask(http: Any, body: Any, model: str, rows: Any = CHAT) -> Any:
    dataset = {"source": "inline", "rows": rows}
    return http.post("/calibrate", json=body | {"base_model": model, "dataset": dataset})


UNSOUND = "{% for m in messages %}{{ m.content }}"
TOOLS = [{"messages": CHAT[0]["messages"], "tools": [{"name": "f"}]}]


@pytest.mark.parametrize("endpoint", ["/calibrate", "/estimate"])
def test_a_template_that_does_not_compile_is_refused(http, body, data_dir, endpoint):
    """With what is wrong and where; rows of text never meet it."""
    in_a_file(folder := data_dir / "models" / "tiny")
    (folder / "chat_template.jinja").write_text(UNSOUND)
    rows = {"source": "inline", "rows": CHAT}

    refused = http.post(endpoint, json=body | {"base_model": "local:tiny", "dataset": rows})
    text = ask(http, body, "local:tiny", [{"text": "w1"}])

    assert (refused.status_code, refused.json()["code"]) == (422, "unsupported_architecture")
    assert "the innermost block" in refused.json()["detail"].lower()
    assert "in line 1; use prompt and completion columns" in refused.json()["detail"]
    assert text.status_code == 202, text.text


@pytest.mark.parametrize(
    ("templates", "rows", "status"),
    [
        ({"default": CHAT_TEMPLATE, "tool_use": UNSOUND}, CHAT, 202),
        ({"default": UNSOUND, "tool_use": CHAT_TEMPLATE}, CHAT, 422),
        ({"default": UNSOUND, "tool_use": CHAT_TEMPLATE}, TOOLS, 202),
        ({"default": UNSOUND, "tool_use": UNSOUND}, TOOLS, 422),
        ({"default": CHAT_TEMPLATE, "rag": UNSOUND}, CHAT, 202),
        ({"rag": CHAT_TEMPLATE}, CHAT, 422),
        ({"tool_use": CHAT_TEMPLATE}, CHAT, 422),
        ({"tool_use": CHAT_TEMPLATE}, TOOLS, 202),
    ],
)
def test_of_several_templates_the_one_that_is_taken_counts(
    http, body, data_dir, templates, rows, status
):
    """Conversations with tools may have their own; a row without any takes the default."""
    in_the_configuration(
        data_dir / "models" / "tiny",
        [{"name": name, "template": text} for name, text in templates.items()],
    )

    answer = ask(http, body, "local:tiny", rows)

    assert answer.status_code == status, answer.text


def test_a_template_that_is_no_text_is_refused(http, body, data_dir):
    """No tokenizer beside it can be loaded."""
    in_a_file(folder := data_dir / "models" / "tiny")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")

    for rows in (CHAT, [{"text": "w1"}]):
        answer = ask(http, body, "local:tiny", rows)
        assert answer.status_code == 422
        assert "chat_template.jinja is not UTF-8 at byte 0" in answer.json()["detail"]


def test_messages_without_a_template_are_refused(http, body, data_dir):
    """As the worker refuses them, but in the answer to the request."""
    refused = ask(http, body, "local:tiny")
    in_a_file(data_dir / "models" / "tiny")
    accepted = ask(http, body, "local:tiny")

    assert (refused.status_code, refused.json()["code"]) == (422, "dataset_schema")
    assert refused.json()["detail"] == NO_CHAT_TEMPLATE
    assert accepted.status_code == 202, accepted.text


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": CHAT[0]["messages"], "completion": [{"role": "assistant", "content": "w2"}]},
        {"conversations": [{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2"}]},
    ],
    ids=["prompt and completion", "sharegpt"],
)
def test_messages_by_other_names_are_refused_too(http, body, row):
    """Whatever the columns are called: lists of messages go through a template."""
    refused = ask(http, body, "local:tiny", [row])

    assert (refused.status_code, refused.json()["detail"]) == (422, NO_CHAT_TEMPLATE)


def test_other_rows_need_no_template(http, body):
    """Prompts and completions are text already."""
    for row in ({"prompt": "w1", "completion": "w2"}, {"instruction": "w1", "output": "w2"}):
        assert ask(http, body, "local:tiny", [row]).status_code == 202


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ({}, 422),
        ({"tokenizer_config.json": "{}"}, 422),
        ({"tokenizer_config.json": json.dumps({"chat_template": CHAT_TEMPLATE})}, 202),
        ({"chat_template.jinja": CHAT_TEMPLATE}, 202),
        ({"chat_template.jinja": UNSOUND}, 422),
        ({"additional_chat_templates/default.jinja": UNSOUND}, 422),
    ],
    ids=["none", "configuration-without", "configuration", "file", "unsound", "unsound-named"],
)
def test_a_model_of_the_hub_is_told_by_its_files(settings, body, hub, tmp_path, files, status):
    """A template of its own is fetched only when rows are chat messages."""
    model = hub.add("org/model", make_model(tmp_path / "m"))
    model.files |= {name: text.encode() for name, text in files.items()}
    app = create_app(settings.model_copy(update={"hub_endpoint": hub.url}))
    with TestClient(app) as http:
        plain = ask(http, body, "org/model", [{"text": "w1"}])
        asked_for_text = [line for line in hub.requests if "jinja" in line]
        chat = ask(http, body, "org/model")

    assert (plain.status_code, asked_for_text) == (202, [])
    assert chat.status_code == status, chat.text


MESSAGES = {"name": "messages", "list": [{"name": "role", "dtype": "string"}]}
TEXT = {"name": "text", "dtype": "string"}
PROMPTS = [MESSAGES | {"name": "prompt"}, MESSAGES | {"name": "completion"}]


@pytest.mark.parametrize(
    ("dataset_info", "config", "detail"),
    [
        ({"features": [MESSAGES]}, None, NO_CHAT_TEMPLATE),
        ({"features": PROMPTS}, None, NO_CHAT_TEMPLATE),
        ({"features": [TEXT]}, None, None),
        ([{"config_name": "a", "features": [TEXT]}, {"config_name": "b", "features": [MESSAGES]}],
         "b", NO_CHAT_TEMPLATE),
        ([{"config_name": "a", "features": [TEXT]}, {"config_name": "b", "features": [MESSAGES]}],
         "a", None),
        ([{"config_name": "a", "features": [MESSAGES]}], "other", None),
        ({"features": [{"name": "audio", "dtype": "audio"}]}, None, "no text column among"),
        ({"features": "nonsense"}, None, None),
        ("nonsense", None, None),
    ],
)  # fmt: skip
def test_the_card_of_a_hub_dataset_tells_of_chat(
    settings, body, hub, dataset_info, config, detail
):
    """`datasets` reads the files by these features; what is not told, the worker finds out."""
    data = hub.add("org/data", {"train.jsonl": b"{}"}, kind="dataset")
    data.card = {"dataset_info": dataset_info}
    app = create_app(settings.model_copy(update={"hub_endpoint": hub.url}))
    dataset = {"source": "hub", "id": "org/data", "config": config}
    with TestClient(app) as http:
        answer = http.post("/calibrate", json=body | {"dataset": dataset})

    assert answer.status_code == (422 if detail else 202), answer.text
    if detail:
        assert answer.json()["code"] == "dataset_schema"
        assert answer.json()["detail"].startswith(detail)
