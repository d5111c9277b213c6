"""The names and signatures that users of the engine rely on; a change here is breaking."""

import dataclasses
import inspect
import subprocess
import sys

import pytest

import fimlora
from fimlora import errors
from fimlora.adapter.trained.read import Limits

NAMES = {
    "AdaLoraReallocation",
    "Budget",
    "FimLoraReallocator",
    "FimloraError",
    "InfeasibleBudget",
    "MissingExtra",
    "ProgressFile",
    "RankPlan",
    "Scores",
    "Settings",
    "Statistics",
    "TargetModule",
    "VerifyPlan",
    "adalora_config",
    "advise_prune_and_grow",
    "allocate",
    "apply_fim_ranks",
    "audit_adapter",
    "compare",
    "convert_adapter",
    "find_targets",
    "fit_head",
    "fit_head_streamed",
    "load_plan",
    "measure",
    "measure_folder",
    "measure_streamed",
    "score",
    "select_experts",
    "shift_base",
    "truncate_adapter",
    "verify_adapter",
    "write_adapter",
}

# Parameters with their defaults; a bare * begins the keyword-only ones.
SIGNATURES = {
    "audit_adapter": "folder, *, plan=None, limits=Limits()",
    "convert_adapter": "folder, output, *, layout='B', overwrite=False, limits=Limits(), "
    "max_bytes=None",
    "truncate_adapter": "folder, output, *, budget=None, energy=None, r_min=1, r_max=None, "
    "multiple_of=1, layout='B', overwrite=False, limits=Limits(), max_bytes=None",
    "VerifyPlan": "plan, *, on_mismatch='raise', adapter_name='default', base_model=None",
    "verify_adapter": "folder, plan, *, base_model=None, digest_of=None",
    "AdaLoraReallocation": "resume_from=None",
    "adalora_config": "target_modules, *, total_steps, target_r, accumulation_steps=1, scale=2, "
    "init_r=None, tinit=None, tfinal=None, delta_t=None, orth_reg_weight=0.5, **options",
    "advise_prune_and_grow": "model, batches, n, *, exact=False, n_batches=8, "
    "adapter_name='default', micro_batch_size=None, loss_fn=None",
    "allocate": "scores, budget=8, *, rule=None, r_min=None, r_max=None, "
    "multiple_of=1, rank_menu=(), groups=(), per_type=None, max_lora_rank=None, n_layers=None, "
    "scale=2, alpha=None, rslora=False, seed=0, provenance=None",
    "apply_fim_ranks": "model, dataloader, n_batches=8, r_min=None, r_max=None, *, "
    "estimator='auto', aggregation='mean', method='fim', budget=None, multiple_of=1, "
    "adapter_name='default', seed=0, micro_batch_size=None, train_mode=False, loss_fn=None, "
    "on_batch=None, signal=False",
    "compare": "statistics, budget=8, *, methods=None, scale=None, aggregation='mean', "
    "estimator=None, experts=None, **options",
    "FimLoraReallocator": "batches, *, every, until=None, n_batches=4, budget=None, r_min=None, "
    "r_max=None, adapter_name='default', seed=0, micro_batch_size=None, loss_fn=None, "
    "on_reallocation=None, resume_from=None",
    "find_targets": "model, target_modules=None, *, exclude_modules=None, target_parameters=None",
    "fit_head": "model, batches, *, drawn=None, seed=0, micro_batch_size=None, on_batch=None",
    "fit_head_streamed": "model_path, batches, *, model_class=None, config=None, dtype=None, "
    "device='cpu', weights_seed=0, ignore_mismatched_sizes=False, micro_batch_size=None, "
    "frontier_bytes=1073741824, on_batch=None",
    "load_plan": "path",
    "measure": "model, batches, *, target_modules=None, exclude_modules=None, "
    "target_parameters=None, n_batches=8, "
    "estimator='auto', rank=8, seed=0, scale=2, record=(), spectra_bytes=1073741824, n_components=64, micro_batch_size=None, "
    "train_mode=False, loss_fn=None, on_batch=None, progress_file=None, first_example=0, "
    "null=False, halves=False, retain=None",
    "measure_streamed": "model_path, batches, settings=Settings(), *, model_class=None, "
    "config=None, dtype=None, device='cpu', max_boundary_bytes=None, boundary_folder=None, "
    "weights_seed=None, ignore_mismatched_sizes=False, head_weights=None",
    "measure_folder": "model_path, batches, settings=Settings(), *, executor='auto', "
    "model_class=None, config=None, dtype=None, device='cpu', weights_seed=None, "
    "ignore_mismatched_sizes=False, retain=None",
    "Settings": "target_modules=None, exclude_modules=None, target_parameters=None, "
    "modules_to_save=None, drawn=(), "
    "unadaptable=None, choice=None, "
    "n_batches=8, estimator='auto', rank=8, seed=0, scale=2, record=(), "
    "spectra_bytes=1073741824, n_components=64, micro_batch_size=None, train_mode=False, loss_fn=None, "
    "on_batch=None, progress_file=None, first_example=0, null=False, halves=False, "
    "shard=None, shards=()",
    "score": "statistics, method='fim', *, scale=None, aggregation='mean', estimator=None",
    "select_experts": "statistics, select, *, share=None, coverage=None, seed=0",
    "shift_base": "model, folder, *, undo=False",
    "write_adapter": "plan, folder, *, base_model, task_type, layout='B', weights=False, "
    "init='kaiming', statistics=None, seed=0, head=None, module_names=None, target_modules=None, modules_to_save=None, model=None, "
    "other_model=None, overwrite=False",
}

