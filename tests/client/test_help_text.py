"""Help on terminals of any width."""

import inspect

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from fimlora_client.cli import app
from fimlora_client.cli.common.help_text import flowing


def commands(command, words=()):
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*words, name))


ALL = dict(commands(get_command(app)))


def test_sentences_flow_and_what_is_typed_stays():
    """A paragraph with an indented line is kept; every other is one line."""
    text = """One sentence
    of two lines.

    Another,
    likewise.

      fimlora jobs
      fimlora show job_1
    """

    assert flowing(text) == (
        "One sentence of two lines.\n\nAnother, likewise.\n\n  fimlora jobs\n  fimlora show job_1"
    )


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_no_command_breaks_its_sentences_where_its_source_does(words):
    """On a wide terminal, a paragraph of the help is one line."""
    command = ALL[words]
    told = [p for p in inspect.cleandoc(command.help).split("\n\n") if "\n " not in f"\n{p}"]
    shown = CliRunner().invoke(
        app, [*words, "--help"], env={"COLUMNS": "600", "NO_COLOR": "1", "TERM": "dumb"}
    )
    lines = [line.strip() for line in shown.stdout.splitlines()]

    assert told
    assert all(p.replace("[bold]", "").replace("[/bold]", "") in lines for p in told), told
