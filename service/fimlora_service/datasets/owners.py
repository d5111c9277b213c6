"""Whose uploads are: an id stands for the content and its owner, so that no two tenants share one."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

META = "meta.json"


def owned_hex(content_hex: str, owner: str) -> str:
    """What an id is made of; of the content alone for what is the operator's."""
    if not owner:
        return content_hex
    return hashlib.sha256(f"{owner} {content_hex}".encode()).hexdigest()


def owner_of(folder: Path) -> str:
    """Whose an upload is; empty for the operator's, and for what is not there."""
    try:
        return str(json.loads((folder / META).read_bytes()).get("owner") or "")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def stored_bytes(uploads: Path, owner: str) -> int:
    """How much somebody has uploaded, or had made of uploads."""
    return sum(map(_size, _folders(uploads, owner)))


def _folders(uploads: Path, owner: str) -> Iterator[Path]:
    return (folder for folder in uploads.iterdir() if owner_of(folder) == owner)


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except FileNotFoundError:
        return 0  # deleted while we look
