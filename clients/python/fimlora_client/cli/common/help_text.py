"""Help that fits any terminal: sentences flow, examples stay as they are typed."""

import inspect

import typer


def flow_help(app: typer.Typer) -> None:
    """Let the help of all commands of an app, and of its groups, flow."""
    for command in app.registered_commands:
        written = command.help or inspect.getdoc(command.callback) or ""
        command.help = flowing(written)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            flow_help(group.typer_instance)


def flowing(text: str) -> str:
    """Paragraphs without the line breaks of the source, which a terminal of another width doubles.

    A paragraph with an indented line is of things to type, and is left alone.
    """
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        each if "\n " in f"\n{each}" else " ".join(each.split("\n")) for each in paragraphs
    )
