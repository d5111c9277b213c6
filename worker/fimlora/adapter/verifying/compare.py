"""An adapter that was seen, held against what was planned: modules, ranks, scales, parameters.

Pure comparison of what two readers hand over: `fimlora.adapter.verifying.folder` of files, and
`fimlora.adapter.verifying.live` of a model. Nothing here imports torch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fimlora.adapter.config import WRAPPER_PREFIX, dotted_ends
from fimlora.adapter.trained.patterns import first_keys
from fimlora.adapter.verifying.findings import Fault, Totals, Verification, weightiest_first
from fimlora.adapter.verifying.fused import fused_into
from fimlora.adapter.verifying.intended import BaseName, Intended
from fimlora.adapter.verifying.names import hold_by_plan, other_names
from fimlora.adapter.verifying.seen import SeenAdapter, SeenModule
from fimlora.whole_names import FULL_NAMES, UNTIED

_CLASSIFIERS = ("SEQ_CLS", "TOKEN_CLS")
_PATTERNS = ("rank_pattern", "alpha_pattern")


def compare(intended: Intended, seen: SeenAdapter) -> Verification:
    """Hold an adapter against its plan.

    Args:
        intended: What was planned.
        seen: What there is.

    Returns:
        What was found.
    """
    ranks = {name: rank for name, rank in intended.plan.ranks.items() if rank}
    missing = [name for name in ranks if name not in seen.modules]
    extra = [name for name in seen.modules if name not in ranks]
    pairs = other_names(missing, extra)
    held = {name: name for name in ranks if name in seen.modules} | pairs
    case = _Case(intended, seen, ranks, held)
    faults = [
        *seen.faults,
        *_other_base(intended, seen),
        *_placed(case, pairs, missing, extra),
        *_keys_for_nothing(case),
        *_measured(case),
        *_experts(case),
        *_saved(intended, seen),
    ]
    planned, found = _totals(case)
    if not faults and planned.parameters != found.parameters:
        faults.append(_of_parameters(planned, found))
    return Verification(
        subject=seen.subject,
        planned=planned,
        found=found,
        faults=weightiest_first({(f.code, f.module + f.message): f for f in faults}),
        notes=(*seen.notes, *_notes(case, pairs)),
    )


@dataclass(frozen=True, slots=True)
class _Case:
    """Both sides, and which planned module is which seen one."""

    intended: Intended
    seen: SeenAdapter
    ranks: Mapping[str, int]
    held: Mapping[str, str]

    def module(self, name: str) -> SeenModule:
        return self.seen.modules[self.held[name]]

    @property
    def common_rank(self) -> int | None:
        """The one rank of all modules, if there is one that no planned rank exceeds."""
        found = {module.rank for module in self.seen.modules.values()}
        highest = max(self.ranks.values())
        return found.pop() if len(found) == 1 and max(found) >= highest else None

    @property
    def is_padded(self) -> bool:
        """Whether some module is wider than planned by zeros, as in layout C."""
        return self.common_rank is not None and any(self.is_padding(name) for name in self.held)

    def is_padding(self, name: str) -> bool:
        """Whether all that a module has beyond its planned rank is zero."""
        module = self.module(name)
        used, rank = module.used, self.ranks[name]
        return used is not None and used <= rank < module.rank == self.common_rank


def _other_base(intended: Intended, seen: SeenAdapter) -> Iterator[Fault]:
    """Where the base model is certainly another one."""
    planned, found = intended.base, seen.base
    if planned.digest and found.digest:
        if planned.digest != found.digest:
            yield _other_files(planned, found)
    elif planned.hub_id and found.hub_id and planned.hub_id.lower() != found.hub_id.lower():
        yield _base_fault(planned.hub_id, found.hub_id)
    elif intended.model_type and seen.model_type not in {None, intended.model_type}:
        yield _base_fault(intended.model_type, str(seen.model_type))
    elif _same_model(planned, found) and _differ(planned.revision, found.revision):
        yield _base_fault(f"revision {planned.revision}", f"revision {found.revision}")


def _base_fault(planned: str, found: str) -> Fault:
    message = f"the base model is {found}, planned is {planned}"
    return Fault("base_model", "", planned, found, message)


def _other_files(planned: BaseName, found: BaseName) -> Fault:
    message = f"the files of the base model in {found.name} are not those that were calibrated"
    return Fault("base_model", "", str(planned.digest), str(found.digest), message)


def _same_model(planned: BaseName, found: BaseName) -> bool:
    return planned.hub_id is not None and found.hub_id is not None


def _differ(planned: str | None, found: str | None) -> bool:
    """Whether two revisions are commits, and not the same; a branch tells nothing."""
    if not (planned and found) or not (_is_commit(planned) and _is_commit(found)):
        return False
    return not (planned.startswith(found) or found.startswith(planned))


def _is_commit(revision: str) -> bool:
    return len(revision) >= 7 and set(revision) <= set("0123456789abcdef")


def _placed(
    case: _Case, pairs: Mapping[str, str], missing: list[str], extra: list[str]
) -> Iterator[Fault]:
    """Modules that are renamed, merged, missing or not in the plan."""
    if pairs and not hold_by_plan(case.intended.plan, pairs):
        name, other = next(iter(pairs.items()))
        yield Fault(
            "renamed", "", name, other,
            f"{len(pairs)} of {len(case.ranks)} modules have other names than planned, such as "
            f"{other} for {name}",
        )  # fmt: skip
    lost = [name for name in missing if name not in pairs]
    odd = [name for name in extra if name not in pairs.values()]
    parts = fused_into(case.intended.plan, lost, odd, case.seen)
    for whole, names in parts.items():
        yield Fault(
            "fused", whole, ", ".join(names[:4]), whole,
            f"LoRA is on {whole}, which is {len(names)} planned modules in one ({names[0]}, ...)",
        )  # fmt: skip
    merged = {name for names in parts.values() for name in names}
    if case.seen.is_complete:
        yield from (_missing(case, name) for name in lost if name not in merged)
    for name in odd:
        if name not in parts:
            rank = case.seen.modules[name].rank
            message = f"{name} has rank {rank} and is not in the plan"
            yield Fault("extra", name, "no LoRA", f"rank {rank}", message)


def _missing(case: _Case, name: str) -> Fault:
    rank = case.ranks[name]
    holders = [s for s in case.seen.saved or () if name == s or name.startswith(f"{s}.")]
    why = f": it is part of {holders[0]}, which is trained in full" if holders else ""
    message = f"{name} is planned with rank {rank} and has no LoRA{why}"
    return Fault("missing", name, f"rank {rank}", "no LoRA", message)


def _keys_for_nothing(case: _Case) -> Iterator[Fault]:
    """Keys of patterns that no module's name matches, so that they do nothing."""
    # A key of a module that is missing is no second fault.
    names = [*case.seen.modules, *(name for name in case.ranks if name not in case.held)]
    for field in _PATTERNS:
        keys = [*(case.seen.config.fields.get(field) or {})]
        idle = [key for key in keys if not first_keys(field, [key], names)]
        if idle:
            why = ""
            if idle[0].lstrip("^").startswith(WRAPPER_PREFIX):
                why = f", as it starts with {WRAPPER_PREFIX!r}"
            yield Fault(
                "pattern_unmatched", field, "a module per key", idle[0],
                f"{len(idle)} of {len(keys)} keys of {field} match no module{why}, such as "
                f"{idle[0]!r}",
            )  # fmt: skip


