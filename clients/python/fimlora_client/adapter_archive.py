"""The two files of a trained adapter as one body: an uncompressed tar archive."""

import io
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fimlora_client.errors import InvalidFile

FILES = ("adapter_config.json", "adapter_model.safetensors")


@contextmanager
def packed(folder: str | Path) -> Iterator[tuple[dict[str, str], Path]]:
    """Headers and body of an upload; the body is a file that is gone afterwards.

    Raises:
        InvalidFile: The folder lacks a file of an adapter, or one cannot be read.
    """
    folder = Path(folder)
    with tempfile.TemporaryDirectory(prefix="fimlora-") as work:
        archive = Path(work) / "adapter.tar"
        _pack(folder, archive)
        size = str(archive.stat().st_size)
        yield {"content-type": "application/x-tar", "content-length": size}, archive


def _pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in FILES:
            try:
                with (folder / name).open("rb") as file:
                    member = tarfile.TarInfo(name)
                    member.size = file.seek(0, io.SEEK_END)
                    file.seek(0)
                    tar.addfile(member, file)
            except OSError as error:
                failure = InvalidFile(f"cannot read {folder / name}: {error.strerror}")
                failure.next_step = (
                    f"An adapter is a folder with {' and '.join(FILES)}, as PEFT's "
                    "save_pretrained writes it."
                )
                raise failure from error