FIELDS = {
    "Budget": ["unit", "value", "bytes_per_parameter"],
    "ProgressFile": ["path", "model_digest", "max_share", "on_resume", "on_error"],
    "Scores": [
        "modules",
        "by_module",
        "spectra",
        "by_layer",
        "base_parameters",
        "provenance",
        "not_targeted",
        "rule",
        "method",
    ],
    "Settings": [
        *(
            "target_modules",
            "exclude_modules",
            "target_parameters",
            "modules_to_save",
            "drawn",
            "unadaptable",
            "choice",
            "n_batches",
        ),
        *("estimator", "rank", "seed", "scale", "record"),
        *(
            "spectra_bytes",
            "n_components",
            "micro_batch_size",
            "train_mode",
            "loss_fn",
            "on_batch",
        ),
        *("progress_file", "first_example", "null", "halves", "shard", "shards"),
    ],
    "TargetModule": [
        *("name", "d_in", "d_out", "fan_in_fan_out", "n_experts", "is_embedding", "family"),
        "experts",
    ],
    "RankPlan": [
        *("modules", "ranks", "scores", "budget", "limit", "rule", "r_min", "r_max", "scale"),
        *(
            "controls",
            "provenance",
            "not_targeted",
            "signal",
            "confidence",
            "method",
            "warnings",
            "constraints",
            "scaling",
            "lora_alpha",
        ),
    ],
}


def test_names():
    """What ``fimlora`` offers, all of it resolvable and all of it in ``dir``."""
    assert set(fimlora.__all__) == NAMES
    assert set(dir(fimlora)) >= NAMES
    assert all(getattr(fimlora, name) for name in NAMES)


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_signatures(name):
    """Parameters, their order, their defaults, and which are keyword-only."""
    parameters = inspect.signature(getattr(fimlora, name)).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]

    found = str(inspect.Signature(bare)).replace(repr(fimlora.Settings()), "Settings()")
    found = found.replace(repr(Limits()), "Limits()")
    assert found.removesuffix(" -> None") == f"({SIGNATURES[name]})"


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_fields(name):
    """Fields of the frozen results, in order."""
    found = [field.name for field in dataclasses.fields(getattr(fimlora, name))]

    assert found == FIELDS[name]


def test_every_error_refines_a_builtin_and_carries_a_code():
    """``except ValueError`` keeps working for people who do not know fimlora."""
    found = [
        e
        for e in vars(errors).values()
        if isinstance(e, type) and e.__module__ == "fimlora.errors"
    ]

    assert len(found) > 8
    for error in found:
        assert issubclass(error, fimlora.FimloraError)
        assert error.code
        if error is not fimlora.FimloraError:
            assert len(error.__mro__) > 4


def test_an_unknown_name_is_an_attribute_error():
    """As for any module."""
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fimlora.nothing  # noqa: B018


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # what an import finds where torch is not installed
import fimlora
assert fimlora.load_plan and fimlora.Budget
try:
    fimlora.measure
except fimlora.MissingExtra as error:
    sys.exit(0 if "fimlora[engine]" in str(error) else 2)
sys.exit(3)
"""


@pytest.mark.slow
def test_without_torch_light_names_work_and_others_name_the_extra():
    """A machine with the base install reads plans and is told what measuring needs."""
    environment = {"PYTHONPATH": ":".join(sys.path)}

    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], env=environment, check=True)
