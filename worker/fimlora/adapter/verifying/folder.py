"""An adapter in a folder, as it is: what PEFT would make of it, and what it would leave aside.

Other readers refuse a folder at the first thing that is odd; this one says all of it. Tensors are
read one at a time, to see what is zero. Nothing here imports torch.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fimlora.adapter.config import WRAPPER_PREFIX, path_of_wrapper
from fimlora.adapter.trained.lora_config import (
    EMBEDDINGS,
    LoraConfig,
    check_kind,
    unplain_fields,
)
from fimlora.adapter.trained.read import (
    CONFIG,
    FACTORS,
    WEIGHTS,
    Limits,
    read_json,
    read_weights,
)
from fimlora.adapter.trained.tensors import FLOAT_TYPES, read_floats
from fimlora.adapter.verifying.compare import compare
from fimlora.adapter.verifying.findings import Fault, Verification
from fimlora.adapter.verifying.intended import (
    AnyPlan,
    BaseName,
    Intended,
    base_name,
    read_intended,
)
from fimlora.adapter.verifying.seen import SeenAdapter, SeenModule
from fimlora.errors import InvalidAdapter
from fimlora.model.safetensors_header import TensorEntry

DigestOf = Callable[[Path], str]
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_OWN_NAME = re.compile(r"\.(lora_[AB])\.[^.]+\.weight$")  # of the adapter, inside its tensors'
_SAVED = re.compile(r"(.*?)(?:\.modules_to_save(?:\.[^.]+)?)?\.[^.]+$")
_WHOLE_MODELS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_SPREAD = ("pytorch_model_fsdp_*", "global_step*", "*.distcp")


def verify_adapter(
    folder: str | Path,
    plan: AnyPlan,
    *,
    base_model: str | None = None,
    digest_of: DigestOf | None = None,
) -> Verification:
    """Hold an adapter's files, or the newest checkpoint of a run, against the plan.

    Args:
        folder: An adapter's folder, or a Trainer's output folder with ``checkpoint-N`` in it.
        plan: A plan, or where it is kept; see `read_intended`.
        base_model: What the base model is called in training, if other than in the plan.
        digest_of: Reads the files of a base model in a folder and tells their digest, as the
            service takes it; without it a folder is not held against a plan that names one.

    Returns:
        What was found.

    Raises:
        InvalidAdapter: There is no adapter, or no plan.
    """  # noqa: DOC502 - the readers raise
    intended = read_intended(plan)
    seen = see_folder(find_adapter(Path(folder).expanduser()), intended, base_model=base_model)
    if digest_of is not None:
        seen = replace(seen, base=_with_digest(seen.base, intended, digest_of))
    return compare(intended, seen)


def _with_digest(base: BaseName, intended: Intended, digest_of: DigestOf) -> BaseName:
    """A base model with the digest of its files, where the plan names one to hold it against."""
    if base == intended.base or not (intended.base.digest and base.name):
        return base
    folder = Path(base.name).expanduser()
    return replace(base, digest=digest_of(folder)) if folder.is_dir() else base


def find_adapter(folder: Path) -> Path:
    """Find the adapter that is meant.

    Args:
        folder: Its folder, or that of the run that wrote it.

    Returns:
        The folder that holds ``adapter_config.json``.

    Raises:
        InvalidAdapter: There is none, or no telling which.
    """
    if folder.name == CONFIG and folder.is_file():
        return folder.parent
    if not folder.is_dir():
        raise InvalidAdapter(
            f"{folder} is no folder; give an adapter's or a Trainer's output folder"
        )
    if (folder / CONFIG).is_file():
        return folder
    matches = ((_CHECKPOINT.fullmatch(path.name), path) for path in folder.iterdir())
    steps = {int(match[1]): path for match, path in matches if match and path.is_dir()}
    if steps:
        return find_adapter(steps[max(steps)])
    inner = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if len(inner) == 1:
        return inner[0]
    raise InvalidAdapter(_why_none(folder, inner))


def _why_none(folder: Path, inner: list[Path]) -> str:
    if inner:
        names = ", ".join(path.name for path in inner[:5])
        return f"{folder} holds several adapters ({names}); give the folder of one"
    if any((folder / name).exists() for name in _WHOLE_MODELS):
        return (
            f"{folder} holds a whole model and no {CONFIG}: an adapter that is merged cannot be "
            "held against a plan; verify it before merging, or save it with save_pretrained"
        )
    if any(
        list(folder.glob(pattern)) for pattern in _SPREAD
    ):  # whole: a search is not left open
        return (
            f"{folder} holds parts of a model that is spread over processes, and no {CONFIG}: "
            "save the adapter with save_pretrained, then verify that folder"
        )
    return f"{folder} holds no {CONFIG} and no checkpoint-N: there is no adapter to verify"


def see_folder(
    folder: Path,
    intended: Intended,
    *,
    base_model: str | None = None,
    limits: Limits = Limits(),
) -> SeenAdapter:
    """Read an adapter's folder.

    Args:
        folder: The folder.
        intended: What was planned; a folder without tensors is read for its modules.
        base_model: What the base model is called in training, if other than in the plan.
        limits: How large the adapter may be.

    Returns:
        What it has.

    Raises:
        InvalidAdapter: Its files cannot be read.
    """  # noqa: DOC502 - the readers raise
    fields = read_json(folder, limits=limits)
    check_kind(fields)
    config = LoraConfig(fields)
    tensors = _Tensors.of(folder, limits)
    if tensors is None:
        return _by_config_alone(folder, config, intended, base_model)
    experts = planned_experts(intended)
    tensors = tensors.with_experts([n for n in experts if config.means_parameter(n)])
    names = [name for name, factors in tensors.pairs.items() if len(factors) == 2]
    known = config.ranks_and_scales(names)
    modules, faults = {}, [*unplain(fields, intended), *tensors.faults]
    for name in names:
        modules[name] = tensors.module(name, known[name][1], experts.get(name, 1))
        faults += _misfit(name, known[name][0], modules[name].rank)
    if odd := config.unmatched([n for n in names if n not in experts]):
        faults.append(_left_aside(odd))
    resized = _resized(tensors.saved, config)
    return SeenAdapter(
        subject=str(folder),
        config=config,
        modules=modules,
        base=_base(fields, intended, base_model),
        saved=tuple(sorted(tensors.saved - resized)),
        faults=tuple(faults),
        notes=tuple(
            f"{name} is stored beside, as of a vocabulary that was resized"
            for name in sorted(resized)
        ),
    )


def _resized(saved: frozenset[str], config: LoraConfig) -> frozenset[str]:
    """Embeddings that PEFT stores by itself, and nobody has asked to train."""
    meant = tuple(config.saved)
    return frozenset(
        n for n in saved if n.rpartition(".")[2] in EMBEDDINGS and not n.endswith(meant)
    )


def planned_experts(intended: Intended) -> dict[str, int]:
    """Find the fused experts that a plan gives a rank.

    Args:
        intended: What was planned.

    Returns:
        How many experts by the parameter's name, in the plan's order.
    """
    plan = intended.plan
    return {
        m.name: m.n_experts
        for m in plan.modules
        if m.n_experts is not None and plan.ranks[m.name]
    }


def unplain(fields: Mapping[str, Any], intended: Intended) -> list[Fault]:
    """Say what a config switches on that is neither plain LoRA nor planned.

    Args:
        fields: The content of ``adapter_config.json``.
        intended: What was planned.

    Returns:
        A fault for each.
    """
    found = unplain_fields(fields)
    if planned_experts(intended):
        found.pop("target_parameters", None)
    if fields.get("bias") not in {None, "none"}:
        found["bias"] = "biases that train beside A and B"
    return [
        Fault(
            "other_kind", "", "plain LoRA", field,
            f"{field} is {fields[field]!r:.60}{f' ({meaning})' if meaning else ''}",
        )
        for field, meaning in found.items()
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Tensors:
    """What a file of weights has, sorted by module."""

    file: Path
    pairs: Mapping[str, Mapping[int, tuple[str, TensorEntry]]]
    saved: frozenset[str]
    faults: tuple[Fault, ...]

    @classmethod
    def of(cls, folder: Path, limits: Limits) -> "_Tensors | None":
        is_run = bool(_CHECKPOINT.fullmatch(folder.name))
        if not is_run and not any(
            (folder / n).exists() for n in (WEIGHTS, "adapter_model.bin")
        ):
            return None
        pairs: dict[str, dict[int, tuple[str, TensorEntry]]] = defaultdict(dict)
        saved, faults = set(), []
        for key, entry in read_weights(folder, limits=limits).items():
            name, was_odd = _plain_key(key)
            faults += was_odd
            ending = next((end for end in FACTORS if name.endswith(end)), None)
            if ending is not None:
                pairs[name.removesuffix(ending)][FACTORS[ending][0]] = key, entry
            elif "lora_" in name:
                faults.append(_odd_tensor(key))
            else:
                match = _SAVED.fullmatch(name)
                saved.add(match[1] if match else name)
        faults += [_half(name) for name, factors in pairs.items() if len(factors) < 2]
        # One of a kind is enough: every tensor of such a file has the same fault.
        once = {fault.found: fault for fault in faults}
        return cls(folder / WEIGHTS, dict(pairs), frozenset(saved), tuple(once.values()))

    def with_experts(self, names: Sequence[str]) -> "_Tensors":
        """Name the tensors of fused experts by their parameters, as their own names do not.

        Args:
            names: Names of all parameters that carry LoRA, in the model's order.

        Returns:
            The same tensors under these names.
        """
        by_path = {path_of_wrapper(name, names): name for name in names}
        return replace(self, pairs={by_path.get(n, n): pair for n, pair in self.pairs.items()})

    def module(self, name: str, scale: float, n_experts: int = 1) -> SeenModule:
        """Read A and B of a module, or those of all experts of a parameter.

        Returns:
            What they are.

        Raises:
            InvalidAdapter: They are no pair of matrices, or a value is not finite.
        """
        (a, entry_a), (b, entry_b) = self.pairs[name][0], self.pairs[name][1]
        for key, entry in ((a, entry_a), (b, entry_b)):
            if entry.dtype not in FLOAT_TYPES or len(entry.shape) != 2:
                raise InvalidAdapter(
                    f"{key} is {entry.dtype} {list(entry.shape)}, no matrix of floats"
                )
        A, B = read_floats(self.file, a, entry_a), read_floats(self.file, b, entry_b)
        if len(A) != B.shape[1]:
            raise InvalidAdapter(f"{name}: A has {len(A)} rows and B {B.shape[1]} columns")
        if len(A) % n_experts:
            raise InvalidAdapter(f"{name}: A has {len(A)} rows for {n_experts} experts")
        has_row = A.any(axis=1).reshape(n_experts, -1).any(axis=0)
        has_column = B.any(axis=0).reshape(-1, n_experts)
        used = np.flatnonzero(has_row | has_column.any(axis=1))
        is_alive = A.any(axis=1).reshape(n_experts, -1).any(axis=1) | has_column.any(axis=0)
        return SeenModule(
            rank=len(A) // n_experts,
            scale=scale,
            d_in=A.shape[1],
            d_out=len(B),
            used=int(used[-1]) + 1 if len(used) else 0,
            is_trained=bool(B.any()),
            n_experts=n_experts,
            experts=tuple(np.flatnonzero(is_alive).tolist()),
        )


def _plain_key(key: str) -> tuple[str, list[Fault]]:
    """A tensor's name in the base model, and what is wrong with it as PEFT reads it."""
    faults = []
    name = _OWN_NAME.sub(r".\1.weight", key)
    if name != key:
        told = "an adapter's name in its own, as in a model's raw state"
        faults.append(
            _tensor_fault(key, f"tensor {key} has {told}; PEFT would leave it aside", told)
        )
    start, found, rest = name.partition(WRAPPER_PREFIX)
    if found and not start:
        return rest, faults
    told = f"no {WRAPPER_PREFIX!r} at its beginning"
    faults.append(
        _tensor_fault(key, f"tensor {key} has {told}; PEFT would leave it aside", told)
    )
    return start + rest, faults


