"""Print what some extras of pyproject.toml need, without the package itself.

The images install these first, so that a change of our own code leaves the large layer
of dependencies as it was.
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(project: dict, extra: str) -> list[str]:
    """Requirements of the base install and of one extra, its own extras followed."""
    extras = project["optional-dependencies"]
    own = re.compile(rf"{re.escape(project['name'])}\[(.+)\]")
    found: list[str] = list(project["dependencies"])
    waiting = [extra]
    while waiting:
        for line in extras[waiting.pop()]:
            if match := own.fullmatch(line):
                waiting += [name.strip() for name in match[1].split(",")]
            elif line not in found:
                found.append(line)
    return found


if __name__ == "__main__":
    pyproject = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    lines = (r for extra in sys.argv[1:] for r in requirements(pyproject["project"], extra))
    sys.stdout.write("\n".join(dict.fromkeys(lines)) + "\n")
