"""The batches of a job shared between workers: in how many shards, and what is known of each.

A shard's sums lie in a file of the job's folder, and its claim and the file's name in Redis, so
that a worker that is lost costs one shard, and that one goes on from its own saved sums.
"""

import logging
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fimlora import __version__ as engine_version
from fimlora.adapter.initial.registry import init_records
from fimlora.errors import InvalidOption, InvalidProgress
from fimlora.measuring.head.fitted import FittedHead
from fimlora.measuring.resume.merge import Shard, ShardSums
from fimlora.measuring.resume.tensor_file import read_tensors, write_tensors
from fimlora.memory.need import SPECTRA_BYTES, WHOLE_RECORDS
from fimlora.memory.out_of_memory import format_bytes
from fimlora.methods.registry import passes_needed, records_needed
from fimlora.statistics.options import Passes
from fimlora_contract.calibrations import MOST_SHARDS
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.runs import Runs
from fimlora_jobs.workers import WorkerRegistry
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.job.worker_process import WorkerProcess

log = logging.getLogger(__name__)
HEAD = "shards.head"
# By which rows become tokens, and tokens sums: those of other versions may be other ones.
_PACKAGES = ("torch", "transformers", "tokenizers")


def n_shards_of(
    request: CalibrationRequest,
    model: BaseModel,
    n_batches: int,
    process: WorkerProcess,
    *,
    whole_bytes: int = SPECTRA_BYTES,
) -> int:
    """Say in how many parts a job's batches are measured.

    Args:
        request: The request.
        model: Its base model.
        n_batches: Batches that there are, which may be fewer than were asked for.
        process: Knows the workers.
        whole_bytes: Arrays as large as the weights may take so much in a shard.

    Returns:
        The number.

    Raises:
        InvalidOption: A number was given, and each shard would hold too much.
    """
    wanted, is_read = request.calibration.shards, passes_needed(*request.methods_measured)
    if wanted == 1 or is_read is Passes.NONE or request.why_not_in_shards is not None:
        return 1
    if too_large := _too_large(request, model, whole_bytes):
        if wanted == "auto":
            return 1
        raise InvalidOption(f"calibration.shards={wanted}: {too_large}; leave shards out")
    if wanted == "auto":
        return min(MOST_SHARDS, 1 + n_others(model.device.type, process), n_batches)
    return min(wanted, n_batches)


def _too_large(request: CalibrationRequest, model: BaseModel, whole_bytes: int) -> str | None:
    """Say what of a large model no shard may hold whole, where one run takes block after block."""
    records = records_needed(*request.methods_measured) | init_records(request.adapter.initial)
    whole = sorted(records & WHOLE_RECORDS)
    if not whole:
        return None
    n_bytes = 4 * sum(parameter.numel() for parameter in model.outline().parameters())
    if n_bytes <= whole_bytes:
        return None
    return (
        f"{whole[0].value!r} is summed in an array as large as each weight, {format_bytes(n_bytes)} "
        f"for all of this model, and a shard may hold {format_bytes(whole_bytes)} of them"
    )


def n_others(device: str, process: WorkerProcess) -> int:
    """How many other workers there are on this kind of device."""
    living = WorkerRegistry(process.store).living()
    return max(0, sum(worker.device == device for worker in living) - 1)


@cache
def versions() -> str:
    """By what this worker measures."""
    return f"fimlora {engine_version} {' '.join(map(_version_of, _PACKAGES))}"


def _version_of(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} none"


def on_of(model: BaseModel) -> str:
    """On what shards are measured: elsewhere, or by other versions, they come to other sums."""
    return f"{model.request.device} {model.request.dtype} {versions()}"


def is_measured_here(on: str, *, device: str) -> bool:
    """Whether a worker on such a device could come to the sums that are wanted; cheap to ask.

    Args:
        on: What `on_of` says of them.
        device: The worker's.
    """
    return on.startswith(f"{device} ") and on.endswith(f" {versions()}")


@dataclass(frozen=True, slots=True)
class Shards:
    """What is known of a job's shards, by whoever leads and by every hand.

    Attributes:
        runs: Who is at them, and which are finished.
        folder: The job's own; every worker that helps sees it.
        all: The shards.
        head: What they are measured under, where that was fitted.
    """

    runs: Runs
    folder: Path
    all: tuple[Shard, ...]
    head: FittedHead | None = None

    @classmethod
    def of(cls, runs: Runs, folder: Path, *, on: str) -> "Shards | None":
        """Find what is on record.

        Returns:
            It; ``None`` where nobody leads on such a device, or its folder is not this one.
        """
        known = runs.prepared()
        if known is None or runs.prepared_on() != on or not (folder / HEAD).exists():
            return None
        try:
            weights, facts = read_tensors(folder / HEAD)
        except (OSError, ValueError) as error:
            log.warning("shards.head_unreadable", extra={"error": str(error)})
            return None
        head = None if facts["head"] is None else FittedHead(weights, facts["head"])
        found = tuple(Shard(*each) for each in known["shards"])
        return cls(replace(runs, on=on), folder, found, head)

    def publish(self, *, on: str) -> None:
        """Put on record what every worker needs to measure any shard."""
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = None if self.head is None else dict(self.head.facts)
        write_tensors(
            self.folder / HEAD, self.head.weights if self.head else {}, {"head": facts}
        )
        self.runs.prepare({"shards": [[each.start, each.stop] for each in self.all]}, on=on)

    def lacking(self) -> list[str]:
        """Shards that nobody has finished, by their names."""
        done = self.runs.results()
        return [name for name in self.by_name if name not in done]

    @property
    def by_name(self) -> dict[str, Shard]:
        """Shards by what they are called in Redis."""
        return {f"{each.start}-{each.stop}": each for each in self.all}

    def keep(self, name: str, sums: ShardSums, *, holder: str) -> None:
        """Keep what a shard came to; the first one counts, and equal ones may follow."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"shard.{name}.{holder}"
        sums.save(path)
        is_new = self.runs.keep(name, {"file": path.name})
        if not is_new:  # somebody was taken for dead, and was not
            path.unlink(missing_ok=True)
        log.info(
            "shard.kept",
            extra={"job_id": self.runs.job_id, "shard": name, "is_new": is_new},
        )

    def load(self) -> list[ShardSums] | None:
        """Find what all came to, and leave it in its files.

        Returns:
            It; ``None`` where one is gone, which is anybody's again then.
        """
        found = []
        results = self.runs.results()
        for name in self.by_name:
            try:
                file = str(results[name]["file"])
                found.append(ShardSums.load(self.folder / Path(file).name))
            except (InvalidProgress, KeyError) as error:
                log.warning("shard.gone", extra={"shard": name, "error": str(error)})
                self.runs.discard(name)
        return found if len(found) == len(self.all) else None

    def forget(self) -> None:
        """Forget what all came to."""
        for name in self.by_name:
            self.runs.discard(name)