def _tensor_fault(key: str, message: str, kind: str) -> Fault:
    return Fault("tensors", "", "as save_pretrained writes it", f"{key}: {kind}", message)


def _odd_tensor(key: str) -> Fault:
    kind = "DoRA" if "magnitude" in key else "not of plain LoRA"
    return Fault("other_kind", "", "plain LoRA", kind, f"tensor {key} is {kind}")


def _half(name: str) -> Fault:
    message = f"{name} has only one of A and B"
    return Fault("tensors", name, "A and B", "one of both", message)


def _misfit(name: str, by_config: int, rank: int) -> list[Fault]:
    if by_config == rank:
        return []
    message = (
        f"{name} has rank {rank} in its tensors and {by_config} by r and rank_pattern, so PEFT does "
        "not load it"
    )
    return [Fault("config", name, f"rank {rank}", f"rank {by_config}", message)]


def _left_aside(odd: list[str]) -> Fault:
    message = (
        f"target_modules does not mean {odd[0]}, of which there are tensors ({len(odd)} such "
        "modules), so PEFT leaves them aside"
    )
    return Fault("config", odd[0], "a target", "none", message)


def _base(fields: Mapping[str, Any], intended: Intended, given: str | None) -> Any:
    """What the base model is called; a name that the caller vouches for is the planned one."""
    name, revision = fields.get("base_model_name_or_path"), fields.get("revision")
    return intended.base if given and name == given else base_name(name, revision)


