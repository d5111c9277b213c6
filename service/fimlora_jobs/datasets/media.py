"""Images and sounds as rows carry them: bytes, a data URL, or a file beside the rows.

They are known here by their first bytes; who decodes them is the worker. Nothing is ever fetched:
an address on the network is refused, and so is a path that leads out of the folder of the rows.
"""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

Kind = Literal["image", "audio"]
Value = tuple[Kind, Any]
MIB = 1 << 20
# Bytes of one, and how many a row may have.
MOST_BYTES: Mapping[Kind, int] = {"image": 16 * MIB, "audio": 64 * MIB}
MOST_OF_A_ROW: Mapping[Kind, int] = {"image": 32, "audio": 8}
SUFFIXES: Mapping[Kind, frozenset[str]] = {
    "image": frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif"}),
    "audio": frozenset({".wav"}),
}
FORMATS: Mapping[Kind, str] = {"image": "PNG, JPEG, WEBP or GIF", "audio": "WAV"}
ALLOWED = (
    "allowed are bytes as `datasets` writes them ({bytes, path} in Parquet), a data URL "
    "(data:image/png;base64,...), or the path of a file inside the folder of a registered dataset"
)
DATA_URL = re.compile(r"data:(?:[a-z]+/[a-zA-Z0-9.+-]+)?;base64,", re.ASCII)
ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:", re.ASCII)
HEAD_BYTES, MOST_PATH, MOST_SHOWN = 24, 1_024, 60


class MediaError(ValueError):
    """It is no image or sound that is read; the message goes on after the name of what holds it."""


def check_media(value: Any, kind: Kind, *, beside: Path | None) -> None:
    """Refuse what cannot be an image or a sound, as its first bytes tell.

    Args:
        value: What a row holds.
        kind: What it is to be.
        beside: Folder of the rows, if files in it may be named.

    Raises:
        MediaError: Says what is wrong and what is allowed.
    """
    match _find(value, kind, beside):
        case bytes() as content:
            head = content[:HEAD_BYTES]
        case str() as encoded:
            head = _decode(encoded[: HEAD_BYTES // 3 * 4], kind)
        case path:
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
    if not _is(kind, head):
        raise MediaError(f"holds an {kind} of another format; allowed are {FORMATS[kind]}")


def read_media(value: Any, kind: Kind, *, beside: Path | None) -> bytes:
    """All bytes of an image or a sound.

    Args:
        value: What a row holds.
        kind: What it is.
        beside: Folder of the rows, if files in it may be named.

    Raises:
        MediaError: Says what is wrong and what is allowed.
    """
    check_media(value, kind, beside=beside)
    match _find(value, kind, beside):
        case bytes() as content:
            return content
        case str() as encoded:
            return _decode(encoded, kind)
        case path:
            return path.read_bytes()


def values_of(value: Any) -> list[Any]:
    """The images or sounds of a cell: a list of them, one, or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def is_media_file(name: str) -> bool:
    """Whether a file is one that rows may name."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES["image"] | SUFFIXES["audio"]


def _find(value: Any, kind: Kind, beside: Path | None) -> bytes | str | Path:
    """The bytes, base64 text of them, or the file that has them."""
    if isinstance(value, Mapping):
        content = value.get("bytes")
        if content is None:
            value = value.get("path") or value.get("url")
        elif not isinstance(content, bytes):
            raise MediaError(f"has {_shown(content)} as the bytes of an {kind}; {ALLOWED}")
        else:
            value = content
    if isinstance(value, bytes):
        _check_size(len(value), kind)
        return value
    if not isinstance(value, str) or not value:
        raise MediaError(f"holds {_shown(value)} where an {kind} is to be; {ALLOWED}")
    if found := DATA_URL.match(value):
        _check_size((len(value) - found.end()) // 4 * 3, kind)
        return value[found.end() :]
    if ADDRESS.match(value) or value.startswith("//"):
        raise MediaError(f"names {_shown(value)}: nothing is fetched for a row; {ALLOWED}")
    return _file(value, kind, beside)


def _file(name: str, kind: Kind, beside: Path | None) -> Path:
    if beside is None:
        raise MediaError(
            f"names the file {_shown(name)}, and no files lie beside these rows; {ALLOWED}"
        )
    path = PurePosixPath(name)
    is_odd = len(name) > MOST_PATH or "\\" in name or not name.isprintable()
    if is_odd or path.is_absolute() or ".." in path.parts:
        raise MediaError(
            f"names the file {_shown(name)}; a path is relative to the folder of the rows, and "
            "stays inside it"
        )
    if path.suffix.lower() not in SUFFIXES[kind]:
        raise MediaError(
            f"names the file {_shown(name)}; names of files with an {kind} end in "
            f"{', '.join(sorted(SUFFIXES[kind]))}"
        )
    root = Path(os.path.realpath(beside))
    try:
        target = (root / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise MediaError(f"names the file {_shown(name)}, which is not there") from error
    if not target.is_relative_to(root) or not target.is_file():
        raise MediaError(f"names the file {_shown(name)}, which is no file inside the folder")
    # No linked folder is walked for the digest: what lies behind one would not be covered.
    if any((root / parent).is_symlink() for parent in path.parents):
        raise MediaError(
            f"names the file {_shown(name)}, which leads through a link; name the file where it lies"
        )
    _check_size(target.stat().st_size, kind)
    return target


def _check_size(n_bytes: int, kind: Kind) -> None:
    if n_bytes > MOST_BYTES[kind]:
        raise MediaError(f"holds an {kind} of {n_bytes} bytes; one may have {MOST_BYTES[kind]}")


def _decode(encoded: str, kind: Kind) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"holds an {kind} that is not sound base64") from error


def _is(kind: Kind, head: bytes) -> bool:
    if kind == "audio":
        return head[:4] in {b"RIFF", b"RIFX"} and head[8:12] == b"WAVE"
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return is_webp or head.startswith(
        (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
    )


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"{type(value).__name__} {str(value)[:MOST_SHOWN]!r}"
