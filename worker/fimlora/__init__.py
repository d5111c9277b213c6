"""fimlora: decide how much LoRA rank each weight matrix gets, before training starts.

``import fimlora`` itself loads no torch; names that need it are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fimlora._version import __version__ as __version__
from fimlora.errors import FimloraError, InfeasibleBudget, MissingExtra
from fimlora.plan import Budget, RankPlan, TargetModule

if TYPE_CHECKING:
    from fimlora.adapter.adalora import adalora_config
    from fimlora.adapter.adalora_reallocation import AdaLoraReallocation
    from fimlora.adapter.audit import audit_adapter
    from fimlora.adapter.convert import convert_adapter
    from fimlora.adapter.initial.base_shift import shift_base
    from fimlora.adapter.read import load_plan
    from fimlora.adapter.truncate import truncate_adapter
    from fimlora.adapter.verifying.callback import VerifyPlan
    from fimlora.adapter.verifying.folder import verify_adapter
    from fimlora.adapter.write import write_adapter
    from fimlora.allocation import allocate
    from fimlora.apply import apply_fim_ranks
    from fimlora.confidence.compare import compare
    from fimlora.measuring.folder import measure_folder
    from fimlora.measuring.head.resident import fit_head
    from fimlora.measuring.resident import measure
    from fimlora.measuring.resume.progress_file import ProgressFile
    from fimlora.measuring.settings import Settings
    from fimlora.measuring.streamed.head import fit_head_streamed
    from fimlora.measuring.streamed.run import measure_streamed
    from fimlora.methods.expert_choice import select_experts
    from fimlora.methods.score import score
    from fimlora.model.targets import find_targets
    from fimlora.reallocation.advice import advise_prune_and_grow
    from fimlora.reallocation.reallocator import FimLoraReallocator
    from fimlora.scores import Scores
    from fimlora.statistics import Statistics

# Public names that live in modules with heavier imports than this one.
_LAZY = {
    "adalora_config": "fimlora.adapter.adalora",
    "AdaLoraReallocation": "fimlora.adapter.adalora_reallocation",
    "advise_prune_and_grow": "fimlora.reallocation.advice",
    "allocate": "fimlora.allocation",
    "apply_fim_ranks": "fimlora.apply",
    "audit_adapter": "fimlora.adapter.audit",
    "compare": "fimlora.confidence.compare",
    "convert_adapter": "fimlora.adapter.convert",
    "FimLoraReallocator": "fimlora.reallocation.reallocator",
    "find_targets": "fimlora.model.targets",
    "fit_head": "fimlora.measuring.head.resident",
    "fit_head_streamed": "fimlora.measuring.streamed.head",
    "load_plan": "fimlora.adapter.read",
    "measure": "fimlora.measuring.resident",
    "measure_folder": "fimlora.measuring.folder",
    "measure_streamed": "fimlora.measuring.streamed.run",
    "ProgressFile": "fimlora.measuring.resume.progress_file",
    "score": "fimlora.methods.score",
    "Scores": "fimlora.scores",
    "Settings": "fimlora.measuring.settings",
    "select_experts": "fimlora.methods.expert_choice",
    "shift_base": "fimlora.adapter.initial.base_shift",
    "Statistics": "fimlora.statistics",
    "truncate_adapter": "fimlora.adapter.truncate",
    "verify_adapter": "fimlora.adapter.verifying.folder",
    "VerifyPlan": "fimlora.adapter.verifying.callback",
    "write_adapter": "fimlora.adapter.write",
}

__all__ = [
    "AdaLoraReallocation",
    "Budget",
    "FimLoraReallocator",
    "FimloraError",
    "InfeasibleBudget",
    "MissingExtra",
    "ProgressFile",
    "RankPlan",
    "Scores",
    "Settings",
    "Statistics",
    "TargetModule",
    "VerifyPlan",
    "adalora_config",
    "advise_prune_and_grow",
    "allocate",
    "apply_fim_ranks",
    "audit_adapter",
    "compare",
    "convert_adapter",
    "find_targets",
    "fit_head",
    "fit_head_streamed",
    "load_plan",
    "measure",
    "measure_folder",
    "measure_streamed",
    "score",
    "select_experts",
    "shift_base",
    "truncate_adapter",
    "verify_adapter",
    "write_adapter",
]


# Said before somebody waits for it.
NO_GPU = (
    " (the torch of PyPI brings CUDA, about 6 GB; without a GPU add "
    "--extra-index-url https://download.pytorch.org/whl/cpu)"
)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fimlora' has no attribute {name!r}")
    try:
        return getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fimlora"):
            raise
        raise MissingExtra(
            f"fimlora.{name} needs {error.name!r}, which is not installed: "
            f"pip install 'fimlora[engine]'{NO_GPU if error.name == 'torch' else ''}"
        ) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
