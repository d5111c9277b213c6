"""Which linear maps of a model are target modules, and where they sit.

Names are those of the base model's tree. On a model that PEFT has wrapped, a LoRA layer
stands where the linear map was; its ``base_layer`` is that map, and what is measured.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fimlora.errors import UnknownTarget, UnsupportedModule
from fimlora.left_out import (
    DRAWN_ANEW,
    EXCLUDED,
    FUSED_EXPERTS,
    NOT_A_PRODUCT,
    OTHER_CLASS,
    OUTPUT_HEAD,
    SAVED_WHOLE,
)
from fimlora.model.compiled import plain_name
from fimlora.model.default_targets import default_target_modules
from fimlora.model.embeddings import tied_groups
from fimlora.model.experts.fused import (
    describe_experts,
    fused_experts,
    names_meant,
    unfit_experts,
)
from fimlora.model.experts.wrapped import adapts_parameter, carriers_of_parameters
from fimlora.model.expressions import matching
from fimlora.model.families import with_families
from fimlora.model.linear_kinds import features_of, weight_of
from fimlora.model.naming import (
    Modules,
    is_ending,
    is_linear,
    linear_maps,
    named_endings,
    names_excluded,
    names_of_entries,
    names_of_expression,
)
from fimlora.model.own_forward import returns_its_product
from fimlora.model.packed_weights import logical_sizes
from fimlora.plan import TargetModule
from fimlora.whole_names import FULL_NAMES, TIED, inside_saved

ALL_LINEAR = "all-linear"
# Of some modules of a model, by name: which cannot be adapted as planned, and why.
Unadaptable = Callable[[nn.Module, Sequence[str]], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Choice:
    """The target modules of a model, and what was meant but is not one.

    Attributes:
        modules: The target modules, in the model's order; never none.
        not_targeted: Reason by name of a module, or of a parameter that holds several
            matrices.
        named: Modules that an entry of the choice means by itself: each is measured, or the
            choice is refused.
    """

    modules: tuple[TargetModule, ...]
    not_targeted: Mapping[str, str] = field(default_factory=dict)
    named: frozenset[str] = frozenset()

    def without(self, left_out: Mapping[str, str]) -> "Choice":
        """Leave out some more modules.

        Args:
            left_out: Reason by name.

        Returns:
            The choice of the others.
        """
        modules = tuple(m for m in self.modules if m.name not in left_out)
        not_targeted = dict(sorted({**self.not_targeted, **left_out}.items()))
        return replace(self, modules=modules, not_targeted=not_targeted)


def find_targets(
    model: nn.Module,
    target_modules: str | Sequence[str] | None = None,
    *,
    exclude_modules: str | Sequence[str] | None = None,
    target_parameters: str | Sequence[str] | None = None,
) -> tuple[TargetModule, ...]:
    """Find the target modules of a model, in the model's own order.

    Args:
        model: A transformers model, wrapped by PEFT or not.
        target_modules: Names or dotted name endings; ``"all-linear"`` for every linear map
            but the output head; any other string is a regular expression over full names,
            as in PEFT. ``None`` stands for the modules that carry LoRA already or, when
            none does, for the default of the architecture; see
            `fimlora.model.default_targets`.
        exclude_modules: What to leave out of these: names or dotted name endings, or a
            string that is a regular expression over full names.
        target_parameters: Which fused experts of a mixture are targets besides: ``"all"``, or
            names or dotted name endings of parameters. On a model that PEFT has wrapped, those
            that carry LoRA are.

    Returns:
        The target modules; never empty.

    Raises:
        InvalidOption: An empty list was given.
        UnknownTarget: An entry matches nothing; the message lists near names.
        UnsupportedModule: An entry matches something that is not a linear map, or nothing
            but fused experts.
    """  # noqa: DOC502 - the helpers raise
    return choose_targets(
        model,
        target_modules,
        exclude_modules=exclude_modules,
        target_parameters=target_parameters,
    ).modules


def choose_targets(
    model: nn.Module,
    target_modules: str | Sequence[str] | None = None,
    *,
    exclude_modules: str | Sequence[str] | None = None,
    target_parameters: str | Sequence[str] | None = None,
    names: Collection[str] | None = None,
    drawn: Collection[str] = (),
    saved: Collection[str] = (),
    unadaptable: Unadaptable | None = None,
) -> Choice:
    """Choose the target modules of a model, and say what is meant but is not one.

    Experts of a mixture that transformers keeps as one 3-D parameter are no linear maps of
    their own: they are left out unless they are asked for, as is all that an argument says.

    Args:
        model: A transformers model, wrapped by PEFT or not.
        target_modules: As for `find_targets`.
        exclude_modules: As for `find_targets`.
        target_parameters: As for `find_targets`.
        names: Full names of modules of the base model, in place of ``target_modules``; each is
            one of many, none is named by itself.
        drawn: Names of modules whose weights are drawn anew at every load.
        saved: Names of modules that are trained whole besides: nothing inside one is a target.
        unadaptable: Given the model and the names of modules, says by name which of them an
            adapter cannot hold as planned, and why.

    Returns:
        The target modules in the model's order, never none; and the others with reasons.

    Raises:
        UnknownTarget: As for `find_targets`, or all that was meant is left out.
        UnsupportedModule: As for `find_targets`, or a module that is named by itself can be none.
    """  # noqa: DOC502 - the helpers raise
    modules = dict(_base_modules(base_model_of(model)))
    experts = fused_experts(base_model_of(model))
    fused = sorted(experts)
    excluded = names_excluded(exclude_modules, modules, fused)
    if names is not None:
        wanted = {name for name in names if name in experts}
        meant = linear_maps("the adapter", set(names) - wanted, modules, excluded)
        meant_fused = set(wanted)
    else:
        wanted = names_meant(target_parameters, fused)
        if target_modules is None:
            wanted |= carriers_of_parameters(base_model_of(model)).keys()
        if target_modules == [] and wanted:
            meant = set()
        else:
            meant = _meant(model, target_modules, modules, fused, excluded=excluded)
        meant_fused = {*_fused_meant(model, target_modules, modules, fused)} | wanted
    unfit = dict.fromkeys(_no_products(meant - excluded, modules), NOT_A_PRODUCT)
    unfit |= dict.fromkeys((meant - excluded) & set(drawn), DRAWN_ANEW)
    unfit |= {n: DRAWN_ANEW for n in wanted - excluded if n.rpartition(".")[0] in drawn}
    unfit |= unfit_experts(wanted - excluded, experts)
    unfit |= dict.fromkeys(inside_saved((meant | wanted) - excluded, saved), SAVED_WHOLE)
    fit = _in_order(model, (meant | wanted) - excluded - unfit.keys())
    if unadaptable is not None:
        unfit |= unadaptable(model, fit)
    named = frozenset(_named_alone(target_modules, modules) - excluded)
    _refuse_named(unfit, named)
    _refuse_saved(unfit, target_modules, [*modules, *fused])
    left_out = dict.fromkeys(meant_fused - wanted, FUSED_EXPERTS) | unfit
    if _is_all_linear(target_modules):
        left_out |= dict.fromkeys(_other_classes(modules), OTHER_CLASS)
    left_out |= dict.fromkeys(excluded & (meant | meant_fused), EXCLUDED)
    targets = tuple(
        describe_experts(n, experts[n]) if n in wanted else _describe(n, modules[n])
        for n in fit
        if n not in unfit
    )
    if not targets:
        raise UnknownTarget(_none_left(left_out))
    if _is_all_linear(target_modules):  # it does not mean the head, but who uses it may
        heads = _output_head(base_model_of(model), modules) - excluded
        left_out |= dict.fromkeys(heads - inside_saved(heads, saved), OUTPUT_HEAD)
    if names is None:
        _refuse_ties(model, [module.name for module in targets])
    targets = with_families(base_model_of(model), modules, targets)
    return Choice(targets, dict(sorted(left_out.items())), named)


def ties_among(model: nn.Module, names: Collection[str]) -> list[tuple[str, ...]]:
    """Find embeddings and linear maps, among some modules, that are one weight.

    Args:
        model: A transformers model, wrapped by PEFT or not.
        names: Names of modules.

    Returns:
        Names of two modules or more, weight by weight; these are to have one rank.
    """
    return _ties(model, lambda name: name in names)


def facts_of_ties(
    model: nn.Module, names: Collection[str], *, saved: Iterable[str]
) -> dict[str, Any]:
    """Say of target modules that are one weight with other modules what a plan's provenance does.

    Args:
        model: A transformers model, wrapped by PEFT or not.
        names: Names of the target modules.
        saved: Names of the modules that train whole, as copies that are tied to nothing.

    Returns:
        Facts, of each target the names of the others with commas between; empty where there are
        none.
    """
    saved = list(saved)
    tied = {
        name: ", ".join(other for other in group if other != name)
        for group in _ties(model, lambda name: not inside_saved([name], saved))
        for name in group
        if name in names
    }
    return {TIED: dict(sorted(tied.items()))} if tied else {}


def head_tensors(model: nn.Module, *, drawn: Collection[str] = ()) -> dict[str, Tensor]:
    """Tensors that an adapter of a classifier trains and stores in full.

    PEFT does so with every module whose name ends in ``score`` or ``classifier``. Modules
    that are drawn anew at every load are stored too, so that all loads give one model.

    Args:
        model: A base model, without an adapter.
        drawn: Names of modules whose weights the checkpoint lacks.

    Returns:
        Tensor by parameter name; empty for models without a classification head.
    """
    whole = tuple(f"{name}." for name, _ in model.named_modules() if name.endswith(FULL_NAMES))
    inside = (*whole, *(f"{name}." for name in drawn))
    return {
        plain_name(name): parameter.detach()
        for name, parameter in model.named_parameters()
        if inside and name.startswith(inside)
    }


def locate(model: nn.Module, module: TargetModule) -> nn.Module:
    """Find the linear map behind a target module, inside its LoRA layer if it has one.

    Args:
        model: The model `find_targets` was asked about.
        module: One of its target modules.

    Returns:
        The module whose input and output are those of the linear map; of fused experts, the one
        that holds the parameter.
    """
    if module.n_experts is not None:
        return fused_experts(base_model_of(model))[module.name]
    return _unwrap_layer(base_model_of(model).get_submodule(module.name))


def all_linear_maps(model: nn.Module) -> list[TargetModule]:
    """List the linear maps of a model, its heads and what may be no target among them.

    Args:
        model: A transformers model, wrapped by PEFT or not; its weights are not looked at.

    Returns:
        Their names and sizes, in the model's order.
    """
    named = _base_modules(base_model_of(model))
    return [_describe(name, module) for name, module in named if is_linear(module)]


def uncompiled(model: nn.Module) -> nn.Module:
    """See through the wrapper of ``torch.compile``: hooks need the modules to run as such.

    Returns:
        The model that was compiled, or the model itself.
    """
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def base_model_of(model: nn.Module) -> nn.Module:
    """See through PEFT's wrapper.

    Returns:
        The transformers model itself.
    """
    model = uncompiled(model)
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        return cast("Callable[[], nn.Module]", model.get_base_model)()
    return model


def count_base_parameters(model: nn.Module) -> int:
    """Count the parameters of the base model, without what PEFT has added.

    Args:
        model: A transformers model, wrapped by PEFT or not; quantised weights count as the
            numbers they stand for.

    Returns:
        The number of parameters; shared ones count once.
    """
    base = base_model_of(model)
    repeated = _offloaded_ties(base)
    return sum(
        size
        for name, size in logical_sizes(base)
        if name not in repeated
        and not any(p.startswith(("lora_", "modules_to_save")) for p in name.split("."))
    )


def _offloaded_ties(model: nn.Module) -> set[str]:
    """Names of shared weights that offloading has torn apart, all but the first of each."""
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    tensors = dict(model.named_parameters(remove_duplicate=False))
    return {
        name
        for name, source in ties.items()
        if name in tensors
        and source in tensors
        and tensors[name].is_meta
        and tensors[name] is not tensors[source]
    }


def _meant(
    model: nn.Module,
    target_modules: str | Sequence[str] | None,
    modules: dict[str, nn.Module],
    fused: list[str],
    *,
    excluded: Set[str],
) -> set[str]:
    """Names of the linear maps that a choice means, with those that are excluded from it."""
    if target_modules is None:
        carriers = _carriers(model)
        if carriers or carriers_of_parameters(base_model_of(model)):
            return linear_maps("the adapter", carriers, modules, excluded)
        target_modules = default_target_modules(model, modules)
    if not isinstance(target_modules, str):
        return names_of_entries(target_modules, modules, fused, excluded)
    if _is_all_linear(target_modules):
        return _all_linear(base_model_of(model), modules)
    return names_of_expression(target_modules, modules, fused, excluded)


def _fused_meant(
    model: nn.Module,
    target_modules: str | Sequence[str] | None,
    modules: Modules,
    fused: list[str],
) -> list[str]:
    """Names of the fused experts that a choice means."""
    if not fused:
        return []
    if target_modules is None and (
        _carriers(model) or carriers_of_parameters(base_model_of(model))
    ):
        return []
    if target_modules is None:
        target_modules = default_target_modules(model, modules)
    if not isinstance(target_modules, str):
        return [n for n in fused if any(is_ending(e, n) for e in target_modules)]
    if _is_all_linear(target_modules):
        return fused
    return sorted(matching("target_modules", target_modules, fused))


def _is_all_linear(target_modules: str | Sequence[str] | None) -> bool:
    return isinstance(target_modules, str) and target_modules.lower() == ALL_LINEAR


def _other_classes(modules: Modules) -> list[str]:
    """Names of what calls itself a linear map, with weights of its own, and is of no known class."""
    return [
        name
        for name, module in modules.items()
        if "linear" in type(module).__name__.lower()
        and not is_linear(module)
        and not any(module.children())
        and any(
            True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        )
    ]


def _no_products(names: Set[str], modules: Modules) -> set[str]:
    """Names of linear maps whose class makes something else of them."""
    kinds = {name: (type(modules[name]), *_shape(modules[name])) for name in names}
    tried = {kind: modules[name] for name, kind in kinds.items()}
    fine = {kind: returns_its_product(module) for kind, module in tried.items()}
    return {name for name, kind in kinds.items() if not fine[kind]}


def _shape(module: nn.Module) -> tuple[int, ...]:
    weight = weight_of(module)
    return features_of(module) if weight is None else tuple(weight.shape)


def _named_alone(
    target_modules: str | Sequence[str] | None, modules: Mapping[str, nn.Module]
) -> set[str]:
    """Names of the modules that an entry means alone."""
    if target_modules is None or isinstance(target_modules, str):
        return set()
    endings = named_endings(modules)
    found = [endings.get(entry, []) for entry in target_modules]
    return {names[0] for names in found if len(names) == 1}


def _refuse_named(unfit: Mapping[str, str], named: frozenset[str]) -> None:
    """Refuse a choice with a module that can be no target and is named by itself.

    Raises:
        UnsupportedModule: There is one.
    """
    for name, reason in unfit.items():
        if name in named:
            raise UnsupportedModule(f"{name!r} can be no target module: {reason}; leave it out")


def _refuse_saved(
    unfit: Mapping[str, str], target_modules: str | Sequence[str] | None, names: Sequence[str]
) -> None:
    """Refuse an entry all of whose modules are trained whole: it asks for both.

    Raises:
        UnsupportedModule: There is one.
    """
    if target_modules is None or isinstance(target_modules, str):
        return
    whole = {name for name, reason in unfit.items() if reason == SAVED_WHOLE}
    endings = named_endings(names) if whole else {}
    for entry in target_modules:
        if whole and whole.issuperset(endings.get(entry, [""])):
            raise UnsupportedModule(
                f"target_modules entry {entry!r} and modules_to_save mean the same modules, such as "
                f"{endings[entry][0]!r}: PEFT trains them whole and puts no LoRA on them; leave "
                "them out of one of both"
            )


def _refuse_ties(model: nn.Module, names: Collection[str]) -> None:
    """Refuse both sides of one weight, for which a plan would have two ranks.

    Raises:
        UnsupportedModule: There is such a pair.
    """
    for group in ties_among(model, names):
        listed, both = _both_or_all(group)
        raise UnsupportedModule(
            f"{listed} are one weight, to which merging would add the updates of {both}, so that "
            "the merged model is another one: name one of them and serve the adapter unmerged, or "
            f"train {both} whole with modules_to_save (apply_fim_ranks gives {both} of a live "
            "adapter one rank)"
        )


def _both_or_all(names: Sequence[str]) -> tuple[str, str]:
    """List names, and say how many they are."""
    *most, last = map(repr, names)
    return f"{', '.join(most)} and {last}", "both" if len(names) == 2 else "all"


def _ties(model: nn.Module, counts: Callable[[str], bool]) -> list[tuple[str, ...]]:
    """Modules of one weight, two or more, of those that count."""
    groups = tied_groups(dict(_base_modules(base_model_of(model))))
    counted = (tuple(filter(counts, group)) for group in groups)
    return [group for group in counted if len(group) > 1]


def _none_left(left_out: Mapping[str, str]) -> str:
    name, reason = next(iter(left_out.items()))
    return (
        f"none of the {len(left_out)} modules that target_modules means can be a target; "
        f"{name!r}, for one: {reason}"
    )


def _base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk the base model's tree as it was before PEFT touched it."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside) and inside:
            continue
        if hasattr(module, "base_layer") or hasattr(module, "modules_to_save"):
            inside = (*inside, f"{name}.")
        if not hasattr(module, "modules_to_save"):  # such a copy is trained in full
            yield plain_name(name), _unwrap_layer(module)


def _unwrap_layer(module: nn.Module) -> nn.Module:
    return cast("nn.Module", module.base_layer) if hasattr(module, "base_layer") else module


def _carriers(model: nn.Module) -> set[str]:
    """Names of the modules that carry LoRA already."""
    named = base_model_of(model).named_modules()
    carriers = (
        n
        for n, m in named
        if hasattr(m, "base_layer") and hasattr(m, "lora_A") and not adapts_parameter(m)
    )
    return set(map(plain_name, carriers))


def _output_head(model: nn.Module, modules: Mapping[str, nn.Module]) -> set[str]:
    """Name of a language model's head, if it is a linear map."""
    if not hasattr(model, "get_output_embeddings"):
        return set()
    head = cast("Callable[[], nn.Module | None]", model.get_output_embeddings)()
    return {n for n, m in modules.items() if head is not None and m is _unwrap_layer(head)} & {
        n for n, m in modules.items() if is_linear(m)
    }


