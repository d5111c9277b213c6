"""A trained adapter from its folder: what LoRA adds to each module, and what else is stored.

Layouts B and C and the uniform adapters of stock PEFT are read alike, as PEFT would apply them;
what PEFT would leave aside, or apply in another way than it was trained, is refused by name.
Matrices are read one module at a time. Nothing here imports torch.

Symbols: A (r I) and B (O r) are the matrices of a module with I input and O output features;
its update of the weight is ``s * B @ A``.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fimlora.adapter.config import WRAPPER_PREFIX
from fimlora.adapter.read import check_pattern_keys
from fimlora.adapter.trained.lora_config import LoraConfig, check_lora_config
from fimlora.adapter.trained.tensors import (
    FLOAT_TYPES,
    ITEMSIZES,
    Floats,
    read_entries,
    read_floats,
)
from fimlora.errors import InvalidAdapter
from fimlora.model.safetensors_header import TensorEntry
from fimlora.plan import TargetModule

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
# Endings of the names of A and B: of linear maps, and of embeddings.
_ENDINGS = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))
FACTORS = {
    ending: (i, endings) for endings in _ENDINGS for i, ending in enumerate(endings)
}  # fmt: skip
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, slots=True)
class Limits:
    """How large an adapter may be.

    Attributes:
        config_bytes: Of ``adapter_config.json``.
        header_bytes: Of what the file of weights says of its tensors.
        tensors: How many there may be.
        name_chars: Of the name of a tensor.
        elements: Numbers of a matrix, which is read as a whole.
        rank: Of a module.
        work: The sum of ``(I + O) r^2`` over all modules, in proportion to which decomposing
            them takes time.
    """

    config_bytes: int = 16 << 20
    header_bytes: int = 64 << 20
    tensors: int = 200_000
    name_chars: int = 1_000
    elements: int = 1 << 31
    rank: int = 1 << 14
    work: int = 1 << 60


@dataclass(frozen=True, slots=True)
class TrainedModule:
    """What an adapter adds to one module.

    Attributes:
        target: The module.
        rank: Its rank, zeros of layout C included.
        scale: The effective scale ``s``.
        factors: A and B, each by its name in the file.
    """

    target: TargetModule
    rank: int
    scale: float
    factors: tuple[tuple[str, TensorEntry], tuple[str, TensorEntry]]


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """An adapter in a folder.

    Attributes:
        folder: The folder.
        config: Its config.
        modules: What it adds to each module, in the order of their names.
        carried: What else is stored, such as a head that was trained in full, by name.
        n_bytes: Of its file of weights.
    """

    folder: Path
    config: LoraConfig
    modules: Mapping[str, TrainedModule]
    carried: Mapping[str, TensorEntry]
    n_bytes: int

    @property
    def weights(self) -> Path:
        """The file of weights."""
        return self.folder / WEIGHTS

    @property
    def parameters(self) -> int:
        """Parameters of all A and B."""
        return sum(m.rank * m.target.cost for m in self.modules.values())

    def matrices(self, name: str) -> tuple[Floats, Floats]:
        """Read A and B of a module.

        Args:
            name: The module.

        Returns:
            A (r I) and B (O r) in float64.
        """
        (a, entry_a), (b, entry_b) = self.modules[name].factors
        return read_floats(self.weights, a, entry_a), read_floats(self.weights, b, entry_b)


def read_trained(folder: str | Path, *, limits: Limits = Limits()) -> TrainedAdapter:
    """Read what an adapter's folder says, and see that PEFT would apply all of it.

    Args:
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        limits: How large it may be.

    Returns:
        The adapter; its matrices are read when they are asked for.

    Raises:
        InvalidAdapter: It is not plain LoRA, or files and config do not fit each other; the
            message names the field, the tensor or the module.
    """
    folder = Path(folder)
    config = check_lora_config(read_fields(folder, limits=limits))
    entries = read_weights(folder, limits=limits)
    pairs, carried = _sort_tensors(entries, config)
    modules = _modules(pairs, config, limits)
    if odd := config.unmatched([*modules]):
        raise InvalidAdapter(
            f"target_modules does not mean {odd[0]}, of which {WEIGHTS} has tensors "
            f"({len(odd)} such modules), so PEFT would leave them aside; add it"
        )
    if (work := sum(m.target.cost * m.rank**2 for m in modules.values())) > limits.work:
        raise InvalidAdapter(
            f"the sum of (d_in + d_out) r^2 over its modules is {work:.2g}, over the limit of "
            f"{limits.work:.2g}: decomposing it would take too long here; do it on your own machine"
        )
    size = (folder / WEIGHTS).stat().st_size
    return TrainedAdapter(folder, config, modules, carried, size)


def read_fields(folder: Path, *, limits: Limits) -> dict[str, Any]:
    """Read the config of an adapter of any kind.

    Args:
        folder: The adapter's folder.
        limits: How large it may be.

    Returns:
        Its content, with pattern keys that PEFT can match.

    Raises:
        InvalidAdapter: There is none, or it cannot be read.
    """  # noqa: DOC502 - the helpers raise
    fields = read_json(folder, limits=limits)
    check_pattern_keys(fields, CONFIG)
    return fields


def read_json(folder: Path, *, limits: Limits) -> dict[str, Any]:
    """Read what the config of an adapter says, whatever PEFT makes of it.

    Args:
        folder: The adapter's folder.
        limits: How large it may be.

    Returns:
        Its content.

    Raises:
        InvalidAdapter: There is none, or it cannot be read.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise InvalidAdapter(f"the adapter has no {CONFIG}")
    try:
        if file.stat().st_size > limits.config_bytes:
            raise InvalidAdapter(f"{CONFIG} is over the limit of {limits.config_bytes} bytes")
        fields = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        json.dumps(fields, ensure_ascii=False).encode()  # half a character is none
    except OSError as error:
        raise InvalidAdapter(f"{CONFIG} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(
            f"{CONFIG} is no JSON: {str(error) or 'nested too deeply'}"
        ) from error
    if not isinstance(fields, dict):
        raise InvalidAdapter(f"{CONFIG} holds {type(fields).__name__}, expected an object")
    return fields


