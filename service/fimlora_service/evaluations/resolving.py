"""From an evaluation's names to content: what is held out, the plans that are given, the digest.

What can be known from files, headers and first rows is refused here, before anything is queued.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fimlora.whole_names import MODULES_TO_SAVE
from fimlora_contract.digests import digest_of
from fimlora_contract.evaluations import EVAL_SHARE, FEWEST_HELD_OUT, EvaluationRequest
from fimlora_contract.rank_maps import RankMap, RankMapModule
from fimlora_contract.references import HubDataset
from fimlora_contract.requests import DIGEST
from fimlora_jobs.catalogue import Catalogue
from fimlora_jobs.datasets.columns import NO_MEDIA_IN_EVALUATIONS, TextFields, check_same
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.runs import TRAINING
from fimlora_jobs.store import JobStore
from fimlora_service.errors import BudgetInfeasible, DatasetSchema, NoPattern, ValidationFailed
from fimlora_service.keys.access import check_result, shown_to
from fimlora_service.keys.principal import Principal
from fimlora_service.resolve.endings import Endings
from fimlora_service.resolve.resolver import Resolved, Resolver, schema_errors
from fimlora_service.resolve.target_checks import inside_block
from fimlora_service.results.reading import plan_of, read_pattern

TRAINED = frozenset({"seeds", "steps", "batch_size", "max_length", "learning_rates", "quick"})
HELD_OUT = frozenset({"eval_split", "eval_share", "eval_rows"})


@dataclass(frozen=True, slots=True)
class EvaluationResolver:
    """Resolves evaluations.

    Attributes:
        resolver: Resolves what they share with calibrations.
        store: Where jobs and pins are on record.
        artifacts: What keeps the plans.
        principal: Who asks.
    """

    resolver: Resolver
    store: JobStore
    artifacts: TrackedArtifacts
    principal: Principal

    def resolve(self, request: EvaluationRequest) -> Resolved:
        """Pin an evaluation to content.

        Args:
            request: The request.

        Raises:
            ServiceError: Names what is missing or wrong, and what is allowed.
        """
        self._check_text_alone(request)
        resolved = self.resolver.resolve(request)
        references = dict(resolved.references)
        held_out = self._held_out(request, references["dataset"])
        if held_out and held_out.get("media"):
            raise DatasetSchema(NO_MEDIA_IN_EVALUATIONS)
        plans = {name: self._digest(given) for name, given in request.plans.items()}
        self._check_plans(request, plans)
        is_restricted = bool(held_out and held_out.get("restricted"))
        restricted = self.resolver.salt(is_restricted=True)
        tenant = restricted if is_restricted else resolved.tenant
        content = {
            "training": TRAINING,
            "measured": resolved.digest,
            "held_out": held_out
            and {"digest": held_out["digest"], "fields": held_out["fields"]},
            "methods": request.wanted_methods,
            "plans": plans,
            **request.model_dump(mode="json", include=set(TRAINED | HELD_OUT)),
            # What only some may read is found only by who may read it.
            **({"tenant": tenant} if tenant else {}),
        }
        return replace(
            resolved,
            references=references
            | ({"held_out": held_out} if held_out else {})
            | ({"plans": plans} if plans else {}),
            digest=digest_of(content),
            tenant=tenant,
            # A share that is held out is not measured either: no calibration's statistics do.
            statistics_digest=resolved.statistics_digest if held_out else "",
        )

    def _check_text_alone(self, request: EvaluationRequest) -> None:
        """Refuse what is seen or heard first: a model that reads it would not be trained on it, too.

        Raises:
            DatasetSchema: Rows that are here show something, or such a column is named.
        """
        check_named_columns(request)
        if not isinstance(request.dataset, HubDataset):
            task = request.calibration.task
            if self.resolver.resolve_dataset(request.dataset, task=task).get("media"):
                raise DatasetSchema(NO_MEDIA_IN_EVALUATIONS)

    def _held_out(
        self, request: EvaluationRequest, dataset: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        if request.held_out is None:
            check_share(request, dataset["rows"])
            return None
        held_out = self.resolver.resolve_dataset(
            request.held_out, task=request.calibration.task
        )
        if held_out["digest"] == dataset["digest"]:
            raise DatasetSchema("the held-out rows are the ones that are trained on")
        check_enough(request, n_train=dataset["rows"], n_held_out=held_out["rows"])
        if dataset["fields"] and held_out["fields"]:  # or they are known once it is loaded
            with schema_errors():
                check_same(TextFields(**dataset["fields"]), TextFields(**held_out["fields"]))
        return held_out

    def _digest(self, reference: str) -> str:
        """The content address of a plan that is named by digest, job or pin."""
        if re.fullmatch(DIGEST, reference):
            return check_result(reference, self.principal, self.store)
        if reference.startswith("job_") and "/" not in reference:
            return plan_of(shown_to(self.principal, reference, self.store).to_job()).digest
        pinned = Catalogue(self.store).find_pin(
            *reference.split("/"), owner=self.principal.tenant
        )
        if not pinned:
            raise NoPattern(f"nothing is pinned as {reference}")
        return pinned.history[0].digest

    def _check_plans(self, request: EvaluationRequest, plans: Mapping[str, str]) -> None:
        """See that given plans adapt the same modules and spend what the other arms will.

        Raises:
            BudgetInfeasible: One does not; the message has the budget to ask for.
        """
        maps = {
            name: read_pattern(self.artifacts, digest).rank_map
            for name, digest in plans.items()
        }
        if not maps:
            return
        check_all_train(maps)
        first_name, first = next(iter(maps.items()))
        for name, rank_map in maps.items():
            if _costs(rank_map) != _costs(first):
                raise BudgetInfeasible(
                    f"plans {first_name!r} and {name!r} are for different modules: they cannot "
                    "be compared at one budget"
                )
        check_targets(request, maps)
        check_saved(request, maps)
        check_scales(request, maps)
        step = max(_costs(first).values()) * request.allocation.multiple_of
        wanted = spent_by_uniform(request, first)
        for name, rank_map in maps.items():
            spent = rank_map.spent["parameters"]
            if wanted is not None and abs(spent - wanted) >= step:
                raise BudgetInfeasible(
                    f"plan {name!r} spends {spent:,} parameters, uniform ranks at this budget "
                    f"{wanted:,}: all arms must spend the same; give budget "
                    f'{{"parameters": {spent}}}, or a plan for this budget'
                )


def check_all_train(maps: Mapping[str, RankMap]) -> None:
    """Refuse plans that train some experts: random ones beside them are planned by methods.

    Raises:
        ValidationFailed: There is one.
    """
    for name, rank_map in maps.items():
        is_some = any(module.experts is not None for module in rank_map.modules)
        if is_some or rank_map.provenance.get("expert_selection") is not None:
            raise ValidationFailed(
                f"plan {name!r} trains some experts, beside which random ones are to be trained; "
                "give methods and allocation.experts in place of the plan, which makes both"
            )


def check_targets(request: EvaluationRequest, maps: Mapping[str, RankMap]) -> None:
    """Refuse plans for other modules than are named: the controls adapt those.

    What an expression or an architecture's convention means is for the worker to see.

    Raises:
        ValidationFailed: There is one; the message has what it lacks, or has besides.
    """
    entries, excluded = request.target_modules, request.exclude_modules
    experts = request.target_parameters
    if not isinstance(entries, list):
        return
    if isinstance(experts, list):
        entries = [*entries, *experts]
    left_out = excluded if isinstance(excluded, list) else []
    for name, rank_map in maps.items():
        rows = rank_map.modules
        modules = [m.name for m in rows if m.n_experts is None or experts != "all"]
        endings = Endings(dict.fromkeys(modules))
        named, not_named = _meant_by(entries, endings), endings.meant_by(left_out)
        for module in modules:
            if module not in named or module in not_named:
                raise ValidationFailed(
                    f"plan {name!r} adapts {module!r}, which target_modules={entries} and "
                    f"exclude_modules={excluded} leave out: all arms must adapt the same modules; "
                    "give the target_modules that the plan was made with"
                )
        missing = _meaning_none(entries, endings)
        if missing and not excluded:
            raise ValidationFailed(
                f"plan {name!r} adapts no {missing[0]!r}, which target_modules name: all arms "
                "must adapt the same modules; give the target_modules that the plan was made with"
            )


def check_saved(request: EvaluationRequest, maps: Mapping[str, RankMap]) -> None:
    """Refuse plans beside which other modules train whole than are named.

    Raises:
        ValidationFailed: There is one; the message has what to ask for.
    """
    entries = request.modules_to_save or []
    for name, rank_map in maps.items():
        saved = list(rank_map.provenance.get(MODULES_TO_SAVE) or ())
        endings = Endings(saved)
        named = _meant_by(entries, endings)
        odd = [n for n in saved if n not in named]
        odd += _meaning_none(entries, endings)
        if odd:
            raise ValidationFailed(
                f"plan {name!r} was made with modules_to_save={saved or None}, and this request "
                f"has {entries or None}: all arms must train the same modules whole, and "
                f"{odd[0]!r} is in one only; give the modules_to_save that the plan was made with"
            )


def _meant_by(entries: Iterable[str], endings: Endings) -> set[str]:
    """What entries may mean, wherever its stack stands in the tree."""
    forms = (form for each in entries for form in (each, inside_block(each)))
    return endings.meant_by(forms)


def _meaning_none(entries: Iterable[str], endings: Endings) -> list[str]:
    """Entries that mean nothing, wherever its stack stood."""
    return [e for e in entries if e not in endings and inside_block(e) not in endings]


def check_scales(request: EvaluationRequest, maps: Mapping[str, RankMap]) -> None:
    """Refuse plans of another scale: that is another learning rate.

    Raises:
        ValidationFailed: There is one; the message has what to ask for.
    """
    for name, rank_map in maps.items():
        if rank_map.scaling != "constant":
            raise ValidationFailed(
                f"plan {name!r} has one alpha for all modules, so that their scales differ: all "
                "arms must have one scale; give a plan that was made with scale in place of alpha"
            )
        if rank_map.scale != request.adapter.scale:
            raise ValidationFailed(
                f"plan {name!r} has scale {rank_map.scale}, this request {request.adapter.scale}: "
                f'all arms must have one scale; give adapter {{"scale": {rank_map.scale}}}'
            )


def check_named_columns(request: EvaluationRequest) -> None:
    """Refuse columns of images or sounds by their roles alone: rows of the hub are not here yet.

    Raises:
        DatasetSchema: A dataset names one.
    """
    for dataset in (request.dataset, request.held_out):
        if dataset is not None and (dataset.columns.images or dataset.columns.audio):
            raise DatasetSchema(NO_MEDIA_IN_EVALUATIONS)


def check_share(request: EvaluationRequest, n_rows: int | None) -> None:
    """Refuse a share that leaves too few rows, where their number is known."""
    if n_rows is not None:
        n_held_out = min(
            int(n_rows * (request.eval_share or EVAL_SHARE)), request.schedule.n_eval_rows
        )
        check_enough(request, n_train=n_rows - n_held_out, n_held_out=n_held_out)


def check_enough(
    request: EvaluationRequest, *, n_train: int | None, n_held_out: int | None
) -> None:
    """Refuse too few rows to train on or to test on, where their numbers are known.

    Raises:
        DatasetSchema: There are too few.
    """
    if n_held_out is not None and n_held_out < FEWEST_HELD_OUT:
        raise DatasetSchema(
            f"{n_held_out} rows would be held out; at least {FEWEST_HELD_OUT} are needed: give "
            "more rows, or a larger eval_share"
        )
    if n_train is not None and n_train < request.batch_size:
        raise DatasetSchema(
            f"{n_train} rows are left to train on, fewer than one batch of {request.batch_size}: "
            "give more rows, a smaller eval_share, or a smaller batch_size"
        )


def spent_by_uniform(request: EvaluationRequest, rank_map: RankMap) -> int | None:
    """Parameters of uniform ranks over a plan's modules; ``None`` where only a model tells."""
    budget = request.budget
    if budget.rank is not None:
        ranks = [min(budget.rank, m.d_in, m.d_out) for m in rank_map.modules]
        allocation = request.allocation
        constraints = allocation.groups or allocation.rank_menu or allocation.per_type
        if constraints or any(rank % allocation.multiple_of for rank in ranks):
            return None  # which modules get more than others is for the allocation to say
        return sum(rank * _cost(m) for rank, m in zip(ranks, rank_map.modules, strict=True))
    if budget.bytes is not None:
        return budget.bytes // budget.bytes_per_parameter
    return budget.parameters


def _costs(rank_map: RankMap) -> dict[str, int]:
    return {module.name: _cost(module) for module in rank_map.modules}


def _cost(module: RankMapModule) -> int:
    """Trainable parameters of one rank."""
    n_trained = (module.n_experts or 1) if module.experts is None else len(module.experts)
    return n_trained * (module.d_in + module.d_out)