def _all_linear(model: nn.Module, modules: dict[str, nn.Module]) -> set[str]:
    heads = [getattr(model, name, None) for name in FULL_NAMES]
    if hasattr(model, "get_output_embeddings"):
        heads.append(cast("Callable[[], nn.Module | None]", model.get_output_embeddings)())
    in_heads = {id(m) for head in heads if isinstance(head, nn.Module) for m in head.modules()}
    embeddings = {id(m.weight) for m in modules.values() if isinstance(m, nn.Embedding)}
    names = {
        name
        for name, module in modules.items()
        if is_linear(module)
        and id(module) not in in_heads
        # A head that shares its weight with an embedding is the embedding.
        and id(weight_of(module)) not in embeddings
    }
    if not names:
        raise UnknownTarget(f"{type(model).__name__} has no linear map besides its output head")
    return names


def _in_order(model: nn.Module, names: Set[str]) -> list[str]:
    """Sort modules, and parameters of modules, by where they stand in the model."""
    base = base_model_of(model)
    order = {n: i for i, (n, _) in enumerate(_base_modules(base))}
    experts = {n: i for i, n in enumerate(fused_experts(base))}
    return sorted(
        names,
        key=lambda n: (
            order[n.rpartition(".")[0]] if n in experts else order[n],
            experts.get(n, 0),
        ),
    )


def _describe(name: str, module: nn.Module) -> TargetModule:
    d_in, d_out = features_of(module)
    return TargetModule(
        name,
        d_in,
        d_out,
        fan_in_fan_out=isinstance(module, Conv1D),
        is_embedding=isinstance(module, nn.Embedding),
    )
