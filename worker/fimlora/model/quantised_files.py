"""Whether a checkpoint's quantised weights can be read: by its configuration, files and headers.

What is packed is measured as the numbers that it stands for, which need no kernels. Ways of
packing that are not read are refused by name; the ranks of the unquantised base hold for them.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fimlora.model.packed_parts import (
    WAY_OUT,
    ReadBytes,
    Stored,
    UnreadablePacking,
    looks_packed,
    method_of,
    quantisation_of,
    unpacked_view,
)
from fimlora.model.safetensors_header import TensorEntry, read_header

OTHER_KEYS = ("compression_config", "quantization")
# What tools for GPTQ, AWQ and ModelOpt write beside a config.json.
FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
}


def check_quantised(config: Mapping[str, Any], *, names: Collection[str] = ()) -> None:
    """Refuse a quantised checkpoint of a kind that is not read.

    Args:
        config: Its ``config.json``.
        names: Names of its files.

    Raises:
        UnreadablePacking: Says by what it is known.
    """
    is_told = quantisation_of(config) is not None
    for part in _parts_of(config):
        keys = OTHER_KEYS if part is config else ("quantization_config", *OTHER_KEYS)
        for key in keys:
            # A configuration states itself inside what it says of its quantisation.
            if (found := part.get(key)) and not is_told:
                raise UnreadablePacking(
                    f"its weights are quantised ({method_of(found)}, by {key} in config.json), and "
                    f"only what quantization_config at its top says is read: {WAY_OUT}"
                )
    for file, tool in FILES.items():
        if file in names and not is_told:
            raise UnreadablePacking(
                f"its weights are quantised ({tool}, by {file}), and config.json has no "
                f"quantization_config that says how: add it, or {WAY_OUT}"
            )


def logical_shapes(
    config: Mapping[str, Any], entries: Mapping[str, Stored], read: ReadBytes | None
) -> dict[str, tuple[int, ...]]:
    """Shape of each weight that the tensors of a checkpoint are, or stand for.

    Args:
        config: Its ``config.json``, which `check_quantised` has let pass.
        entries: Dtype and shape of its tensors, as safetensors headers have it.
        read: Reads the bytes of a small tensor; ``None`` where none can be had.

    Returns:
        Shapes by name. Where nothing can be read, the sides of a 4 bit weight of bitsandbytes may
        come in the other order.

    Raises:
        UnreadablePacking: A weight is packed in a way that is not read.
    """
    quantisation = quantisation_of(config)
    if quantisation is None:
        for name, (dtype, _) in entries.items():
            if looks_packed(name, dtype):
                raise UnreadablePacking(
                    f"its weights are quantised ({name} is stored as {dtype}), and config.json has "
                    f"no quantization_config that says how: add it, or {WAY_OUT}"
                )
        return {name: shape for name, (_, shape) in entries.items()}
    view = unpacked_view(entries, quantisation, read)
    plain = {name: entries[name][1] for name in entries if name in view.plain}
    return plain | {name: weight.shape for name, weight in view.packed.items()}


def tensor_reader(folder: Path) -> ReadBytes:
    """Get ready to read small tensors of a folder, whose files are known to be sound.

    Args:
        folder: The folder.

    Returns:
        Reads the bytes of a tensor by its name; heads are read when the first one is.
    """

    @cache
    def places() -> dict[str, tuple[Path, TensorEntry]]:
        found: dict[str, tuple[Path, TensorEntry]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb") as opened:
                found |= {n: (file, entry) for n, entry in read_header(opened).tensors.items()}
        return found

    def read(name: str) -> bytes:
        file, entry = places()[name]
        with file.open("rb") as opened:
            opened.seek(entry.start)
            return opened.read(entry.stop - entry.start)

    return read


def is_guessed(config: Mapping[str, Any]) -> bool:
    """Tell whether shapes of weights are known for certain only to whoever reads tensors.

    Args:
        config: The content of a ``config.json``.

    Returns:
        Whether it may have 4 bit weights of bitsandbytes.
    """
    quantisation = quantisation_of(config)
    return quantisation is not None and quantisation["quant_method"] == "bitsandbytes"


def _parts_of(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A configuration and every object inside it, outer ones first."""
    waiting = [config]
    while waiting:
        part = waiting.pop(0)
        yield part
        waiting.extend(value for value in part.values() if isinstance(value, Mapping))
