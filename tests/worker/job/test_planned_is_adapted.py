"""What a job writes is what stock PEFT makes of it, on a model loaded anew."""

import peft
import pytest
import transformers

from fimlora import load_plan, verify_adapter
from fimlora.adapter.verifying.compare import compare
from fimlora.adapter.verifying.intended import read_intended
from fimlora.adapter.verifying.live import see_model
from support.families import build
from support.jobs import Jobs
from support.model_folders import make_family
from support.peft_models import lora_parameters, planned, resolved
from support.text_and_image import gemma

TEXT = [{"text": f"w{n} w{n * 7 % 50} " * (1 + n % 5)} for n in range(32)]
EXPERTS = {"gate_proj", "up_proj", "down_proj"}


@pytest.fixture
def folder_of(jobs: Jobs):
    """Registers a model; the other tests' folders are not touched."""
    shared = jobs.data_dir / "models"
    if shared.is_symlink():
        shared.unlink()
        shared.mkdir()

    def make(name: str, model: transformers.PreTrainedModel):
        return make_family(shared / name, model)

    return make


def run(jobs: Jobs, run_queue, model: str, **request):
    job_id = jobs.submit(
        model=model,
        dataset={"source": "inline", "rows": TEXT},
        calibration={"n_batches": 2, "batch_size": 8} | request.pop("calibration", {}),
        **request,
    )
    run_queue()
    record = jobs.get(job_id)
    assert record.status == "succeeded", record.json_field("error")
    digest = record.to_job().result.digest
    return jobs.data_dir / "artifacts" / digest.replace(":", "-")


@pytest.mark.parametrize("executor", ["resident", "streamed"])
@pytest.mark.parametrize("layout", ["B", "C"])
def test_a_mixture_with_dense_layers(jobs: Jobs, run_queue, folder_of, executor, layout):
    """Projections that PEFT would move to the experts are listed; all else is exact."""
    base = folder_of("mixture", build("qwen3_moe_mlp_only"))

    adapter = run(
        jobs, run_queue, "mixture", target_modules="all-linear",
        adapter={"weights": True, "layout": layout}, calibration={"executor": executor},
    )  # fmt: skip

    plan = load_plan(adapter)
    fresh = transformers.AutoModelForCausalLM.from_pretrained(base)
    loaded = peft.PeftModel.from_pretrained(fresh, adapter, is_trainable=True)
    if layout == "B":
        assert resolved(loaded) == planned(plan)
        assert lora_parameters(loaded) == plan.spent.parameters
    assert resolved(loaded).keys() == plan.ranks.keys()
    moved = {n for n, why in plan.not_targeted.items() if "fused experts of qwen3_moe" in why}
    assert moved == {f"model.layers.0.mlp.{leaf}" for leaf in EXPERTS}


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_fused_experts_that_are_asked_for(jobs: Jobs, run_queue, folder_of, executor):
    """Ranks and parameters are those of stock PEFT; the rank map shows each expert."""
    base = folder_of("mixture", build("qwen3_moe_mlp_only"))

    adapter = run(
        jobs, run_queue, "mixture", target_modules=["q_proj"], target_parameters="all",
        adapter={"weights": True}, calibration={"executor": executor},
    )  # fmt: skip

    plan = load_plan(adapter)
    fused = {m.name: m.n_experts for m in plan.modules if m.n_experts is not None}
    assert fused == {
        f"model.layers.1.mlp.experts.{leaf}": 4 for leaf in ("gate_up_proj", "down_proj")
    }
    assert plan.provenance["experts"].keys() == fused.keys()
    fresh = transformers.AutoModelForCausalLM.from_pretrained(base)
    loaded = peft.PeftModel.from_pretrained(fresh, adapter, is_trainable=True)
    assert lora_parameters(loaded) == plan.spent.parameters


