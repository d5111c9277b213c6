"""Files that tools may read and write: those below one folder."""

from pathlib import Path

from fimlora_client.bodies import UPLOADS
from fimlora_client.errors import InvalidFile

MOST_CHARS = 20_000  # of a configuration that is answered as text


class OutsideFolder(InvalidFile):
    """A path leads out of the folder that the tools work in."""

    code = "outside_folder"
    next_step = (
        "Give a path inside it; whoever started the server sets it: fimlora mcp --folder DIR."
    )


class WorkFolder:
    """The folder that tools work in.

    Args:
        root: The folder; relative paths begin there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()

    def path(self, given: str) -> Path:
        """A path inside the folder; links are followed before it is looked at.

        Raises:
            OutsideFolder: It leads out.
        """
        try:
            path = (self.root / Path(given).expanduser()).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise InvalidFile(f"{given!r:.200} is no path") from error
        if not path.is_relative_to(self.root):
            raise OutsideFolder(f"{given!r:.200} is outside {self.root}, where tools work")
        return path

    def shown(self, path: Path) -> str:
        """A path as the tools' caller would give it."""
        return str(path.relative_to(self.root))

    def dataset_file(self, given: str) -> Path | None:
        """The file that a dataset's name means, if it is one.

        Raises:
            InvalidFile: It looks like one, and there is none.
        """
        suffix = Path(given).suffix
        is_here = bool(suffix) and (self.root / given).is_file()
        looks_so = given.startswith((".", "/", "~")) or suffix in UPLOADS
        if not (is_here or looks_so):
            return None
        path = self.path(given)
        if not path.is_file():
            raise InvalidFile(f"there is no file {given!r:.200} in {self.root}")
        return path
