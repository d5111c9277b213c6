"""Put the files of a result into a folder, all of them or none.

Every file lands in a temporary folder beside the target first and is compared with its
digest; only when all are sound do they move.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fimlora_client.endpoints import job_artifact
from fimlora_client.errors import DigestMismatch, InvalidFile
from fimlora_client.flows import Context, Flow, save, save_to
from fimlora_contract.digests import digest_file
from fimlora_contract.jobs import Artifact


def download(
    job_id: str, artifacts: Sequence[Artifact], folder: str | Path, context: Context
) -> Flow[dict[str, Path]]:
    """Fetch artefacts into a folder, which is made if it does not exist.

    Raises:
        DigestMismatch: A file is not what the service said; nothing was written.
        InvalidFile: The service names a file that would land outside the folder.
    """
    names = [_checked_name(artifact.name) for artifact in artifacts]
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for artifact in artifacts:
            part = staging / artifact.name
            yield from save(save_to(job_artifact(job_id, artifact.name), part), context)
            _check(artifact, part)
        folder.mkdir(exist_ok=True)
        return {name: (staging / name).replace(folder / name) for name in names}
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check(artifact: Artifact, path: Path) -> None:
    digest = digest_file(path)
    if digest != artifact.digest:
        raise DigestMismatch(
            f"{artifact.name} has digest {digest}, the job says {artifact.digest}"
        )


def _checked_name(name: str) -> str:
    if not name or name != Path(name).name or name.startswith("."):
        raise InvalidFile(f"the service names a file {name!r}, which is not a plain file name")
    return name