def read_weights(folder: Path, *, limits: Limits) -> Mapping[str, TensorEntry]:
    """Read what the file of weights says of its tensors.

    Args:
        folder: The adapter's folder.
        limits: How large it may be.

    Returns:
        Its tensors by name.

    Raises:
        InvalidAdapter: There is none, or it is beyond a limit.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        if (folder / _PICKLED).exists():
            raise InvalidAdapter(
                f"{_PICKLED} is a pickle, which runs code when it is read, and is never opened; "
                f"load the adapter with PEFT and save_pretrained it: that writes {WEIGHTS}"
            )
        raise InvalidAdapter(f"the adapter has no {WEIGHTS}")
    entries = read_entries(file, max_header_bytes=limits.header_bytes).tensors
    if not 0 < len(entries) <= limits.tensors:
        raise InvalidAdapter(
            f"{WEIGHTS} has {len(entries)} tensors; allowed are 1 to {limits.tensors}"
        )
    for name, entry in entries.items():
        if len(name) > limits.name_chars or not name.isprintable():
            raise InvalidAdapter(
                f"the name {name!r:.80} of a tensor is too long or no text; allowed are "
                f"{limits.name_chars} characters"
            )
        if math.prod(entry.shape) > limits.elements:
            raise InvalidAdapter(
                f"{name} of shape {list(entry.shape)} has over {limits.elements} numbers"
            )
    return entries


def stored_width(folder: str | Path, *, limits: Limits = Limits()) -> int:
    """Tell how many bytes a parameter of an adapter takes.

    Args:
        folder: The adapter's folder.
        limits: How large it may be.

    Returns:
        The width of the widest type that its matrices are stored in.

    Raises:
        InvalidAdapter: The folder holds no sound adapter.
    """  # noqa: DOC502 - `read_weights` raises
    entries = read_weights(Path(folder), limits=limits).values()
    return max((ITEMSIZES[e.dtype] for e in entries if e.dtype in ITEMSIZES), default=4)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


Pairs = dict[tuple[str, tuple[str, str]], dict[int, tuple[str, TensorEntry]]]


def _sort_tensors(
    entries: Mapping[str, TensorEntry], config: LoraConfig
) -> tuple[Pairs, dict[str, TensorEntry]]:
    """Tell the matrices of LoRA from what else is stored.

    Returns:
        A and B by module, and the other tensors by name.

    Raises:
        InvalidAdapter: A tensor is neither.
    """
    pairs: Pairs = {}
    carried: dict[str, TensorEntry] = {}
    for key, entry in sorted(entries.items()):
        if not key.startswith(WRAPPER_PREFIX):
            raise InvalidAdapter(
                f"tensor {key!r:.120} does not start with {WRAPPER_PREFIX!r}, as all tensors do "
                "that PEFT's save_pretrained writes; PEFT would leave it aside"
            )
        name = key.removeprefix(WRAPPER_PREFIX)
        ending = next((end for end in FACTORS if name.endswith(end)), None)
        if ending is not None:
            i, endings = FACTORS[ending]
            pairs.setdefault((name.removesuffix(ending), endings), {})[i] = key, entry
        elif "lora_" not in name and config.may_carry(name):
            carried[key] = entry
        else:
            raise InvalidAdapter(_unexpected(key))
    if not pairs:
        raise InvalidAdapter(
            f"{WEIGHTS} has no lora_A and lora_B: there is nothing of LoRA in it"
        )
    return pairs, carried


def _unexpected(key: str) -> str:
    """What is wrong with a tensor that plain LoRA does not have."""
    if "lora_magnitude_vector" in key:
        return f"tensor {key!r:.120} is one of DoRA, and only plain LoRA is read"
    if ".lora_E" in key:
        return f"tensor {key!r:.120} is one of AdaLoRA; convert it to plain LoRA first"
    if "lora_B.bias" in key:
        return f"tensor {key!r:.120} is a bias of LoRA, and only plain LoRA is read"
    if re.search(r"\.lora_[AB]\.[^.]+\.weight$", key):
        return (
            f"tensor {key!r:.120} has an adapter's name in its own, as in a model's raw state; "
            "write the adapter with PEFT's save_pretrained"
        )
    return (
        f"tensor {key!r:.120} is unexpected: neither lora_A nor lora_B, nor of a module that "
        "modules_to_save names, so PEFT would leave it aside"
    )


def _modules(pairs: Pairs, config: LoraConfig, limits: Limits) -> dict[str, TrainedModule]:
    """Put A and B of each module together, and hold them against the config.

    Returns:
        The modules by name.

    Raises:
        InvalidAdapter: A matrix is missing or does not fit the other one, or the config.
    """
    names = [name for name, _ in pairs]
    odd = [name for name, n in Counter(names).items() if n > 1 or not _NAME.fullmatch(name)]
    if odd:
        raise InvalidAdapter(f"{odd[0]!r:.120} is adapted twice, or is no name of a module")
    known = config.ranks_and_scales(names)
    is_transposed = bool(config.fields.get("fan_in_fan_out"))
    modules = {}
    for (name, endings), found in pairs.items():
        for i in (0, 1):
            if i not in found:
                raise InvalidAdapter(
                    f"tensor {name}{endings[i]} is missing beside its other half"
                )
        rank, d_in, d_out = _sides(name, found[0], found[1])
        planned, scale = known[name]
        if rank != planned:
            raise InvalidAdapter(
                f"{name}: its tensors have rank {rank}, and by r and rank_pattern it has "
                f"{planned}, so PEFT would not load it; correct {CONFIG}"
            )
        if rank > limits.rank:
            raise InvalidAdapter(f"{name}: rank {rank} is over the limit of {limits.rank}")
        target = TargetModule(name, d_in, d_out, is_transposed)
        modules[name] = TrainedModule(target, rank, scale, (found[0], found[1]))
    return modules


def _sides(
    name: str, a: tuple[str, TensorEntry], b: tuple[str, TensorEntry]
) -> tuple[int, int, int]:
    """Read the sizes of a module from the shapes of A and B.

    Returns:
        Rank, input and output features.

    Raises:
        InvalidAdapter: They are no pair of matrices.
    """
    for key, entry in (a, b):
        if entry.dtype not in FLOAT_TYPES:
            allowed = ", ".join(FLOAT_TYPES)
            raise InvalidAdapter(f"{key} is of type {entry.dtype!r:.20}; read are {allowed}")
        if len(entry.shape) != 2 or 0 in entry.shape:
            raise InvalidAdapter(f"{key} has shape {list(entry.shape)}; it must be a matrix")
    (rank, d_in), (d_out, columns) = a[1].shape, b[1].shape
    if rank != columns:
        raise InvalidAdapter(
            f"{name}: A has {rank} rows and B {columns} columns; both must be the rank"
        )
    return rank, d_in, d_out
