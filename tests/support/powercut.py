"""A folder whose power can be cut: what was written to it and not synced is gone then.

Killing a process proves nothing about that, as the kernel keeps what it has written. So a small
library, preloaded into the processes that write, keeps a copy of whatever is synced (see
``powercut.c``), and what is left after the cut is made of these copies alone.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

Names = dict[str, dict[str, tuple[str, str]]]
SOURCE = Path(__file__).with_suffix(".c")


def build_library(folder: Path) -> Path:
    """The library; skips the test where it cannot be built or preloaded."""
    if shutil.which("cc") is None or not Path("/proc/self/fd").is_dir():
        pytest.skip("needs a C compiler and /proc")
    library = folder / "powercut.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, SOURCE]
    subprocess.run(list(map(str, command)), check=True)
    return library


# Syncs a folder with all that is in it, from below.
SYNC_ALL = """
import os, sys
for folder, _, names in os.walk(sys.argv[1], topdown=False):
    for path in (*(os.path.join(folder, name) for name in names), folder):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
"""


@dataclass
class PoweredFolder:
    """A folder, and what a cut would leave of it. What is in it now was synced long ago.

    Attributes:
        root: The folder.
        store: Where the copies are kept.
        library: What keeps them.
    """

    root: Path
    store: Path
    library: Path

    def __post_init__(self) -> None:
        self.store.mkdir()
        command = [sys.executable, "-S", "-c", SYNC_ALL, str(self.root)]
        subprocess.run(command, env=self.env, check=True)

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment."""
        return os.environ | {
            "LD_PRELOAD": str(self.library),
            "POWERCUT_ROOT": str(self.root),
            "POWERCUT_STORE": str(self.store),
        }

    def cut(self) -> None:
        """Leave what was synced; whoever writes there must have been killed."""
        left = self.root.with_name(f"{self.root.name}.left")
        names = read_journal((self.store / "journal").read_text())
        [root] = [id_ for id_ in names if not has_name(id_, names)]
        self._restore(names, root, left)
        shutil.rmtree(self.root)
        left.rename(self.root)

    def _restore(self, names: Names, folder: str, path: Path) -> None:
        path.mkdir()
        for name, (child, kind) in names.get(folder, {}).items():
            copy = self.store / child
            if kind == "d":
                self._restore(names, child, path / name)
            elif copy.exists():
                shutil.copyfile(copy, path / name)
            else:  # its name was synced, its content never
                (path / name).touch()


def read_journal(text: str) -> Names:
    """What each folder has on disk: name to id and kind."""
    names: Names = {}
    synced = ""
    for line in text.splitlines():
        sign, id_, *more = line.split(" ", 2)
        if sign == "D":
            synced = id_
            names[id_] = {}
        elif sign == "E":
            kind, name = more[0].split(" ", 1)
            names[synced][name] = (id_, kind)
        else:
            kind, folder, name = more[0].split(" ", 2)
            # As file systems do it: what is new is found once it is synced, and the new name of
            # what had one is not, until its folder is.
            if not has_name(id_, names):
                names.setdefault(folder, {})[name] = (id_, kind)
    return names


def has_name(id_: str, names: Names) -> bool:
    """Whether something can be found by some name."""
    return any(id_ == child for folder in names.values() for child, _ in folder.values())
