"""Plans of an evaluation must have been made beside the same modules that train whole."""

import pytest

from fimlora import TargetModule
from fimlora_contract.evaluations import EvaluationRequest
from fimlora_contract.rank_maps import RankMap
from fimlora_service.errors import ValidationFailed
from fimlora_service.evaluations.resolving import check_saved
from support.plans import plan_of

MODULES = tuple(TargetModule(f"layers.{n}.query", 16, 16) for n in range(2))


def maps_with(*names):
    facts = {"modules_to_save": dict.fromkeys(names, 9)} if names else {}
    plan = plan_of(MODULES, [3, 2], provenance=facts)
    return {"mine": RankMap.model_validate(plan.to_json())}


@pytest.mark.parametrize(
    ("asked", "made", "odd"),
    [
        (None, [], None),
        (["lm_head"], ["lm_head"], None),
        (["embed_tokens", "lm_head"], ["model.embed_tokens", "lm_head"], None),
        (None, ["lm_head"], "'lm_head' is in one only"),
        (["lm_head"], [], "'lm_head' is in one only"),
        (["lm_head"], ["lm_head", "model.norm"], "'model.norm' is in one only"),
    ],
)
def test_the_same_or_refused_by_name(body, asked, made, odd):
    given = {k: v for k, v in body.items() if k in {"base_model", "dataset", "budget"}}
    request = EvaluationRequest.model_validate(given | {"modules_to_save": asked})

    if odd is None:
        check_saved(request, maps_with(*made))
        return
    with pytest.raises(ValidationFailed, match=odd):
        check_saved(request, maps_with(*made))
