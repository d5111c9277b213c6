"""Which tensors of a quantised checkpoint belong together, and what weight they stand for.

A packed weight lies beside its scales, in ways that the method of quantising tells. The headers
of the files and the configuration are enough to find them; only bitsandbytes keeps the shape of
a 4 bit weight inside a tensor. Nothing here imports torch, or reads a weight.

Symbols: E experts, O output and I input features of a linear map.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from fimlora.model.integer_formats import UnreadFormat, bits_of, zero_point_offset

READABLE = ("bitsandbytes", "fp8", "mxfp8", "mxfp4", "compressed-tensors", "gptq", "awq")
WAY_OUT = (
    "give the unquantised model it was made from; the ranks hold for the quantised one, too"
)
# dtype as safetensors headers have it, and shape.
Stored = tuple[str, tuple[int, ...]]
ReadBytes = Callable[[str], bytes]
FP8 = frozenset({"F8_E4M3", "F8_E5M2"})
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
# Powers of two, by their exponents plus 127.
_EXPONENTS = frozenset({"U8", "F8_E8M0"})
# No buffer of a model is stored in so few bits, but for masks.
_NARROW = frozenset({"U8", "I8", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"}) | FP8
# Of a causal mask, which GPT-2 and its kin kept among their tensors: 0 and 1.
_MASKS = ("attn.bias", "attention.bias")
_STATE = re.compile(r"\.quant_state\.bitsandbytes__(nf4|fp4)$")
_MAX_STATE_BYTES = 1 << 16
# What else quantisers store beside a weight, and that its numbers do not depend on.
_OF_ACTIVATIONS = (
    "input_scale", "output_scale", "input_zero_point", "output_zero_point",
    "activation_scale", "k_scale", "v_scale", "q_scale",
)  # fmt: skip
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# What bitsandbytes may keep 4 bit weights in, as FSDP shards no bytes, and bytes of an element.
_STORAGE = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}
# Tensors that lie beside a 4 bit weight of bitsandbytes, by what follows its own name.
_TAILS = {
    "absmax": ".absmax", "quant_map": ".quant_map", "nested_absmax": ".nested_absmax",
    "nested_quant_map": ".nested_quant_map",
}  # fmt: skip


class UnreadablePacking(ValueError):
    """A checkpoint is quantised in a way that is not read; says which, and what to do."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight, and what it is packed into.

    Attributes:
        method: How: ``bnb4``, ``bnb8``, ``scaled``, ``fp4``, ``fp4_experts``, ``packed``,
            ``gptq`` or ``awq``.
        shape: Of the weight that it stands for: (O, I), of fused experts (E, I, O).
        dtype: That its quantiser unpacks it to, as a header would have it.
        parts: Tensors by their role.
        options: What else is to be known, such as bits.
    """

    method: str
    shape: tuple[int, ...]
    dtype: str
    parts: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A checkpoint as if it had never been quantised.

    Attributes:
        packed: Packed weights by the name that a plain one would have.
        plain: Names of all other tensors that belong to the model.
    """

    packed: Mapping[str, PackedWeight]
    plain: frozenset[str]


