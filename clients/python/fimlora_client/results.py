"""What a succeeded job delivers."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fimlora_client.errors import MissingExtra
from fimlora_contract.artifacts import Artifact
from fimlora_contract.charts.notebook import plan_bundle
from fimlora_contract.jobs import CalibrationResult, Job
from fimlora_contract.rank_maps import RankMap

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True, slots=True)
class Result:
    """The adapter config, the rank map and the links to the files.

    Attributes:
        job: The job that made it.
        digest: Content address: equal digests are equal results.
        adapter_config: What ``adapter_config.json`` holds.
        rank_map: What ``rank_map.json`` holds.
        artifacts: The files with their digests.
    """

    job: Job
    digest: str
    adapter_config: dict[str, Any]
    rank_map: RankMap
    artifacts: tuple[Artifact, ...]

    @classmethod
    def of(cls, job: Job) -> "Result":
        """The result of a calibration that has succeeded."""
        assert isinstance(job.result, CalibrationResult)
        return cls(
            job=job,
            digest=job.result.digest,
            adapter_config=job.result.adapter_config,
            rank_map=job.result.rank_map,
            artifacts=tuple(job.result.artifacts),
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """What a notebook shows."""
        rank_map = self.rank_map.model_dump(mode="json")
        return plan_bundle(rank_map, day=f"{self.job.created_at:%Y-%m-%d}")

    @property
    def cached(self) -> bool:
        """Whether an equal request had been answered before."""
        return self.job.cached

    @property
    def rank_pattern(self) -> dict[str, int]:
        """The rank of every target module by its full name."""
        return {module.name: module.rank for module in self.rank_map.modules}

    def to_lora_config(self) -> "LoraConfig":
        """The config as PEFT's own object, ready for ``get_peft_model``.

        Raises:
            MissingExtra: PEFT is not installed.
        """
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise MissingExtra(
                "to_lora_config() needs peft, which is not installed: "
                "pip install 'fimlora[engine]'"
            ) from error
        # A copy: PEFT keeps and changes the lists and dicts that it is given.
        config: LoraConfig = LoraConfig.from_peft_type(**copy.deepcopy(self.adapter_config))
        return config
