"""Whether the numbers of a processor's files can be those of one, before any of them is allocated.

A processor resizes to what its files say, and writes as many tokens as they say: a size of 10^9
would take the worker's time and memory before anything could tell. Videos are not read, and what
is said of them is not looked at.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fimlora_jobs.models.config_parts import MAX_DEPTH, depth_of
from fimlora_worker.errors import UnsupportedArchitecture

FILES = ("processor_config.json", "preprocessor_config.json")
VIDEOS = "video"
MOST_BYTES = 4 << 20
# Least and most of whole numbers, well beyond those of any released model. A shortest or longest
# edge is a number of pixels to a side, or of pixels in all where a family says both.
SIDE, EDGE, AREA = (1, 4_096), (1, 8_192), (1, 1 << 25)
BOUNDS: Mapping[str, tuple[int, int]] = {
    "height": SIDE, "width": SIDE, "max_height": SIDE, "max_width": SIDE,
    "shortest_edge": EDGE, "longest_edge": EDGE, "min_pixels": AREA, "max_pixels": AREA,
    "patch_size": (2, 1_024), "merge_size": (1, 64), "temporal_patch_size": (1, 64),
    "spatial_merge_size": (1, 64), "downsample_factor": (1, 64), "scale_factor": (1, 64),
    "image_seq_length": (1, 65_536), "image_seq_len": (1, 65_536), "num_image_tokens": (1, 65_536),
    "num_additional_image_tokens": (0, 64), "max_image_tiles": (1, 256), "max_patches": (1, 256),
    "min_patches": (1, 256), "max_soft_tokens": (1, 65_536), "size_divisor": (1, 1_024),
    "audio_seq_length": (1, 65_536), "sampling_rate": (1_000, 384_000), "chunk_length": (1, 600),
    "feature_size": (1, 1_024), "n_fft": (16, 16_384), "hop_length": (16, 16_384),
    "fft_length": (16, 16_384), "frame_length": (16, 16_384),
}  # fmt: skip
LARGEST = 1 << 31  # of any other number: what libraries hold in 32 bits
UNLIMITED = frozenset({"max_length", "model_max_length"})  # of text, which is cut by ourselves
MOST_ENTRIES = 100_000  # of all lists together, and of all objects


def check_processor_files(folder: Path) -> None:
    """Refuse a processor by what its files say.

    Args:
        folder: Of a model.

    Raises:
        UnsupportedArchitecture: Names the file, the field, what it says and what is allowed.
    """
    for name in FILES:
        if (folder / name).is_file():
            _check_content(_read(folder / name), name)


def _read(path: Path) -> Mapping[str, Any]:
    if path.stat().st_size > MOST_BYTES:
        raise UnsupportedArchitecture(
            f"the model's {path.name} has {path.stat().st_size} bytes; it may have {MOST_BYTES}"
        )
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnsupportedArchitecture(
            f"the model's {path.name} is no JSON that is read"
        ) from error
    if not isinstance(content, dict):
        raise UnsupportedArchitecture(f"the model's {path.name} is no JSON object")
    return content


def _check_content(content: Mapping[str, Any], name: str) -> None:
    if depth_of(content) > MAX_DEPTH:
        raise UnsupportedArchitecture(
            f"the model's {name} is nested over {MAX_DEPTH} levels deep"
        )
    for number, (path, key, value, beside) in enumerate(_fields(content)):
        if number > MOST_ENTRIES:
            raise UnsupportedArchitecture(
                f"the model's {name} has more than {MOST_ENTRIES} entries"
            )
        said = _fault(key, value, beside)
        if said:
            raise UnsupportedArchitecture(
                f"the model's {name} has {path}={_shown(value)}; allowed is {said}"
            )


def _fault(key: str, value: Any, beside: Mapping[str, Any]) -> str | None:
    """What is allowed where something else is said."""
    if key in BOUNDS and not isinstance(value, Mapping | list):
        low, high = _bounds(key, beside)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (is_whole and low <= value <= high):
            return f"a whole number from {low} to {high}"
    is_number = isinstance(value, int | float) and key not in UNLIMITED
    if is_number and not abs(value) <= LARGEST:  # nor is what is no number
        return f"a number up to {LARGEST}"
    return None


def _bounds(key: str, beside: Mapping[str, Any]) -> tuple[int, int]:
    is_area = key in {"shortest_edge", "longest_edge"} and {
        "shortest_edge",
        "longest_edge",
    } <= {name for name, value in beside.items() if value is not None}
    return AREA if is_area else BOUNDS[key]


def _fields(
    content: Mapping[str, Any],
) -> Iterator[tuple[str, str, Any, Mapping[str, Any]]]:
    """Every value at any depth: its path, the name it has, itself and the object around it."""
    waiting: list[tuple[str, str, Any, Mapping[str, Any]]] = [("", "", content, {})]
    while waiting:
        path, key, value, beside = waiting.pop()
        yield path, key, value, beside
        before = f"{path}." if path else ""
        if isinstance(value, Mapping):
            waiting += [
                (f"{before}{name}", name, inner, value)
                for name, inner in value.items()
                if VIDEOS not in name
            ]
        elif isinstance(value, list):  # an entry goes by the name of its list
            waiting += [(path, key, inner, {}) for inner in value]


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 200:  # longer, it may not be written
        return f"a number of {value.bit_length()} bits"
    return repr(value)[:60]
