"""Rank maps with ranks, scores and noise that the test chooses."""

from typing import Any

from fimlora_contract.rank_maps import RankMap


def map_of(
    modules: dict[str, tuple[int, float]],
    *,
    rule: str = "proportional",
    method: str | None = "fim",
    noise: tuple[float, float] | None = None,
    n_experts: int | None = None,
    experts: dict[str, list[int]] | None = None,
    **more: Any,
) -> RankMap:
    """A rank map with these ranks and scores, and how noisy it says they are.

    With `n_experts` every module is one of fused experts, of which `experts` names those that
    train, by module; all do where it names none.
    """
    selected = experts or {}
    confidence = {
        "n_examples": 64, "n_resamples": 200, "level": 0.95, "expected_overlap": 0.99,
        "n_unresolved": 0, "standard_errors": [], "lowest_ranks": [], "highest_ranks": [],
        "shares": [],
    }  # fmt: skip
    if noise is not None:
        more["confidence"] = confidence | {"rank_noise": noise[0], "score_noise": noise[1]}
    return RankMap.model_validate(
        {
            "format": "fimlora.rank_map/1", "budget": {}, "rule": rule, "method": method,
            "r_min": 0, "r_max": 64, "scale": 2, "controls": {}, "provenance": {},
            "spent": {"ranks": sum(r for r, _ in modules.values()), "parameters": 1},
            "modules": [
                {"name": name, "d_in": 8, "d_out": 8, "layer": 0, "kind": name.rpartition(".")[2], "alpha": 1,
                 "parameters": 16 * rank, "score": score, "rank": rank, "n_experts": n_experts, "experts": selected.get(name)}
                for name, (rank, score) in modules.items()
            ],
            **more,
        }
    )  # fmt: skip