def _measured(case: _Case) -> Iterator[Fault]:
    """Sizes, ranks and scales of the modules that are there."""
    keys = _keys_by_module(case)
    targets = {m.name: m for m in case.intended.plan.modules}
    for name in case.held:
        module, target = case.module(name), targets[name]
        if module.d_in and (module.d_in, module.d_out) != (target.d_in, target.d_out):
            yield _shape(name, (target.d_in, target.d_out), (module.d_in, module.d_out))
        elif module.rank != case.ranks[name] and not case.is_padding(name):
            yield _rank(case, name, keys["rank_pattern"])
        elif not math.isclose(module.scale, _scale(case, name), rel_tol=1e-6):
            yield _other_scale(case, name, keys)


def _experts(case: _Case) -> Iterator[Fault]:
    """Experts that train and are not selected, and selected ones that cannot train."""
    targets = {m.name: m for m in case.intended.plan.modules}
    for name in case.held:
        planned, found = targets[name].experts, case.module(name).experts
        if planned is None or found is None:
            continue
        told = f"experts {_listed(planned)}", f"experts {_listed(found)}"
        if odd := sorted({*found} - {*planned}):
            message = (
                f"{name}: A or B of expert {odd[0]} is not zero ({len(odd)} such experts), and the "
                f"plan trains {len(planned)} of {targets[name].n_matrices} experts without it"
            )
            yield Fault("experts", name, *told, message)
        elif found and (idle := sorted({*planned} - {*found})):
            message = f"{name}: A and B of expert {idle[0]} are zero, and the plan trains it"
            yield Fault("experts", name, *told, message)


