"""The two files of an adapter out of an uncompressed tar, without trust in what it says.

Read by hand: ``tarfile`` takes extended headers of any size into memory, and knows sparse
files, of which a few bytes stand for many. Here nothing is unpacked but two plain files,
found by their last name, and nothing is larger than the archive itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fimlora_service.errors import AdapterInvalid
from fimlora_service.resolve.adapter_limits import MAX_CONFIG_BYTES

CONFIG, WEIGHTS, PICKLED = (
    "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin",
)  # fmt: skip
MAX_MEMBERS = 100
_BLOCK = 512
_PLAIN, _FOLDER = (b"0", b"\0"), b"5"
_OF_THE_NEXT = (b"x", b"g", b"L", b"K")  # longer names, times: nothing that is needed here
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive.

    Attributes:
        name: The last part of its name.
        kind: Its type flag.
        start: Its first byte in the archive.
        size: Its bytes.
    """

    name: str
    kind: bytes
    start: int
    size: int


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of the adapter into a folder.

    Raises:
        AdapterInvalid: The archive is none, is cut off, or lacks one of them.
    """
    with archive.open("rb") as file:
        found: dict[str, Member] = {}
        for member in _members(file, archive.stat().st_size):
            if member.name not in (CONFIG, WEIGHTS, PICKLED):
                continue
            if member.name in found:
                raise AdapterInvalid(f"the archive has {member.name} twice; send one adapter")
            if member.kind not in _PLAIN:
                raise AdapterInvalid(f"{member.name} is a link or no plain file; send the file")
            found[member.name] = member
        _check(found)
        for name in (CONFIG, WEIGHTS):
            _copy(file, found[name], folder / name)


def _check(found: dict[str, Member]) -> None:
    """See that both files are there.

    Raises:
        AdapterInvalid: One is missing, or too large.
    """
    if PICKLED in found and WEIGHTS not in found:
        raise AdapterInvalid(
            f"{PICKLED} is a pickle, which runs code when it is read, and is never opened; load "
            f"the adapter with PEFT and save_pretrained it: that writes {WEIGHTS}"
        )
    for name in (CONFIG, WEIGHTS):
        if name not in found:
            raise AdapterInvalid(f"the archive has no {name}; send both files of the adapter")
    if found[CONFIG].size > MAX_CONFIG_BYTES:
        raise AdapterInvalid(f"{CONFIG} is over the limit of {MAX_CONFIG_BYTES} bytes")


def _members(file: BinaryIO, size: int) -> Iterator[Member]:
    """Every member, each within the archive.

    Raises:
        AdapterInvalid: It is no archive, is cut off, or has too many.
    """
    place = 0
    for _ in range(MAX_MEMBERS):
        file.seek(place)
        block = file.read(_BLOCK)
        if not block.strip(b"\0") and (block or place):
            return  # the end is marked by blocks of zeros; some leave them out
        member = _read(block, place + _BLOCK)
        if member.start + member.size > size:
            raise AdapterInvalid(f"the archive ends within {member.name!r:.80}")
        yield member
        place = member.start + -(-member.size // _BLOCK) * _BLOCK
    raise AdapterInvalid(f"the archive has over {MAX_MEMBERS} members; send one adapter")


def _read(block: bytes, start: int) -> Member:
    """What a header says.

    Raises:
        AdapterInvalid: It is none.
    """
    kind = block[156:157]
    try:
        checksum, size = (
            int(block[a:b].strip(b" \0") or b"0", 8) for a, b in ((148, 156), (124, 136))
        )
    except ValueError:
        checksum, size = -1, 0
    if (
        len(block) < _BLOCK
        or sum(block) - sum(block[148:156]) + 8 * ord(" ") != checksum
        or size < 0
    ):
        raise AdapterInvalid(
            "the body is no uncompressed tar archive; make one with  tar -cf adapter.tar -C DIR "
            f"{CONFIG} {WEIGHTS}"
        )
    name = block[:100].partition(b"\0")[0].decode("utf-8", "replace").rstrip("/")
    if kind in _OF_THE_NEXT:
        name = ""
    elif kind not in (*_PLAIN, _FOLDER):
        size = 0 if kind in b"123456" else size
    return Member(name.rpartition("/")[2], kind, start, size)


def _copy(file: BinaryIO, member: Member, path: Path) -> None:
    file.seek(member.start)
    left = member.size
    with path.open("xb") as out:
        while left and (piece := file.read(min(left, _CHUNK))):
            out.write(piece)
            left -= len(piece)
