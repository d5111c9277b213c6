"""Transcripts in the documentation: the commands of ``console`` blocks with their output."""

import re
from dataclasses import dataclass

# What differs from run to run, and what it is called instead.
VARYING = {
    r"sha256:[0-9a-f]{64}": "sha256:…",
    r"\bjob_[0-9a-f]{23}\b": "job_…",
    r"\bds_[0-9a-f]{32}\b": "ds_…",
    r"^(< content-length|content-length): \d+": r"\1: …",
    r"^(date|x-request-id): .*": r"\1: …",
    r"fetched \d+ k?B": "fetched …",
    r"  \d+ s$": "  … s",
}


@dataclass(frozen=True)
class Command:
    """One command and what the page says that it prints; ``...`` is any number of lines."""

    line: str
    output: tuple[str, ...]


def commands_of(block: str) -> list[Command]:
    """Every command of a block; a line that ends with a backslash goes on in the next."""
    found = re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)
    return [
        Command(line, tuple(rest)) for line, *rest in map(str.splitlines, filter(None, found))
    ]


def plain(text: str) -> list[str]:
    """Lines of output without what differs from run to run."""
    for pattern, name in VARYING.items():
        text = re.sub(pattern, name, text, flags=re.MULTILINE)
    return [line.rstrip() for line in text.splitlines()]


def agrees(command: Command, printed: str) -> bool:
    """Whether a command printed what its page says."""
    expected = "\n".join(plain("\n".join(command.output)))
    pattern = re.escape(expected).replace(re.escape("..."), ".*?")
    found = "\n".join(plain(printed)).rstrip()
    return re.fullmatch(pattern, found, flags=re.DOTALL) is not None
