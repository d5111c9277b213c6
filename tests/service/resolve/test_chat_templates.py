"""Chat messages need a tokenizer with a chat template: told from its files, before queueing."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fimlora_jobs.datasets.columns import NO_CHAT_TEMPLATE
from fimlora_service.app import create_app
from fimlora_service.resolve.chat_templates import folder_may_have_template
from fimlora_worker.inputs.models import load_tokenizer
from support.model_folders import CHAT_TEMPLATE, make_decoder, make_tokenizer
from support.service import make_model

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
    ],
)  # fmt: skip
def test_the_files_tell_what_the_tokenizer_has(tmp_path, make):
    """Whatever way a template is kept, service and worker agree."""
    folder = make_decoder(tmp_path / "m")
    make(folder)

    assert folder_may_have_template(folder) is bool(load_tokenizer(folder).chat_template)


def test_a_doubt_is_left_to_the_worker(tmp_path):
    """A broken file, or a tokenizer of another library, is none without a template."""
    broken, other = make_model(tmp_path / "a"), make_model(tmp_path / "b")
    (broken / "tokenizer_config.json").write_text("{")
    (other / "tekken.json").write_text("{}")

    assert folder_may_have_template(broken)
    assert folder_may_have_template(other)


def ask(http: Any, body: Any, model: str, rows: Any = CHAT) -> Any:
    dataset = {"source": "inline", "rows": rows}
    return http.post("/calibrate", json=body | {"base_model": model, "dataset": dataset})


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
    ],
    ids=["none", "configuration-without", "configuration", "file"],
)
def test_a_model_of_the_hub_is_told_by_its_files(settings, body, hub, tmp_path, files, status):
    """Only a small file is fetched, and only when rows are chat messages."""
    model = hub.add("org/model", make_model(tmp_path / "m"))
    model.files |= {name: text.encode() for name, text in files.items()}
    app = create_app(settings.model_copy(update={"hub_endpoint": hub.url}))
    with TestClient(app) as http:
        plain = ask(http, body, "org/model", [{"text": "w1"}])
        asked_for_text = [line for line in hub.requests if "token" in line]
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
