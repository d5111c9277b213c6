"""Make the blocking client from the asynchronous one, its only definition.

Taking ``async`` and ``await`` away is mechanical, adding them is not; so the asynchronous
files are the ones that people edit.
"""

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).parents[1] / "clients/python/fimlora_client"
TARGET = CLIENT / "blocking"
SOURCES = [path for path in sorted(CLIENT.glob("aio/*.py")) if path.name != "__init__.py"]
HEADER = "# Made from aio/{name} by `make docs`; edit that file.\n"
INIT = '"""The blocking client: made from `fimlora_client.aio` by `make docs`."""\n'
# In this order; each is a word of Python or of httpx2 in its two forms.
CHANGES = {
    r"\basync (def|with|for)\b": r"\1",
    r"\bawait ": "",
    r"\bAwaitable\[(\w+)\]": r"\1",
    r"\b(Abstract)?Async(\w+)": r"\1\2",
    r"\basynccontextmanager\b": "contextmanager",
    r"\b__a(enter|exit)__\b": r"__\1__",
    r"\.a(read|iter_bytes|close)\(": r".\1(",
    r"\basyncio\b": "time",
    r"\bfimlora_client\.aio\b": "fimlora_client.blocking",
}


def make_blocking(path: Path) -> str:
    """The blocking form of a file, sorted and wrapped as `make lint` wants it."""
    text = path.read_text(encoding="utf-8")
    for pattern, replacement in CHANGES.items():
        text = re.sub(pattern, replacement, text)
    text = HEADER.format(name=path.name) + text
    fixed = _ruff("check", "--fix", "--select=I,F401", text=text, name=path.name)
    return _ruff("format", text=fixed, name=path.name)


def _ruff(*command: str, text: str, name: str) -> str:
    # Named, because ruff looks for modules on disk, and these may not be there yet.
    ours = 'lint.isort.known-first-party=["fimlora_client", "fimlora_contract"]'
    options = ["--quiet", "--config", ours, "--stdin-filename", str(TARGET / name), "-"]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, *options],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
