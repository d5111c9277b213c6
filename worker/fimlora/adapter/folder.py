"""An adapter's folder appears whole or not at all, and never in place of anything else.

Nothing here imports torch.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fimlora.errors import InvalidOption

ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "rank_map.json",
    "rank_map.svg",
)


def check_destination(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write over anything that is not an adapter to be replaced.

    Args:
        folder: Where an adapter is to be.
        overwrite: Whether one that is there may be replaced.

    Raises:
        InvalidOption: Something is in the way.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InvalidOption(f"{folder} is a file; give the folder to create")
    present = {path.name for path in folder.iterdir()}
    if strange := sorted(present - set(ADAPTER_FILES)):
        raise InvalidOption(f"{folder} holds other files ({strange[0]}, ...); not touched")
    if present and not overwrite:
        raise InvalidOption(f"{folder} holds an adapter already; pass overwrite=True")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder beside the destination, then rename it into place.

    Args:
        folder: The destination, as `check_destination` has found it; its parents are created.

    Yields:
        The folder to fill. If the block raises, nothing is changed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        fresh, old = workshop / "fresh", workshop / "old"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            folder.rename(old)
        try:
            fresh.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(workshop)
