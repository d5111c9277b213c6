"""Write everything that is made from the code: ``python docs/generate.py``."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODELS = HERE.parent / "service/fimlora_jobs/models"
CONTRACT = HERE.parent / "clients/python/fimlora_contract"
sys.path.insert(0, str(HERE))  # the pages beside this file, wherever it is run from

from blocking import INIT, SOURCES, TARGET, make_blocking  # noqa: E402
from client_reference import client_reference  # noqa: E402
from config_kinds import config_kinds  # noqa: E402
from configuration_page import configuration_page  # noqa: E402
from environment_names import environment_names  # noqa: E402
from methods_page import methods_page  # noqa: E402
from metrics_page import metrics_page  # noqa: E402
from model_heads import model_heads  # noqa: E402
from shown_files import with_files  # noqa: E402
from troubleshooting_page import troubleshooting_page  # noqa: E402


def openapi() -> str:
    """The HTTP API, as the service describes itself."""
    from fimlora_service.app import create_app
    from fimlora_service.settings import Settings

    return json.dumps(create_app(Settings()).openapi(), indent=2, ensure_ascii=False) + "\n"


def cli() -> str:
    """The command line, as its own help shows it."""
    from typer.main import get_command

    from fimlora_client.cli import app

    intro = "The help of every command. Made by `make docs` from the commands themselves.\n"
    parts = ["# The fimlora command\n", intro]
    for words in _commands(get_command(app)):
        help_text = _help(app, words)
        parts.append(f"## {' '.join(['fimlora', *words])}\n\n```text\n{help_text}\n```\n")
    return "\n".join(parts)


def _commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, (*words, name))


def _help(app: Any, words: tuple[str, ...]) -> str:
    from typer.testing import CliRunner

    environment = {"COLUMNS": "88", "NO_COLOR": "1", "TERM": "dumb"}
    arguments = [*words, "--help"]
    shown = CliRunner().invoke(app, arguments, env=environment, prog_name="fimlora").stdout
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)  # some CI systems force colours on
    return "\n".join(line.rstrip() for line in plain.strip().splitlines())


# First what the pages describe: the names of the environment, the blocking client.
PAGES: list[tuple[Path, Callable[[], str]]] = [
    (CONTRACT / "environment_names.py", environment_names),
    (TARGET / "__init__.py", lambda: INIT),
    *((TARGET / source.name, partial(make_blocking, source)) for source in SOURCES),
    (HERE / "openapi.json", openapi),
    (HERE / "cli.md", cli),
    (HERE / "client.md", client_reference),
    (HERE / "configuration.md", configuration_page),
    (HERE / "methods.md", methods_page),
    (HERE / "metrics.md", metrics_page),
    (HERE / "troubleshooting.md", troubleshooting_page),
    (HERE / "how-to/train.md", partial(with_files, HERE / "how-to/train.md")),
    (MODELS / "heads.json", model_heads),
    (MODELS / "config_kinds.json", config_kinds),
]


def main() -> None:
    """Write every page, and name those that changed."""
    for path, generate in PAGES:
        text = generate()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            sys.stderr.write(f"wrote {path}\n")
    for path in set(TARGET.glob("*.py")) - {path for path, _ in PAGES}:
        path.unlink()
        sys.stderr.write(f"removed {path}\n")


if __name__ == "__main__":
    main()
