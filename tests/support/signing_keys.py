"""Keys as the page about signing makes them."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "signing.md"


class KeyPair(NamedTuple):
    """Files of a private and a public key."""

    private: Path
    public: Path


def make_keys(folder: Path) -> KeyPair:
    """Run the commands of the page."""
    folder.mkdir()
    commands = re.findall(r"^openssl .*$", PAGE.read_text(), re.MULTILINE)
    for command in commands:
        subprocess.run(shlex.split(command), cwd=folder, check=True, capture_output=True)
    return KeyPair(folder / "signing.pem", folder / "signing.pub")