def test_the_map_that_peft_refuses_is_listed(jobs: Jobs, run_queue, folder_of):
    """With the reason that PEFT gives."""
    base = folder_of("ssm", build("mamba2"))

    adapter = run(jobs, run_queue, "ssm", target_modules="all-linear")

    plan = load_plan(adapter)
    assert {name.rpartition(".")[2] for name in plan.ranks} == {"in_proj"}
    assert {name.rpartition(".")[2] for name in plan.not_targeted} == {"out_proj", "lm_head"}
    config = peft.LoraConfig.from_pretrained(adapter)
    config.base_model_name_or_path = str(base)
    fresh = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert resolved(peft.get_peft_model(fresh, config)) == planned(plan)


@pytest.mark.parametrize(
    ("targets", "holds"),
    [
        ([f"language_model.layers.{n}.mlp.down_proj" for n in range(4)], True),
        ([f"language_model.layers.{n}.self_attn.q_proj" for n in range(4)], False),
    ],
    ids=["both", "one"],
)
def test_names_of_a_model_for_text_and_images(jobs: Jobs, run_queue, folder_of, targets, holds):
    """The job loads one class of the checkpoint; its config fits both, or names the one."""
    text, whole = gemma()
    folder_of("both", whole)

    adapter = run(jobs, run_queue, "both", target_modules=targets)

    plan, config = load_plan(adapter), peft.LoraConfig.from_pretrained(adapter).to_dict()
    config |= {"base_model_name_or_path": None}
    own = plan.provenance["model_class"]
    models = {type(model).__name__: model for model in (text, whole)}
    fact = "names_also_hold_for" if holds else "names_do_not_hold_for"
    assert {own, plan.provenance[fact]} == set(models)
    adapted = peft.get_peft_model(models.pop(own), peft.LoraConfig(**config))
    assert resolved(adapted) == planned(plan)
    if holds:
        (other,) = models.values()
        ranks = [
            r
            for r, _, _ in resolved(
                peft.get_peft_model(other, peft.LoraConfig(**config))
            ).values()
        ]
        assert ranks == list(plan.ranks.values())


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_peft_is_asked_twice(jobs: Jobs, run_queue, folder_of, monkeypatch, executor):
    """Once before measuring and once before writing: with thousands of modules it takes long."""
    folder_of("plain", build("llama"))
    made, begin = [], peft.PeftModel.__init__

    def count(self, *arguments, **options):
        made.append(options.get("adapter_name"))
        begin(self, *arguments, **options)

    monkeypatch.setattr(peft.PeftModel, "__init__", count)

    run(jobs, run_queue, "plain", calibration={"executor": executor})

    assert len(made) == 2


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
def test_selected_experts_of_a_job(jobs: Jobs, run_queue, folder_of):
    """Another selection is planned from what was measured, and each folder is verified."""
    base = folder_of("mixture", build("qwen3_moe_mlp_only"))
    asked = {
        "target_modules": ["q_proj"], "target_parameters": "all",
        "budget": {"parameters": 6000}, "adapter": {"weights": True},
    }  # fmt: skip
    chosen = {}

    for select in ("routed", "random"):
        experts = {"select": select, "share": 0.25}
        adapter = run(
            jobs,
            run_queue,
            "mixture",
            **asked,
            allocation={"experts": experts, "r_min": 1, "seed": 4},
        )

        plan = load_plan(adapter)
        fused = {m.name: m for m in plan.modules if m.n_experts is not None}
        assert fused
        assert {len(m.experts) / m.n_experts for m in fused.values()} == {0.25}
        assert plan.provenance["expert_selection"]["select"] == select
        assert plan.warnings[0].code == "experts_selected"
        assert 0 < plan.spent.parameters <= 6000
        assert not verify_adapter(adapter, adapter).faults
        fresh = transformers.AutoModelForCausalLM.from_pretrained(base)
        loaded = peft.PeftModel.from_pretrained(fresh, adapter, is_trainable=True)
        intended = read_intended(adapter)
        assert not compare(intended, see_model(loaded, intended)).faults
        chosen[select] = {name: m.experts for name, m in fused.items()}
    assert chosen["routed"] != chosen["random"]
