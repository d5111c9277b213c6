"""Whether two results have drifted further apart than is allowed, and than noise explains."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from fimlora_contract.rank_patterns import DriftJudgement, JudgedDrift, RankDrift

Kind = Literal["ranks", "scores", "experts"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_LIMIT = re.compile(r"(?:(ranks|scores|experts)=)?(\d{1,9}(?:\.\d{1,12})?|\.\d{1,12})(%?)")


def read_limits(texts: Iterable[str]) -> dict[Kind, float]:
    """Limits by kind from ``5%`` or ``0.05`` for all, ``ranks=5%`` or ``scores=10%`` for one.

    Raises:
        ValueError: A text is no limit from 0 to 100%, or says once more what another says.
    """
    every: dict[Kind, float] = {}
    single: dict[Kind, float] = {}
    for text in texts:
        match = _LIMIT.fullmatch(text.strip())
        limit = float(match[2]) / (100 if match[3] else 1) if match else 2.0
        if match is None or limit > 1:
            raise ValueError(
                f"{text!r} is no limit; give a share of what is there, from 0 to 100%, such as 5% "
                "or 0.05, for one kind ranks=5%, scores=10% or experts=0"
            )
        kinds, into = ((match[1],), single) if match[1] else (KINDS, every)
        for kind in KINDS:
            if kind in kinds and into.setdefault(kind, limit) != limit:
                raise ValueError(f"{text!r} contradicts another limit of {kind}; give one")
    return every | single


def judge(drift: RankDrift, limits: Mapping[Kind, float]) -> DriftJudgement:
    """Hold a drift against limits; what is within noise does not fail.

    Args:
        drift: How far two results lie apart.
        limits: The share that may move, by kind; a kind without a limit is not judged, nor are
            experts, beside other kinds, where neither of the two selects any.
    """
    figures = {
        "ranks": (drift.share_moved, drift.rank_noise),
        "scores": (drift.share_of_scores_moved, drift.score_noise),
        "experts": (drift.share_of_experts_moved, None),
    }
    given = [kind for kind in KINDS if kind in limits]
    if drift.share_of_experts_moved is None and len(given) > 1:
        given = [kind for kind in given if kind != "experts"]
    kinds = [_judged(kind, *figures[kind], limits[kind]) for kind in given]
    fails = any(kind.fails for kind in kinds)
    sentence = "; ".join(kind.sentence for kind in kinds)
    return DriftJudgement(
        fails=fails, sentence=f"{'drift' if fails else 'no drift'}: {sentence}", kinds=kinds
    )


def _judged(kind: Kind, moved: float | None, noise: float | None, limit: float) -> JudgedDrift:
    above = moved is not None and moved > limit
    fails = above and (noise is None or (moved or 0) > noise)
    return JudgedDrift(
        of=kind,
        moved=moved,
        noise=noise,
        limit=limit,
        fails=fails,
        sentence=_sentence(kind, moved, noise, limit),
    )


def _sentence(kind: Kind, moved: float | None, noise: float | None, limit: float) -> str:
    if moved is None and kind == "experts":
        return "experts are not judged, as neither of the two selects any"
    if moved is None:
        return f"{kind} are not judged, as one of the two goes by none"
    above = f"{percent(moved)} of the {kind} moved, {_held(moved, limit)} {percent(limit)}"
    if noise is None:
        return f"{above}; what other rows would move is not known"
    rows = f"other rows would move up to {percent(noise)}"
    if moved > limit and moved <= noise:
        return f"{above}, but within the noise: {rows}"
    return f"{above}; {rows}"


def _held(moved: float, limit: float) -> str:
    return "above the limit of" if moved > limit else "within the limit of"


def percent(share: float) -> str:
    """A share in percent, with so many digits that one that is not zero does not read so."""
    in_percent = 100 * share
    if in_percent == 0 or in_percent >= 0.1:
        return f"{in_percent:.2f}".rstrip("0").rstrip(".") + "%"
    return f"{in_percent:.2g}%"