def _listed(experts: Sequence[int]) -> str:
    return ", ".join(map(str, experts[:8])) + (", ..." if len(experts) > 8 else "") or "none"


def _keys_by_module(case: _Case) -> dict[str, dict[str, str]]:
    """The key of each pattern that holds for a module, by its name in the adapter."""
    names, fields = [*case.held.values()], case.seen.config.fields
    return {
        field: first_keys(field, [*(fields.get(field) or {})], names) for field in _PATTERNS
    }


def _scale(case: _Case, name: str) -> float:
    return float(case.intended.plan.scale_of(name))


def _shape(name: str, planned: tuple[int, int], found: tuple[int, int]) -> Fault:
    sizes = [f"{d_in} to {d_out}" for d_in, d_out in (planned, found)]
    message = f"{name} maps {sizes[1]} features, planned is {sizes[0]}: another base model"
    return Fault("shape", name, sizes[0], sizes[1], message)


def _rank(case: _Case, name: str, keys: Mapping[str, str]) -> Fault:
    planned, module = case.ranks[name], case.module(name)
    told = (f"rank {planned}", f"rank {module.rank}")
    if case.common_rank and (case.intended.width or case.is_padded):
        used = "not zero" if module.used is None else f"not zero up to rank {module.used}"
        message = (
            f"{name} is padded from rank {planned} to {module.rank}, and what pads it is {used}"
        )
        return Fault("padding", name, *told, message)
    is_default = module.rank == case.seen.config.fields.get("r", 8)
    if is_default and case.held[name] not in keys:
        message = (
            f"{name} has the default rank {module.rank}, planned is {planned}: no key of "
            "rank_pattern matches it"
        )
        return Fault("default_rank", name, *told, message)
    return Fault("rank", name, *told, f"{name} has rank {module.rank}, planned is {planned}")


def _other_scale(case: _Case, name: str, keys: Mapping[str, Mapping[str, str]]) -> Fault:
    planned, found, fields = (
        _scale(case, name),
        case.module(name).scale,
        case.seen.config.fields,
    )
    told = (f"scale {planned:.6g}", f"scale {found:.6g}")
    message = f"{name} has scale {found:.6g}, planned is {planned:.6g}"
    is_rslora = bool(fields.get("use_rslora"))
    if is_rslora != (case.intended.plan.scaling == "rslora" and not case.is_padded):
        why = "on, and is not planned" if is_rslora else "off, and is planned"
        return Fault("rslora", name, *told, f"{message}: use_rslora is {why}")
    other = case.held[name]
    if other in keys["rank_pattern"] and other not in keys["alpha_pattern"]:
        why = "rank_pattern has a key for it and alpha_pattern has none"
        return Fault("alpha_lost", name, *told, f"{message}: {why}")
    return Fault("scale", name, *told, message)


