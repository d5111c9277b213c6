"""A head that the checkpoint lacks: one model whoever measures, and one that adapters carry.

Families are tried from their base model alone, which is what people fine-tune.
"""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from fimlora import Settings, measure_folder, write_adapter
from fimlora.model.loading import load
from fimlora.model.skeleton import build_skeleton
from fimlora.model.targets import choose_targets, head_tensors
from support.classifiers import (
    FAMILIES,
    TASK,
    config_of,
    labelled_batch,
    load_classifier,
    save_base,
)
from support.plans import plan_of
from support.streaming import assert_same, quiet

__all__ = ["quiet"]  # a fixture of every test here

# Blocks that run twice, or that keep a cache by themselves, are measured resident only.
NOT_STREAMED = {"Albert", "Flaubert", "XLM"}
# What a family's head is called, where PEFT does not save it by itself.
SAVED = {
    "Albert": ["classifier"],
    "Bart": ["classification_head.dense", "classification_head.out_proj"],
    "Bert": ["bert.pooler.dense", "classifier"],
    "Deberta": ["classifier", "pooler.dense"],
    "DebertaV2": ["classifier", "pooler.dense"],
    "DistilBert": ["classifier", "pre_classifier"],
    "Llama": ["score"],
    "Flaubert": ["sequence_summary.summary"],
    "MBart": ["classification_head.dense", "classification_head.out_proj"],
    "ModernBert": ["classifier", "head.dense", "head.norm"],
    "Roberta": ["classifier"],
    "T5": ["classification_head.dense", "classification_head.out_proj"],
    "XLM": ["sequence_summary.summary"],
}


def measured(folder, family, executor, **options):
    config = config_of(folder)
    batches = [labelled_batch(family, [40, 9, 7, 3]), labelled_batch(family, [12, 5])]
    if family in ("Bart", "MBart", "T5", "MT5"):  # they want the same number of ends
        batches = [labelled_batch(family, [9, 7]), labelled_batch(family, [5, 5, 5])]
    return measure_folder(
        folder,
        batches,
        Settings(target_modules="all-linear", micro_batch_size=2, seed=3),
        executor=executor,
        model_class=TASK,
        config=config,
        **options,
    )


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - NOT_STREAMED))
def test_streamed_equals_resident(family, tmp_path):
    """To the last bit, whatever the random state is, and no drawn module is a target."""
    save_base(family, tmp_path)

    torch.manual_seed(1)
    resident = measured(tmp_path, family, "resident")
    torch.manual_seed(2)
    streamed = measured(tmp_path, family, "streamed")

    assert_same(streamed, resident)
    drawn = {name.rpartition(".")[0] for name in missed_by_transformers(tmp_path)}
    assert drawn
    assert drawn.isdisjoint(module.name for module in resident.modules)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["Bert", "Qwen3Next"])
def test_streamed_equals_resident_from_a_narrow_checkpoint(family, dtype, tmp_path):
    """In float32, and bfloat16 in its own dtype."""
    save_base(family, tmp_path, dtype=dtype)

    for run_in in {torch.float32, torch.bfloat16 if dtype is torch.bfloat16 else torch.float32}:
        resident, streamed = (
            measured(tmp_path, family, executor, dtype=run_in)
            for executor in ("resident", "streamed")
        )
        assert_same(streamed, resident)


def missed_by_transformers(folder):
    report = TASK.from_pretrained(folder, config=config_of(folder), output_loading_info=True)[1]
    return set(report["missing_keys"])


@pytest.mark.parametrize("layout", ["B", "C"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_adapter_with_weights_makes_every_load_one_model(family, layout, tmp_path):
    """Stock PEFT on bases with heads of two seeds: equal logits, those of the measured one."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_base(family, base)
    skeleton = build_skeleton(base, model_class=TASK, config=config_of(base))
    loaded = load(skeleton, base, seed=5)
    batch = labelled_batch(family, [9, 9])
    batch.pop("labels")
    # Experts and what PEFT takes for them are another matter.
    meant = ["q_proj", "o_proj"] if family == "Qwen3Next" else "all-linear"
    targets = choose_targets(loaded.model, meant, drawn=loaded.drawn).modules
    plan = plan_of(targets, [2, 3, 4])

    write_adapter(
        plan,
        adapter,
        base_model=str(base),
        task_type="SEQ_CLS",
        layout=layout,
        weights=True,
        head=head_tensors(loaded.model, drawn=loaded.drawn),
    )

    config = json.loads((adapter / "adapter_config.json").read_text())
    if family in SAVED:
        assert config["modules_to_save"] == SAVED[family]
    wanted = loaded.model(**batch).logits
    logits = [load_classifier(base, seed=seed)(**batch).logits for seed in (0, 1)]
    assert not torch.equal(*logits)  # the heads do differ
    for seed in (0, 1):
        adapted = PeftModel.from_pretrained(load_classifier(base, seed=seed), adapter).eval()
        torch.testing.assert_close(adapted(**batch).logits, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "family", ["Bert", "DebertaV2", "DistilBert", "Bart", "XLM", "Roberta"]
)
def test_an_adapter_without_weights_trains_the_head(family, tmp_path):
    """All of it that is drawn, and what is trained is in the file that PEFT saves."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    save_base(family, base)
    model = load_classifier(base, seed=0)
    missing = missed_by_transformers(base)
    drawn = {name.rpartition(".")[0] for name in missing}
    targets = choose_targets(model, "all-linear", drawn=drawn).modules
    write_adapter(
        plan_of(targets, [2]),
        adapter,
        base_model=str(base),
        task_type="SEQ_CLS",
        head=head_tensors(model, drawn=drawn),
    )

    peft_model = get_peft_model(model, LoraConfig.from_pretrained(adapter))
    trained = {
        name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        for name, parameter in peft_model.named_parameters()
        if parameter.requires_grad
    }
    peft_model.save_pretrained(tmp_path / "saved")

    assert missing <= trained
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert missing <= {name.removeprefix("base_model.model.") for name in saved}
