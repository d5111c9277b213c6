"""Pages that show files of the repository: a fence with a title has what the file has."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHOWN = re.compile(
    r"^(?P<head>```\w+ title=\"(?P<file>[^\"]+)\"\n).*?^```$", flags=re.MULTILINE | re.DOTALL
)


def with_files(page: Path) -> str:
    """The page with its files as they are now."""

    def fill(fence: re.Match[str]) -> str:
        return f"{fence['head']}{(ROOT / fence['file']).read_text(encoding='utf-8')}```"

    return SHOWN.sub(fill, page.read_text(encoding="utf-8"))
