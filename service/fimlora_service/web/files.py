"""The built files of the page: a closed set, read when they are first asked for and kept."""

import gzip
import mimetypes
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fimlora_contract.digests import digest_bytes

STATIC = Path(__file__).parent / "static"
FOR_AGENTS = Path(__file__).parent / "llms.txt"  # written by hand, and no part of a build
# A machine's own table may lack these, or say text/plain.
TYPES = {
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".html": "text/html",
    ".txt": "text/plain",
}
TEXT = ("text/", "image/svg")


@dataclass(frozen=True)
class PageFile:
    """One file as it is sent."""

    content: bytes
    media_type: str

    @cached_property
    def digest(self) -> str:
        """What its tag is made of."""
        return digest_bytes(self.content)

    @cached_property
    def compressed(self) -> bytes:
        """The same for who takes gzip; at the same time as always, so that bytes are too."""
        return gzip.compress(self.content, compresslevel=9, mtime=0)


class PageFiles:
    """What a build has left, by the names that the page asks for.

    Args:
        folder: Where the build is.
    """

    def __init__(self, folder: Path = STATIC) -> None:
        self._folder = folder
        self._read: dict[str, PageFile] = {}
        assets = folder / "assets"
        self._known = {
            FOR_AGENTS.name: FOR_AGENTS,
            **{path.name: path for path in folder.glob("*.html")},
            **{f"assets/{path.name}": path for path in assets.glob("*") if path.is_file()},
        }

    def get(self, name: str) -> PageFile | None:
        """A file, or nothing if the build has none of that name."""
        path = self._known.get(name)
        if path is None:
            return None
        if name not in self._read:  # read twice at most by two at once, to the same bytes
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # another version was installed under a running service
                return None
            self._read[name] = PageFile(content, media_type_of(path))
        return self._read[name]


def media_type_of(path: Path) -> str:
    """What a browser is told that a file is; it may not guess."""
    guessed = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    kind = guessed or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith(TEXT) else kind