def _saved(intended: Intended, seen: SeenAdapter) -> Iterator[Fault]:
    """Modules that are trained in full, as far as both sides tell of them."""
    if intended.saved is None or seen.saved is None:
        return
    is_classifier = seen.config.fields.get("task_type") in _CLASSIFIERS
    meant = (*intended.saved, *(FULL_NAMES if is_classifier else ()))
    if seen.config.fields.get("ensure_weight_tying") and (pairs := _untied(intended)):
        name, other = pairs[0]
        yield Fault(
            "saved", name, "a copy of its own", "one weight",
            f"ensure_weight_tying keeps {name} one weight with {other}, and planned is a copy of its own",
        )  # fmt: skip
    knows_all = intended.has_head or not is_classifier
    for name in seen.saved if knows_all else ():
        if not any(holder.endswith(meant) for holder in _holders(name)):
            message = f"{name} is trained in full, which is not planned"
            yield Fault("saved", name, "frozen", "trained in full", message)
    there = {end for n in seen.saved for holder in _holders(n) for end in dotted_ends(holder)}
    for name in intended.saved:
        if name not in there:
            message = f"{name} is planned to be trained in full, and is not"
            yield Fault("saved", name, "trained in full", "not saved", message)


def _untied(intended: Intended) -> list[tuple[str, str]]:
    """Modules that are planned to be trained as copies, with what they share a weight with."""
    return [*(intended.plan.provenance.get(UNTIED) or {}).items()]


def _holders(name: str) -> list[str]:
    """A name, and those of all modules that it is inside of."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _totals(case: _Case) -> tuple[Totals, Totals]:
    costs = {m.name: m.held_cost for m in case.intended.plan.modules}
    width = case.common_rank if case.is_padded else None
    planned = {name: width or rank for name, rank in case.ranks.items()}
    modules = case.seen.modules.values()
    known = {name: costs[name] for name in case.held}
    parameters = sum(m.parameters for m in modules)
    if not case.seen.is_complete:
        parameters = sum(case.module(name).rank * cost for name, cost in known.items())
    return (
        Totals(len(planned), sum(planned.values()), _spent(planned, costs)),
        Totals(len(modules), sum(m.rank for m in modules), parameters),
    )


def _spent(ranks: Mapping[str, int], costs: Mapping[str, int]) -> int:
    return sum(rank * costs[name] for name, rank in ranks.items())


def _of_parameters(planned: Totals, found: Totals) -> Fault:
    told = f"{planned.parameters:,}", f"{found.parameters:,}"
    return Fault("parameters", "", *told, f"{told[1]} parameters train, planned are {told[0]}")


def _notes(case: _Case, pairs: Mapping[str, str]) -> Iterable[str]:
    planned, found = case.intended.base, case.seen.base
    if planned.digest and found.digest:
        yield "the files of the base model were compared"
    elif not _same_model(planned, found) and planned.name != found.name:
        yield (
            f"base models are called {found.name!r} and {planned.name!r} in the plan, which tells "
            "nothing; sizes of modules were compared"
        )
    elif not (planned.revision and found.revision):
        yield "the revision of the base model is not known on both sides and was not compared"
    if pairs and hold_by_plan(case.intended.plan, pairs):
        yield "modules have the names of the other class that the plan's names hold for"
    if n_selected := sum(m.experts is not None for m in case.intended.plan.modules):
        spent = case.intended.plan.spent.parameters
        is_seen = all(case.module(name).experts is not None for name in case.held)
        yield (
            f"experts are selected in {n_selected} modules: {spent:,} of these parameters train"
            + ("" if is_seen else "; which ones is said by weights, that were not compared")
        )
    if case.is_padded:
        yield f"padded to rank {case.common_rank}; the padding is zero"
    trained = [module.is_trained for module in case.seen.modules.values()]
    if idle := trained.count(False):
        yield (
            "B is zero in every module: it is not trained yet"
            if idle == len(trained)
            else f"B is still zero in {idle} of {len(trained)} modules: no gradient reached them"
        )
