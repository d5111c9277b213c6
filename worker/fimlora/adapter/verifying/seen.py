"""An adapter as it is seen, in files or on a model. Nothing here imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fimlora.adapter.trained.lora_config import LoraConfig
from fimlora.adapter.verifying.findings import Fault
from fimlora.adapter.verifying.intended import BaseName


@dataclass(frozen=True, slots=True)
class SeenModule:
    """What an adapter has on one module.

    Attributes:
        rank: Its rank, padding included.
        scale: Its effective scale.
        d_in: Input features; 0 where that is not known.
        d_out: Output features, likewise.
        used: How many ranks there are up to the last that A or B has a value in; ``None`` where no values are
            known.
        is_trained: Whether B has a value that is not zero; ``None`` where that is not known.
        n_experts: How many pairs of A and B there are, as of fused experts.
        experts: Of these, the ones whose A or B has a value that is not zero; ``None`` where no
            values are known.
    """

    rank: int
    scale: float
    d_in: int = 0
    d_out: int = 0
    used: int | None = None
    is_trained: bool | None = None
    n_experts: int = 1
    experts: tuple[int, ...] | None = None

    @property
    def parameters(self) -> int:
        """Parameters of A and B."""
        return self.n_experts * self.rank * (self.d_in + self.d_out)


@dataclass(frozen=True, slots=True)
class SeenAdapter:
    """What an adapter has.

    Attributes:
        subject: What was looked at, in words.
        config: Its config.
        modules: By name in the base model, as the names are there.
        base: The base model.
        model_type: The architecture's name in transformers, if that is known.
        saved: Names of the modules that are trained in full; ``None`` where that is not known.
        parameters: Names of single parameters that carry LoRA and are not planned to.
        faults: What is wrong with it whatever the plan.
        notes: What could not be seen.
        is_complete: Whether every module that it is on is known.
    """

    subject: str
    config: LoraConfig
    modules: Mapping[str, SeenModule]
    base: BaseName
    model_type: str | None = None
    saved: tuple[str, ...] | None = None
    parameters: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = field(default=())
    is_complete: bool = True
