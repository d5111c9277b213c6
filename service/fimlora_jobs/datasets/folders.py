"""What counts as the content of a registered model or dataset, and its digest.

Service and worker call the same functions, so a folder that changed between accepting a
job and running it is noticed. Digests of unchanged files are remembered: hashing the
weights of a large model takes as long as reading them.
"""

import os
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from fimlora_contract.digests import digest_file, digest_of
from fimlora_contract.model_folders import MODEL_SUFFIXES
from fimlora_jobs.datasets.kept_digests import KeptDigests, Stamp, stamp_of
from fimlora_jobs.datasets.media import is_media_file

MOST_MEDIA_FILES = 200_000
DATA_SUFFIXES = frozenset({".csv", ".jsonl", ".parquet"})
# What is fetched of a model on the hub: weights and what transformers needs to read them, all
# at the top of the repository.
WANTED = tuple(f"*{suffix}" for suffix in MODEL_SUFFIXES)
UNWANTED = ("*/*", "adapter_*", "consolidated*")


class FolderError(ValueError):
    """A registered name is not a usable model or dataset; the message says why."""


def is_wanted(path: str) -> bool:
    """Whether a file of a model on the hub is fetched."""
    if any(fnmatch(path, pattern) for pattern in UNWANTED):
        return False
    return any(fnmatch(path, pattern) for pattern in WANTED)


def model_files(folder: Path) -> dict[str, Path]:
    """Files of a model folder by name; subfolders are not part of a model.

    Raises:
        FolderError: There is no such folder, it holds no config.json, or something in it that
            is neither a file nor a folder.
    """
    if not folder.is_dir():
        raise FolderError(f"there is no model folder {folder.name!r}")
    found = sorted(path for path in folder.iterdir() if path.suffix in MODEL_SUFFIXES)
    files = {path.name: path for path in found if not path.is_dir()}
    _check_ordinary(files, where=f"model {folder.name!r}")
    if "config.json" not in files:
        raise FolderError(f"model {folder.name!r} has no config.json")
    return files


def sizes_in(folder: Path) -> dict[str, int]:
    """Bytes of the files of a model folder, by name, whatever else is to be said of them."""
    found = (path for path in folder.iterdir() if path.suffix in MODEL_SUFFIXES)
    return {path.name: path.stat().st_size for path in found if path.is_file()}


def dataset_files(path: Path) -> dict[str, Path]:
    """Data files of a dataset by name: the file itself, or those in a folder.

    Numbers in names count as numbers: ``part-10`` comes after ``part-9``.

    Raises:
        FolderError: There is none, several formats are mixed, or one is no ordinary file.
    """
    # A registered name may be a link to data.jsonl; a loop of links leads to itself.
    target = Path(os.path.realpath(path))
    candidates = target.iterdir() if target.is_dir() else [target]
    suitable = (f for f in candidates if f.suffix in DATA_SUFFIXES and not f.is_dir())
    found = {
        file.name: file for file in sorted(suitable, key=lambda file: by_number(file.name))
    }
    _check_ordinary(found, where=f"dataset {path.name!r}")
    if not found:
        raise FolderError(
            f"dataset {path.name!r} holds no file ending in {sorted(DATA_SUFFIXES)}"
        )
    if len({file.suffix for file in found.values()}) > 1:
        raise FolderError(f"dataset {path.name!r} mixes {sorted(DATA_SUFFIXES)} files")
    return found


def content_files(path: Path) -> dict[str, Path]:
    """All that the rows of a dataset may be made of: its data files, and media beside them.

    Raises:
        FolderError: As `dataset_files` says, or there are too many media.
    """
    return dataset_files(path) | media_files(path)


def folder_beside(path: Path) -> Path | None:
    """The folder in which rows may name files; ``None`` of a dataset that is one file."""
    return path if path.is_dir() else None


def media_files(path: Path) -> dict[str, Path]:
    """Images and sounds in the folder of a dataset and below, by their path in it.

    Raises:
        FolderError: There are too many.
    """
    root = Path(os.path.realpath(path))
    found: dict[str, Path] = {}
    for folder, _, names in os.walk(root) if root.is_dir() else ():
        files = (Path(folder, name) for name in names if is_media_file(name))
        found |= {str(file.relative_to(root)): file for file in files if file.is_file()}
        if len(found) > MOST_MEDIA_FILES:
            raise FolderError(
                f"dataset {path.name!r} holds more than {MOST_MEDIA_FILES} images and sounds; put "
                "them into Parquet files"
            )
    return dict(sorted(found.items()))


def by_number(name: str) -> list[tuple[int, str]]:
    """Sorts names as people number files: 10 after 9."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts]


def _check_ordinary(files: Mapping[str, Path], *, where: str) -> None:
    """A pipe or a device would be waited for, or read without end."""
    for name, file in files.items():
        if not file.is_file():
            raise FolderError(f"{where} holds {name!r}, which is no ordinary file")


class FolderDigests:
    """Digests of folders; files are read again only when something of their state differs.

    Args:
        kept: Digests that outlast this process; ``None`` to remember for its time alone.
    """

    def __init__(self, kept: KeptDigests | None = None) -> None:
        self._known: dict[Path, tuple[Stamp, str]] = {}
        self._kept = kept

    def of_files(self, files: Mapping[str, Path]) -> str:
        """One digest for all files under their names."""
        return digest_of({name: self._of_file(path) for name, path in files.items()})

    def of_model(self, folder: Path) -> str:
        """Digest of a model folder."""
        return self.of_files(model_files(folder))

    def _of_file(self, path: Path) -> str:
        path = Path(os.path.realpath(path))
        stamp = stamp_of(path.stat())
        known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        digest = self._kept.find(path, stamp) if self._kept else None
        if digest is None:
            digest = digest_file(path)
            if stamp_of(path.stat()) != stamp:  # of what it was or of what it is: nobody knows
                return digest
            if self._kept:
                self._kept.keep(path, stamp, digest)
        self._known[path] = stamp, digest
        return digest