def _by_config_alone(
    folder: Path, config: LoraConfig, intended: Intended, base_model: str | None
) -> SeenAdapter:
    """What a config means for the planned modules, where there are no tensors yet."""
    planned = [m for m in intended.plan.modules if intended.plan.ranks[m.name]]
    experts = planned_experts(intended)
    out = set(config.unmatched([m.name for m in planned if m.name not in experts]))
    out |= {name for name in experts if not config.means_parameter(name)}
    meant = [m for m in planned if m.name not in out]
    known = config.ranks_and_scales([m.name for m in meant])
    modules = {
        m.name: SeenModule(*known[m.name], d_in=m.d_in, d_out=m.d_out, n_experts=m.n_matrices)
        for m in meant
    }
    missing = [_left_out(name, intended) for name in sorted(out)]
    return SeenAdapter(
        subject=str(folder),
        config=config,
        modules=modules,
        base=_base(config.fields, intended, base_model),
        saved=_saved_by_config(config, intended),
        faults=(*unplain(config.fields, intended), *missing),
        notes=(f"there is no {WEIGHTS}: only what {CONFIG} says was compared",),
        is_complete=False,
    )


def _saved_by_config(config: LoraConfig, intended: Intended) -> tuple[str, ...]:
    """What a config trains in full, by planned names where it means those: it names ends."""
    found: dict[str, None] = {}
    for end in config.fields.get("modules_to_save") or ():
        meant = [name for name in intended.saved or () if name.endswith(end)]
        found |= dict.fromkeys(meant or [end])
    return tuple(found)


def _left_out(name: str, intended: Intended) -> Fault:
    rank = intended.plan.ranks[name]
    field = "target_parameters" if name in planned_experts(intended) else "target_modules"
    message = f"{name} is planned with rank {rank}, and {field} does not mean it"
    return Fault("missing", name, f"rank {rank}", "no LoRA", message)
