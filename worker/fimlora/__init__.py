"""fimlora: decide how much LoRA rank each weight matrix gets, before training starts.

``import fimlora`` itself loads no torch; names that need it are resolved on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fimlora.errors import FimloraError, InfeasibleBudget, MissingExtra
from fimlora.plan import Budget, RankPlan, TargetModule

if TYPE_CHECKING:
    from fimlora.allocation import allocate
    from fimlora.api import apply_fim_ranks
    from fimlora.folders import measure_folder
    from fimlora.measuring import measure
    from fimlora.progress_file import ProgressFile
    from fimlora.read import load_plan
    from fimlora.scores import Scores
    from fimlora.scoring import score
    from fimlora.statistics import Statistics
    from fimlora.streaming import measure_streamed
    from fimlora.targets import find_targets
    from fimlora.writing import write_adapter

__version__ = "0.1.0"

# Public names that live in modules with heavier imports than this one.
_LAZY = {
    "allocate": "fimlora.allocation",
    "apply_fim_ranks": "fimlora.api",
    "find_targets": "fimlora.targets",
    "load_plan": "fimlora.read",
    "measure": "fimlora.measuring",
    "measure_folder": "fimlora.folders",
    "measure_streamed": "fimlora.streaming",
    "ProgressFile": "fimlora.progress_file",
    "score": "fimlora.scoring",
    "Scores": "fimlora.scores",
    "Statistics": "fimlora.statistics",
    "write_adapter": "fimlora.writing",
}

__all__ = [
    "Budget",
    "FimloraError",
    "InfeasibleBudget",
    "MissingExtra",
    "ProgressFile",
    "RankPlan",
    "Scores",
    "Statistics",
    "TargetModule",
    "allocate",
    "apply_fim_ranks",
    "find_targets",
    "load_plan",
    "measure",
    "measure_folder",
    "measure_streamed",
    "score",
    "write_adapter",
]


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
            "pip install 'fimlora[engine]'"
        ) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
