"""No pipe, socket or device is opened, and no loop of links followed, wherever a file is read.

Opening a pipe waits for whoever writes to it; a device may never end.
"""

import os
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.adapter_files import CONFIG, WEIGHTS, write_adapter_files
from support.service import as_jsonl, make_model

ROWS = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
PATIENCE_S = 60.0


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def unix_socket(path: Path) -> None:
    short = Path(f"/tmp/fl-{os.getpid()}.sock")  # its name may be no longer than 107 bytes
    short.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(short))
    shutil.move(short, path)


MAKERS = (pipe, device, loop, unix_socket)
IN_MODELS = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "chat_template.jinja", "additional_chat_templates/default.jinja",
)  # fmt: skip


def put(make: Callable[[Path], None], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)


def in_model(name: str) -> Callable[[Callable[[Path], None], Path], dict[str, Any]]:
    def spoil(make: Callable[[Path], None], data_dir: Path) -> dict[str, Any]:
        put(make, make_model(data_dir / "models" / "odd") / name)
        return {"base_model": "local:odd", "dataset": {"source": "inline", "rows": ROWS}}

    return spoil


def the_model(make: Callable[[Path], None], data_dir: Path) -> dict[str, Any]:
    put(make, data_dir / "models" / "odd")
    return {"base_model": "local:odd"}


def in_adapter(name: str) -> Callable[[Callable[[Path], None], Path], dict[str, Any]]:
    def spoil(make: Callable[[Path], None], data_dir: Path) -> dict[str, Any]:
        put(make, write_adapter_files(data_dir / "adapters" / "odd") / name)
        return {"calibration": {"adapter": "odd"}}

    return spoil


def the_dataset(make: Callable[[Path], None], data_dir: Path) -> dict[str, Any]:
    put(make, data_dir / "datasets" / "odd.jsonl")
    return {"dataset": "local:odd.jsonl"}


def in_dataset(make: Callable[[Path], None], data_dir: Path) -> dict[str, Any]:
    folder = data_dir / "datasets" / "odd"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(as_jsonl(ROWS))
    put(make, folder / "b.jsonl")
    return {"dataset": "local:odd"}


PLACES = {
    **{f"model {name}": in_model(name) for name in IN_MODELS},
    **{f"adapter {name}": in_adapter(name) for name in (CONFIG, WEIGHTS)},
    "model": the_model,
    "dataset": the_dataset,
    "in a dataset": in_dataset,
}


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_is_refused_unopened(http, body, data_dir, place, make):
    """A name of what would be read; nobody waits for it, and the lists go on."""
    change = PLACES[place](make, data_dir)
    answers: list[Any] = []

    def ask() -> None:
        answers.append(http.post("/estimate", json=body | change))
        answers.extend(http.get(path) for path in ("/models", "/datasets", "/adapters"))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)

    assert len(answers) == 4, "an answer is waited for"
    assert [answer.status_code for answer in answers[1:]] == [200] * 3
    assert answers[0].status_code in {404, 422, 424}, answers[0].text