def quantisation_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Read how a checkpoint is quantised.

    Args:
        config: The content of its ``config.json``.

    Returns:
        What the configuration says of it; ``None`` where it is not.

    Raises:
        UnreadablePacking: In a way that is not read.
    """
    found = config.get("quantization_config")
    if not found:
        return None
    if not isinstance(found, Mapping):
        raise UnreadablePacking(f"quantization_config is no object: {WAY_OUT}")
    method = method_of(found)
    if method not in READABLE:
        raise UnreadablePacking(
            f"its weights are quantised ({method}), and of checkpoints with packed weights those of "
            f"{', '.join(READABLE)} are read: {WAY_OUT}"
        )
    transforms = found.get("transform_config")
    if isinstance(transforms, Mapping) and transforms.get("config_groups"):
        raise UnreadablePacking(
            f"its weights are quantised ({method}, with a transform_config), and weights that inputs "
            f"are turned for are not read: {WAY_OUT}"
        )
    return MappingProxyType({**found, "quant_method": method})


def method_of(found: Any) -> str:
    """Name the method of a quantisation.

    Args:
        found: What a configuration says of it.

    Returns:
        The method; ``method unknown`` where it does not tell.
    """
    if not isinstance(found, Mapping):
        return "method unknown"
    method = found.get("quant_method") or found.get("quant_algo")
    if isinstance(method, str):
        return method
    is_bitsandbytes = any(found.get(f"load_in_{n}bit") for n in (4, 8))
    return "bitsandbytes" if is_bitsandbytes else "method unknown"


def unpacked_view(
    tensors: Mapping[str, Stored],
    quantisation: Mapping[str, Any],
    read: ReadBytes | None,
) -> Unpacked:
    """Find the weights of a quantised checkpoint.

    Args:
        tensors: Dtype and shape of its tensors by name.
        quantisation: What `quantisation_of` has read.
        read: Reads the bytes of a small tensor; ``None`` where none can be had, so that the sides
            of a 4 bit weight of bitsandbytes, and inputs of one of compressed-tensors whose last word
            is partly empty, are guessed by the widths of other tensors.

    Returns:
        Its weights.

    Raises:
        UnreadablePacking: Some are packed in a way that is not read, or none is.
    """
    finder = _Finder(tensors, quantisation, read)
    packed = dict(finder.find())
    taken = {part for weight in packed.values() for part in weight.parts.values()}
    plain = frozenset(
        name
        for name in tensors
        if name not in taken
        and not _STATE.search(name)
        and name.rpartition(".")[2] not in _OF_ACTIVATIONS
    )
    _check_neighbours(packed, plain)
    if odd := sorted(n for n in plain if looks_packed(n, tensors[n][0])):
        raise UnreadablePacking(
            f"tensor {odd[0]!r} is stored as {tensors[odd[0]][0]}, which "
            f"{finder.method} does not explain: {WAY_OUT}"
        )
    if not packed:
        raise UnreadablePacking(
            f"config.json says that it is quantised ({finder.method}), and no weight is stored so: "
            f"take quantization_config out of it, or {WAY_OUT}"
        )
    return Unpacked(MappingProxyType(packed), plain)


def looks_packed(name: str, dtype: str) -> bool:
    """Tell a tensor that stands for other numbers than those it holds.

    Args:
        name: Its name.
        dtype: Its dtype, as a header has it.

    Returns:
        Whether it cannot be a plain weight, nor one of the integers that models keep beside.
    """
    if dtype == "U8" and name.endswith(_MASKS):
        return False
    endings = ("weight", "qweight", "weight_packed", "_blocks", "qzeros")
    return dtype in _NARROW or (name.endswith(endings) and dtype not in _FLOATS)


def _check_neighbours(packed: Mapping[str, PackedWeight], plain: frozenset[str]) -> None:
    """Refuse what lies beside a packed weight and may change its numbers."""
    bases = {name.removesuffix(".weight") for name in packed if name.endswith(".weight")}
    for name in sorted(plain):
        base, _, leaf = name.rpartition(".")
        if base in bases and leaf != "bias":
            raise UnreadablePacking(
                f"tensor {name!r} lies beside a packed weight, and it is not known what it does "
                f"to its numbers: {WAY_OUT}"
            )


class _Finder:
    """Finds packed weights by the tensors that each method stores."""

    def __init__(
        self,
        tensors: Mapping[str, Stored],
        quantisation: Mapping[str, Any],
        read: ReadBytes | None,
    ) -> None:
        self._tensors, self._quantisation, self._read = tensors, quantisation, read
        self.method = str(quantisation["quant_method"])
        floats = [shape for dtype, shape in tensors.values() if dtype in _FLOATS]
        tables = [shape[1] for shape in floats if len(shape) == 2]
        vectors = [shape[0] for shape in floats if len(shape) == 1]
        # A width of 1 is that of what bitsandbytes has packed into floats.
        self._widths = tuple(dict.fromkeys(w for w in (*tables, *vectors) if w > 1))

    def find(self) -> Iterator[tuple[str, PackedWeight]]:
        """Name and parts of each packed weight."""
        for name, (dtype, _) in self._tensors.items():
            base, _, leaf = name.rpartition(".")
            found = None
            if self.method == "mxfp4" and leaf.endswith("_blocks"):
                yield name.removesuffix("_blocks"), self._fused_experts(name)
            elif leaf == "weight" and (dtype not in _FLOATS or self._state_of(name)):
                found = self._beside(name, base, dtype)
            elif leaf == "qweight" and self.method in {"gptq", "awq"}:
                found = self._in_integers(name, base)
            elif leaf == "weight_packed" and self.method == "compressed-tensors":
                found = self._compressed(name, base)
            if found is not None:
                yield f"{base}.weight", found

    def _beside(self, name: str, base: str, dtype: str) -> PackedWeight | None:
        """A weight of its own shape beside scales, or 4 bit ones of bitsandbytes."""
        if (state := self._state_of(name)) is not None:
            return self._four_bits(name, state)
        shape = self._sides(name)
        if dtype == "I8" and f"{base}.SCB" in self._tensors:
            parts = {"weight": name, "scale": f"{base}.SCB"}
            if f"{base}.weight_format" in self._tensors:
                parts["format"] = f"{base}.weight_format"
            self._must(self._shape(parts["scale"]) == (shape[0],), name)
            return PackedWeight("bnb8", shape, "F32", parts)
        for leaf in ("weight_scale_inv", "weight_scale"):
            scale = f"{base}.{leaf}"
            # DeepSeek's experts, in checkpoints whose other maps have a byte to a number.
            if dtype == "I8" and self.method in {"fp8", "mxfp8"} and scale in self._tensors:
                return self._pairs(name, scale)
            if dtype in FP8 | {"I8"} and scale in self._tensors:
                parts = {"weight": name, "scale": scale}
                zero = f"{base}.weight_zero_point"
                if zero in self._tensors:
                    parts["zero"] = zero
                    self._must(self._shape(zero) == self._shape(scale), name)
                self._must(self._tensors[scale][0] in _FLOATS | _EXPONENTS, name)
                options = {"block": self._block(shape, scale, name)}
                return PackedWeight("scaled", shape, self._plain_dtype(scale), parts, options)
        return None

    def _state_of(self, name: str) -> str | None:
        """What tells the shape of a 4 bit weight of bitsandbytes, if it is one."""
        found = (f"{name}.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
        return next((state for state in found if state in self._tensors), None)

    def _n_bytes(self, name: str) -> int:
        dtype, shape = self._tensors[name]
        return math.prod(shape) * _STORAGE[dtype]

    def _pairs(self, name: str, scale: str) -> PackedWeight:
        """Two 4 bit floats to a byte, scales for so many inputs of a row, one scale for all."""
        o, n_bytes = self._sides(name)
        rows, groups = self._sides(scale)
        self._must(rows == o and 2 * n_bytes % groups == 0, name)
        self._must(self._tensors[name][0] in {"I8", "U8"}, name)
        self._must(self._tensors[scale][0] in _FLOATS | _EXPONENTS | FP8, name)
        parts = {"weight": name, "scale": scale}
        of_all = f"{name.rpartition('.')[0]}.weight_global_scale"
        if of_all in self._tensors:
            parts["of_all"] = of_all
            self._must(math.prod(self._shape(of_all)) == 1, name)
            self._must(self._tensors[of_all][0] in _FLOATS, name)
        # What transformers and compressed-tensors unpack it to.
        return PackedWeight("fp4", (o, 2 * n_bytes), "BF16", parts)

    def _fused_experts(self, name: str) -> PackedWeight:
        """The experts of a layer: 32 inputs to a scale and to 16 bytes, outputs first."""
        scale = name.removesuffix("_blocks") + "_scales"
        self._must(scale in self._tensors, name)
        shape = self._shape(name)
        self._must(len(shape) == 4 and min(shape) > 0 and self._shape(scale) == shape[:3], name)
        self._must(self._tensors[name][0] == "U8", name)
        self._must(self._tensors[scale][0] in _EXPONENTS, name)
        e, o, groups, n_bytes = shape
        parts = {"weight": name, "scale": scale}
        return PackedWeight("fp4_experts", (e, 2 * groups * n_bytes, o), "BF16", parts)

    def _four_bits(self, name: str, state: str) -> PackedWeight:
        """What bitsandbytes writes of a weight: its shape stands in JSON, inside a tensor."""
        self._must(math.prod(self._shape(state)) <= _MAX_STATE_BYTES, name)
        self._must(self._tensors[name][0] in _STORAGE, name)
        if self._read is None:
            return self._guessed(name)
        try:
            told = json.loads(self._read(state))
            o, i = map(int, told["shape"])
            block, dtype = int(told["blocksize"]), _DTYPES[told["dtype"]]
            nested = int(told["nested_blocksize"]) if "nested_blocksize" in told else 0
            offset = float(told.get("nested_offset", 0))
        except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
            raise UnreadablePacking(
                f"{state!r} is no state of bitsandbytes: {error!r}"
            ) from error
        parts = {"weight": name} | {
            role: name + tail for role, tail in _TAILS.items() if name + tail in self._tensors
        }
        self._must(o > 0 and i > 0 and block > 0 and nested >= 0, name)
        self._must(math.isfinite(offset), name)
        self._must(2 * self._n_bytes(name) == o * i + o * i % 2, name)
        n_blocks = -(-o * i // block)
        self._must({"absmax", "quant_map"} <= parts.keys(), name)
        self._must(self._shape(parts["absmax"]) == (n_blocks,), name)
        self._must(self._shape(parts["quant_map"]) == (16,), name)
        if nested:
            self._must({"nested_absmax", "nested_quant_map"} <= parts.keys(), name)
            self._must(self._shape(parts["nested_absmax"]) == (-(-n_blocks // nested),), name)
            self._must(self._shape(parts["nested_quant_map"]) == (256,), name)
        # No more than there is: scales are repeated by these before they are cut to length.
        block, nested = min(block, o * i), min(nested, n_blocks)
        options = {"block": block, "nested": nested, "offset": offset}
        return PackedWeight("bnb4", (o, i), dtype, parts, options)

    def _guessed(self, name: str) -> PackedWeight:
        """A 4 bit weight with the width of the hidden states as one of its sides, if it fits."""
        n = 2 * self._n_bytes(name)
        width = next((width for width in self._widths if n % width == 0), 1)
        parts = {"weight": name} | {
            role: name + tail for role, tail in _TAILS.items() if name + tail in self._tensors
        }
        return PackedWeight("bnb4", (n // width, width), "F32", parts)

    def _in_integers(self, name: str, base: str) -> PackedWeight:
        """GPTQ packs along the inputs, AWQ along the outputs; both into 32 bits."""
        is_awq, group = self.method == "awq", f"{base}.g_idx"
        parts = {"weight": name, "zero": f"{base}.qzeros", "scale": f"{base}.scales"}
        self._must(all(part in self._tensors for part in parts.values()), name)
        rows, columns = self._sides(name)
        listed = (
            self._shape(group)[0] if len(self._tensors.get(group, ("", ()))[1]) == 1 else None
        )
        try:
            plus = zero_point_offset(self._quantisation, self.method)
            bits = bits_of(self._quantisation, self.method, n_words=rows, d_in=listed)
        except UnreadFormat as error:
            raise UnreadablePacking(f"its weights are quantised {error}: {WAY_OUT}") from error
        # Of 3 bits, some lie across two words.
        self._must((columns if is_awq else rows) * 32 % bits == 0, name)
        i, o = (rows, columns * 32 // bits) if is_awq else (rows * 32 // bits, columns)
        groups, _ = self._sides(parts["scale"])
        self._must((groups > 0 and i % groups == 0) or group in self._tensors, name)
        self._must(self._shape(parts["scale"]) == (groups, o), name)
        self._must(self._shape(parts["zero"]) == (groups, -(-o * bits // 32)), name)
        self._must(bits != 3 or o % 32 == 0, name)
        self._must(self._tensors[name][0] == self._tensors[parts["zero"]][0] == "I32", name)
        if not is_awq and group in self._tensors:
            parts["group"] = group
            self._must(self._shape(group) == (i,), name)
        options = {"bits": bits, "plus": plus}
        dtype = self._plain_dtype(parts["scale"])
        return PackedWeight("awq" if is_awq else "gptq", (o, i), dtype, parts, options)

    def _compressed(self, name: str, base: str) -> PackedWeight:
        """Integers of compressed-tensors, packed into 32 bits along the inputs."""
        scale = f"{base}.weight_scale"
        if self._tensors[name][0] == "U8" and self._told_type() == "float4":
            self._must(scale in self._tensors, name)
            return self._pairs(name, scale)
        if self._tensors[name][0] != "I32" or scale not in self._tensors:
            raise UnreadablePacking(
                f"tensor {name!r} is packed as {self._tensors[name][0]}; of compressed-tensors "
                f"integers, FP4 and FP8 are read: {WAY_OUT}"
            )
        bits = self._compressed_bits()
        o, words = self._sides(name)
        told = f"{base}.weight_shape"
        i = most = words * (32 // bits)
        if told in self._tensors:
            self._must(self._tensors[told] == ("I64", (2,)), name)
            if self._read is None:
                i = self._guessed_inputs(base, range(most - 32 // bits + 1, most + 1))
            else:
                content = self._read(told)
                i = int.from_bytes(content[8:16], "little")
                self._must(int.from_bytes(content[:8], "little") == o, name)
        self._must(0 < i <= most, name)
        parts = {"weight": name, "scale": scale}
        parts |= {"shape": told} if told in self._tensors else {}
        for role, leaf in (("zero", "weight_zero_point"), ("group", "weight_g_idx")):
            if f"{base}.{leaf}" in self._tensors:
                parts[role] = f"{base}.{leaf}"
        groups = self._sides(scale)[1]
        self._must(self._shape(scale) == (o, groups) and groups > 0, name)
        self._must(i % groups == 0 or "group" in parts, name)
        if "group" in parts:
            self._must(self._shape(parts["group"]) == (i,), name)
        if "zero" in parts:
            packed = (-(-o // (32 // bits)), groups)
            self._must(self._tensors[parts["zero"]] == ("I32", packed), name)
        return PackedWeight("packed", (o, i), self._plain_dtype(scale), parts, {"bits": bits})

    def _guessed_inputs(self, base: str, possible: range) -> int:
        """Inputs whose last word may be partly empty: those of a side of another tensor, if it fits."""
        listed = self._tensors.get(f"{base}.weight_g_idx")
        if listed is not None and len(listed[1]) == 1:
            return listed[1][0]
        groups = self._sides(f"{base}.weight_scale")[1]
        whole = [i for i in possible if i % groups == 0] or [*possible]
        known = [i for i in whole if i in self._packed_outputs or i in self._widths]
        # Of two maps that are one, such as gate and up, the next one reads half of the outputs.
        halves = [i for i in whole if 2 * i in self._packed_outputs]
        return max(known or halves or whole)

    @cached_property
    def _packed_outputs(self) -> frozenset[int]:
        """Outputs of maps in words: mostly the inputs of others."""
        return frozenset(
            shape[0]
            for name, (_, shape) in self._tensors.items()
            if name.endswith(".weight_packed") and shape
        )

    def _told(self) -> list[Mapping[str, Any]]:
        """What compressed-tensors says of the weights of each group of modules."""
        groups = self._quantisation.get("config_groups")
        weights = [
            group.get("weights")
            for group in (groups.values() if isinstance(groups, Mapping) else ())
            if isinstance(group, Mapping)
        ]
        return [w for w in weights if isinstance(w, Mapping)]

    def _told_type(self) -> str | None:
        """The one type of all groups, such as ``float4``."""
        found = {f"{w.get('type')}{w.get('num_bits')}" for w in self._told()}
        return found.pop() if len(found) == 1 else None

    def _compressed_bits(self) -> int:
        """The one number of bits of all groups."""
        found = [w.get("num_bits") for w in self._told()]
        if not found or found.count(found[0]) != len(found) or found[0] not in (4, 8):
            raise UnreadablePacking(
                f"its weights are quantised (compressed-tensors, bits {found}), and 4 or 8 bit for "
                f"all of them are read: {WAY_OUT}"
            )
        return int(found[0])

    def _block(self, shape: tuple[int, int], scale: str, name: str) -> tuple[int, int]:
        """The rows and columns that one scale stands for."""
        sides = self._shape(scale)
        if math.prod(sides) == 1:
            return shape
        if len(sides) == 1 and sides[0] == shape[0]:
            return 1, shape[1]
        self._must(len(sides) == 2 and min(sides) > 0, name)
        told = self._quantisation.get("weight_block_size")
        if isinstance(told, list | tuple) and len(told) == 2:
            self._must(all(isinstance(n, int) and n > 0 for n in told), name)
            block = int(told[0]), int(told[1])
        else:
            block = -(-shape[0] // sides[0]), -(-shape[1] // sides[1])
        wanted = -(-shape[0] // block[0]), -(-shape[1] // block[1])
        self._must(sides == wanted, name)
        return min(block[0], shape[0]), min(block[1], shape[1])

    def _plain_dtype(self, scale: str) -> str:
        dtype = self._tensors[scale][0]
        return dtype if dtype in _FLOATS else "F32"

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][1]

    def _sides(self, name: str) -> tuple[int, int]:
        shape = self._shape(name)
        if len(shape) != 2 or min(shape) < 1:
            raise UnreadablePacking(
                f"tensor {name!r} has shape {shape}, and only packed matrices are read: {WAY_OUT}"
            )
        return shape[0], shape[1]

    def _must(self, holds: bool, name: str) -> None:
        if not holds:
            raise UnreadablePacking(
                f"tensor {name!r} and its scales do not fit together as {self.method} has them: "
                "save the checkpoint anew with the tool that quantised it"
            )
