"""Write an adapter folder: config, rank map as data and picture, and initial weights.

The same plan gives the same bytes, and a folder appears whole or not at all.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fimlora.adapter.config import (
    WRAPPER_PREFIX,
    build_adapter_config,
    modules_in_full,
    path_of_wrapper,
)
from fimlora.adapter.folder import check_destination, new_folder
from fimlora.adapter.initial.registry import KAIMING, find_initial
from fimlora.adapter.initial.stated import with_initial
from fimlora.adapter.text_files import text_files
from fimlora.errors import InvalidOption
from fimlora.plan import RankPlan, TargetModule
from fimlora.statistics import Statistics

# PEFT trains their heads in full and wants them in every file of weights.
CLASSIFIER_TASKS = ("SEQ_CLS", "TOKEN_CLS")


def write_adapter(
    plan: RankPlan,
    folder: str | Path,
    *,
    base_model: str | None,
    task_type: str | None,
    layout: str = "B",
    weights: bool = False,
    init: str = KAIMING,
    statistics: Statistics | None = None,
    seed: int = 0,
    head: Mapping[str, Any] | None = None,
    module_names: Iterable[str] | None = None,
    target_modules: Iterable[str] | None = None,
    modules_to_save: Iterable[str] | None = None,
    model: Any = None,
    other_model: Any = None,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write a plan as an adapter that stock PEFT loads.

    Args:
        plan: The plan.
        folder: Folder to create; its parents are created too.
        base_model: Hub id or path of the base model; ``None`` where neither is known.
        task_type: One of PEFT's task types, such as ``SEQ_CLS`` or ``CAUSAL_LM``.
        layout: ``B`` for variable ranks; ``C`` for one common rank with zero padding,
            which trains identically under element-wise optimisers only (SGD, Adam, AdamW).
        weights: Also write initial weights. ``PeftModel.from_pretrained`` needs them;
            ``get_peft_model`` does not.
        init: Which ones, see `fimlora.adapter.initial.registry`; any but ``kaiming`` are written
            whatever ``weights`` says, and so are those of a plan with selected experts. ``kaiming`` is A drawn per module from ``seed`` and its
            name, and B zero. Where they are not the base model at the start, the plan's first
            warning says so.
        statistics: What they are made of.
        seed: Seed of the initial weights.
        head: Tensors that PEFT trains in full, for this task or as modules to save, by parameter
            name in the base model, as `fimlora.model.targets.head_tensors` finds them; needed for the weights of
            a classifier, which PEFT does not load without them.
        module_names: Names of all modules of the base model, for short ``target_modules``;
            see `fimlora.adapter.config.target_names`.
        target_modules: Names that are known to target the plan's modules and no other;
            they are written as they stand.
        modules_to_save: Names of the modules that are trained in full, such as a new head;
            ``None`` for those that ``head`` has tensors of. Those that the plan's provenance names
            are in any case.
        model: The base model as it is loaded for this adapter, with weights or without: the
            adapter is first proved on it, see `fimlora.adapter.proof`, and a mismatch leaves
            nothing behind. Its names stand for ``module_names``.
        other_model: What the same checkpoint is as another class, such as the whole of a model
            for text and images where ``model`` is its text model. Names are written that hold
            for both, if there are such; the rank map says which classes they are for.
        overwrite: Replace an adapter that is already there.

    Returns:
        Path by file name.

    Raises:
        AdapterMismatch: On ``model``, stock PEFT would make something else of it.
        InvalidOption: The weights of a classifier were asked for without its head, or the
            statistics lack what initial weights are made of.
    """  # noqa: DOC502 - the helpers raise
    folder = Path(folder)
    check_destination(folder, overwrite=overwrite)
    is_selected = any(m.experts is not None and plan.ranks[m.name] for m in plan.modules)
    weights = weights or find_initial(init).name != KAIMING or is_selected
    if model is not None:
        plan, module_names = _settle_names(plan, model, other_model)
    plan = with_initial(plan, init, statistics)
    config = build_adapter_config(
        plan,
        base_model=base_model,
        task_type=task_type,
        layout=layout,
        module_names=module_names,
        target_modules=target_modules,
        modules_to_save=(
            modules_in_full(head or ()) if modules_to_save is None else modules_to_save
        ),
    )
    contents = text_files(plan, config, layout=layout)
    width = config["r"] if layout == "C" else None
    tensors = None
    if weights:
        if task_type in CLASSIFIER_TASKS and not head:
            raise InvalidOption(
                f"task_type={task_type!r} with weights=True needs head, the tensors of the "
                "classification head: PEFT does not load such an adapter without them"
            )
        tensors = _head_tensors(head or {})
        tensors |= _lora_tensors(plan, init, statistics, seed=seed, width=width)
        contents["adapter_model.safetensors"] = _file_of(tensors)
    if model is not None:
        _prove(plan, config, model, other_model, width, tensors)
    with new_folder(folder) as fresh:
        for name, content in contents.items():
            (fresh / name).write_bytes(content)
    return {name: folder / name for name in sorted(contents)}


