"""Fences of the documentation: what each is, and whether it may be run."""

import re
from dataclasses import dataclass
from pathlib import Path

# The opening line: indent, language, and what else is said in it.
OPENING = re.compile(r"^(?P<indent> *)```(?P<language>\w*) *(?P<words>.*)$")
RUN = ("python", "sh", "console")
READ = ("json", "jsonl", "csv", "yaml", "toml", "text")
WORDS = re.compile(r'(title|no-run)="([^"]+)"')


@dataclass(frozen=True)
class Fence:
    """One block of code of a page."""

    line: int
    language: str
    words: dict[str, str]
    text: str

    @property
    def is_run(self) -> bool:
        """Files that are shown are run as files, and some say why they cannot be run."""
        return self.language in RUN and not self.words


def fences(page: Path) -> list[Fence]:
    """The blocks of a page, in order."""
    found: list[Fence] = []
    opened: tuple[int, re.Match[str]] | None = None
    inside: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if opened is None:
            if match := OPENING.match(line):
                opened, inside = (number, match), []
        elif line.strip() == "```":
            found.append(_fence(*opened, inside))
            opened = None
        else:
            inside.append(line.removeprefix(opened[1]["indent"]))
    assert opened is None, f"{page}:{opened[0]} is not closed"
    return found


def sections(page: Path, language: str) -> dict[str, Fence]:
    """The blocks of one language, each by the last heading before it."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found = {}
    for fence in fences(page):
        if fence.language == language:
            above = [line for line in lines[: fence.line] if line.startswith("#")]
            found[above[-1].lstrip("# ")] = fence
    return found


def _fence(line: int, opening: re.Match[str], inside: list[str]) -> Fence:
    words = dict(WORDS.findall(opening["words"]))
    assert not WORDS.sub("", opening["words"]).strip(), f"line {line}: {opening['words']}"
    return Fence(line, opening["language"], words, "\n".join(inside) + "\n")
