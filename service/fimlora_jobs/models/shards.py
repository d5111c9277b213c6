"""Whether a checkpoint is kept as transformers looks for it: in one file, or in listed shards."""

import json
from collections.abc import Collection
from pathlib import Path

from fimlora_jobs.json_values import check_values
from fimlora_jobs.models.refusal import ModelRefused

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20
MAX_VALUES = 4_000_000
MOST_SHARDS = 2_000


def check_shard_names(names: Collection[str]) -> None:
    """Refuse weights under names that nothing looks for.

    Args:
        names: Names of the model's files.

    Raises:
        ModelRefused: Neither is there.
    """
    if SINGLE not in names and INDEX not in names:
        raise ModelRefused(f"its weights must be {SINGLE}, or shards that {INDEX} lists")


def check_number_of_shards(names: Collection[str]) -> None:
    """Refuse more files of weights than any model has: the head of each is read.

    Raises:
        ModelRefused: Names how many there are, and how many are read.
    """
    if len(names) > MOST_SHARDS:
        raise ModelRefused(
            f"it has {len(names):,} files of weights; at most {MOST_SHARDS:,} are read"
        )


def check_shards(folder: Path) -> None:
    """Refuse an index that cannot be read, or that lists shards that are not there.

    Raises:
        ModelRefused: Says which.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file() or not index.is_file():
        return
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError("too large")
        data = index.read_bytes()
        check_values(data, most=MAX_VALUES)
        shards = set(json.loads(data)["weight_map"].values())
        missing = sorted(n for n in shards if Path(n).name != n or not (folder / n).is_file())
    except PermissionError:
        raise
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ModelRefused(f"its {INDEX} is no list of shards") from error
    if missing:
        raise ModelRefused(f"its {INDEX} lists {missing[0]!r}, which is not there")