def _head_tensors(head: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for name, tensor in head.items():
        own = tensor.cpu().contiguous()
        # A file holds no two tensors in one memory, as tied ones are.
        found[f"{WRAPPER_PREFIX}{name}"] = own.clone() if own.data_ptr() in seen else own
        seen.add(own.data_ptr())
    return found


def _lora_tensors(
    plan: RankPlan, init: str, statistics: Statistics | None, *, seed: int, width: int | None
) -> dict[str, Any]:
    """The tensors of a fresh adapter; ``width`` pads every rank with zeros."""
    from fimlora.adapter.initial.choose import initial_weights
    from fimlora.adapter.stacked import joined, padded, per_expert

    modules = {module.name: module for module in plan.modules}
    experts = [n for n, rank in plan.ranks.items() if rank and modules[n].n_experts is not None]
    tensors: dict[str, Any] = {}
    for name, factors in initial_weights(plan, init, statistics, seed=seed).items():
        path = path_of_wrapper(name, experts) if name in experts else name
        pairs = per_expert(*factors, modules[name].n_matrices)
        if modules[name].is_embedding:
            tensors |= _table_tensors(modules[name], plan.ranks[name], seed=seed, width=width)
            continue
        A, B = joined([padded(*pair, width or len(pair[0])) for pair in pairs])
        tensors[f"{WRAPPER_PREFIX}{path}.lora_A.weight"] = A
        tensors[f"{WRAPPER_PREFIX}{path}.lora_B.weight"] = B
    return tensors


def _table_tensors(
    module: TargetModule, rank: int, *, seed: int, width: int | None
) -> dict[str, Any]:
    """Those of an embedding: its A is zero, and its B drawn, as PEFT has them."""
    import torch

    from fimlora.numerics.seeded_draws import draw_embedding_b

    B = torch.zeros(module.d_out, width or rank)
    B[:, :rank] = draw_embedding_b(module, rank=rank, seed=seed).T
    path = f"{WRAPPER_PREFIX}{module.name}.lora_embedding_"
    return {f"{path}A": torch.zeros(width or rank, module.d_in), f"{path}B": B}


def _file_of(tensors: Mapping[str, Any]) -> bytes:
    from safetensors.torch import save

    return save(dict(tensors), metadata={"format": "pt"})


def _settle_names(plan: RankPlan, model: Any, other: Any) -> tuple[RankPlan, list[str]]:
    from fimlora.adapter.proof import settle_names

    return settle_names(plan, model, other)


def _prove(
    plan: RankPlan,
    config: Mapping[str, Any],
    model: Any,
    other: Any,
    width: int | None,
    tensors: Mapping[str, Any] | None,
) -> None:
    from fimlora.adapter.proof import prove, prove_on_other

    shapes = tensors and {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    prove(plan, config, model, width=width, tensors=shapes)
    if other is not None:
        prove_on_other(plan, config, other, width=width)
