"""A quantised base is measured as it trains: its maps' inputs and gradients, its true sizes."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from fimlora import apply_fim_ranks, find_targets, measure
from fimlora.errors import InvalidCheckpoint, UnsupportedModule
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.loading import load
from fimlora.model.packed_parts import READABLE
from fimlora.model.skeleton import build_skeleton
from fimlora.model.targets import count_base_parameters
from fimlora.numerics.seeded_draws import draw_lora_a
from support.models import make_batch, tiny
from support.peft_models import lora_tensors, planned, resolved, uniform_peft
from support.quantised import CONFIG, FORMATS, TARGETS, folder_of_a_model, loaded, quantised
from support.reference import relative_error

RANK, SEED, SCALE = 4, 7, 2
FLOAT32, HALF = 1e-5, 0.02
# Of packages, about kernels that a CPU has not or about how they are called.
pytestmark = pytest.mark.filterwarnings(
    "ignore:MatMul8bitLt:UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


@pytest.fixture(params=sorted(FORMATS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of_a_model(tmp_path_factory.mktemp("plain"))


def batches():
    return [make_batch("llama_gqa_lm", [9, 5, 7], seed=i) for i in range(2)]


def logits_of(model, batch):
    """What a model computes in training mode: of one without dropout, nothing is drawn."""
    model.train()
    with torch.no_grad():
        return model(**batch).logits


def squares_by_peft(model, modules):
    """Squared gradients of B, by a real PEFT model on the quantised base and its own loss."""
    peft_model = uniform_peft(model, TARGETS, r=RANK, lora_alpha=SCALE * RANK).train()
    layers = {m.name: peft_model.base_model.model.get_submodule(m.name) for m in modules}
    for module in modules:
        A = layers[module.name].lora_A["default"].weight
        A.data.copy_(draw_lora_a(module, rank=RANK, seed=SEED))
    sums = {m.name: torch.zeros(m.d_out, RANK, dtype=torch.float64) for m in modules}
    for batch in batches():
        peft_model.zero_grad()
        peft_model(**batch).loss.backward()
        for module, layer in layers.items():
            sums[module] += layer.lora_B["default"].weight.grad.double().square()
    return sums


def test_sampled_equals_autograd_through_peft(name, folder):
    """Squared gradients of B are those of a real PEFT model on the same quantised base.

    Kernels that multiply in half precision round a gradient by its size, and an example's alone
    is another than within a mean.
    """
    model = quantised(name, folder)
    modules = find_targets(model, TARGETS)
    wanted = squares_by_peft(quantised(name, folder), modules)

    statistics = measure(
        model, batches(), target_modules=TARGETS, estimator="sampled", rank=RANK, seed=SEED
    )

    errors = {
        m.name: relative_error(SCALE**2 * statistics.squared_gradients[m.name], wanted[m.name])
        for m in modules
    }
    assert len(errors) == 14
    assert max(errors.values()) <= (HALF if FORMATS[name].is_half else FLOAT32), errors


def test_sizes_are_those_of_the_model_before_it_was_quantised(name, folder):
    """Targets have their features, and the base its parameters, however they are packed."""
    with torch.device("meta"):
        plain = LlamaForCausalLM(CONFIG)

    statistics = measure(quantised(name, folder), batches(), target_modules="all-linear")

    # A quantiser may put its maps into the tree in an order of its own.
    assert set(statistics.modules) == set(find_targets(plain, "all-linear"))
    assert statistics.base_parameters == count_base_parameters(plain)


def test_the_model_comes_back_as_it_was(name, folder):
    """No weight is packed otherwise, no mode is left set, and what it computes is the same."""
    model, untouched = quantised(name, folder).eval(), quantised(name, folder).eval()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    kept = {n: b.detach().clone() for n, b in model.named_buffers()}

    measure(model, batches(), target_modules=TARGETS)

    assert not any(module.training for module in model.modules())
    for parameter_name, parameter in model.named_parameters():
        as_stored = getattr(parameter, "dequantize", lambda p=parameter: p)()
        was = getattr(
            before[parameter_name], "dequantize", lambda n=parameter_name: before[n]
        )()
        assert torch.equal(as_stored, was), parameter_name
    assert all(torch.equal(b, kept[n]) for n, b in model.named_buffers())
    batch = batches()[0]
    assert torch.equal(logits_of(model, batch), logits_of(untouched, batch))


def test_qlora_gets_its_ranks_trains_and_loads(name, folder, tmp_path):
    """One call resizes the adapter of a quantised model; stock PEFT loads what it saves."""
    model = uniform_peft(quantised(name, folder), TARGETS, r=RANK)

    plan = apply_fim_ranks(model, batches())

    assert plan.spent.ranks == RANK * len(plan.modules)
    assert len(set(plan.ranks.values())) > 1
    assert resolved(model) == planned(plan)
    assert plan.spent.parameters == model.get_nb_trainable_parameters()[0]
    fresh = lora_tensors(model)
    model.train()
    loss = model(**batches()[0]).loss
    loss.backward()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    optimiser.step()
    trained = lora_tensors(model)
    assert not any(torch.equal(trained[n], fresh[n]) for n in fresh if "lora_B" in n)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(quantised(name, folder), tmp_path)
    assert resolved(loaded) == planned(plan)
    batch = batches()[1]
    torch.testing.assert_close(logits_of(loaded, batch), logits_of(model, batch))


class BaseQuantLinear(nn.Module):
    """A map of a class that refines no Linear, packed as GPTQ has it: eight bits an entry."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax() / 127
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().char())
        self.register_buffer("scales", scale)
        self.bias = linear.bias

    def forward(self, x):
        return functional.linear(x, self.qweight * self.scales, self.bias)


class ForInference(BaseQuantLinear):
    """A kernel without a backward pass."""

    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class OfBatches(BaseQuantLinear):
    """A kernel that only another machine has."""

    def forward(self, x):
        raise NotImplementedError("no kernel for 'cpu' among: cuda")


class StraightThrough(BaseQuantLinear):
    """A kernel whose backward pass is another map's."""

    def forward(self, x):
        y = super().forward(x.detach())
        return y + 0.01 * (x - x.detach()).sum(dim=-1, keepdim=True)


def with_maps_of(kind):
    model, targets = tiny("llama_gqa_lm")
    for layer in model.model.layers:
        layer.mlp.up_proj = kind(layer.mlp.up_proj)
    return model, targets


def test_a_class_of_its_own_is_a_target_like_any_other():
    """It is told by the name of its class, and as large as its features say."""
    model, targets = with_maps_of(BaseQuantLinear)
    plain, _ = tiny("llama_gqa_lm")

    statistics = measure(model, batches(), target_modules=targets)

    assert statistics.modules == find_targets(plain, targets)
    assert statistics.base_parameters == count_base_parameters(plain)
    assert find_targets(model, "all-linear") == find_targets(plain, "all-linear")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (ForInference, "its kernel has no backward pass"),
        (OfBatches, "its kernel refuses: no kernel for 'cpu'"),
        (StraightThrough, "is not that of the map it computes"),
    ],
)
def test_a_kernel_that_gradients_do_not_pass_is_refused_by_name(kind, reason):
    """Targets or not: what lies before them would get a wrong gradient in silence."""
    model, _ = with_maps_of(kind)

    with pytest.raises(UnsupportedModule, match=reason) as caught:
        measure(model, batches(), target_modules=["q_proj"])

    assert "'model.layers.0.mlp.up_proj'" in str(caught.value)
    assert kind.__name__ in str(caught.value)
    assert "load the model as it was before it was quantised" in str(caught.value)


def test_forward_passes_need_no_backward_kernel():
    """What looks at inputs alone is measured through any kernel that runs."""
    model, _ = with_maps_of(ForInference)

    statistics = measure(
        model, batches(), target_modules=["q_proj"], estimator="none", record="input_components"
    )

    assert statistics.batch_sizes == (3, 3)


@pytest.mark.parametrize("estimator", ["exact", "none"])
def test_maps_that_the_first_pass_unpacks_are_refused(estimator):
    """It would leave another model behind; the message says how to load one that trains."""
    model, _ = tiny("llama_gqa_lm")
    model.model.layers[1].mlp.up_proj.quantization_status = "compressed"
    record = {"record": "input_components"} if estimator == "none" else {}

    with pytest.raises(UnsupportedModule, match="dequantize=True") as caught:
        measure(model, batches(), target_modules=["q_proj"], estimator=estimator, **record)

    assert "'model.layers.1.mlp.up_proj' is compressed" in str(caught.value)


def test_fp8_maps_of_transformers_are_refused_where_their_kernels_do_not_run():
    """They need a GPU; a CPU gives the kernel's own reason and a way out."""
    finegrained = pytest.importorskip("transformers.integrations.finegrained_fp8")
    model, _ = tiny("llama_gqa_lm")
    old = model.model.layers[0].self_attn.q_proj
    new = finegrained.FP8Linear(old.in_features, old.out_features, block_size=(8, 8))
    new.weight.data = old.weight.detach().to(torch.float8_e4m3fn)
    new.weight_scale_inv.data.fill_(1.0)
    model.model.layers[0].self_attn.q_proj = new

    with pytest.raises(UnsupportedModule, match=r"q_proj' \(transformers\.FP8Linear\)"):
        measure(model, batches(), target_modules=["v_proj"])


def test_weights_are_not_read_where_they_are_packed(name, folder):
    """What multiplies the gradient with the weight says which module and what to do."""
    with pytest.raises(UnsupportedModule, match="holds its own quantised"):
        measure(
            quantised(name, folder), batches(), target_modules=TARGETS, record="weight_gradient"
        )


def test_get_peft_model_is_asked_on_an_outline_without_packed_weights(name, folder):
    """Which modules PEFT will adapt is tried on plain maps of the same sizes."""
    from fimlora.model.outline import outline

    tree = outline(quantised(name, folder))
    adapted = get_peft_model(tree, LoraConfig(target_modules=TARGETS, r=2))

    assert all(p.is_meta for n, p in adapted.named_parameters() if "lora_" not in n)
    assert len(resolved(adapted)) == 14


def test_a_saved_checkpoint_is_read_as_the_live_model_computes(name, folder, tmp_path):
    """What bitsandbytes writes, unpacked without it; files of the others are refused by name."""
    live = quantised(name, folder)
    method = name.partition("_")[0]
    if method not in READABLE:
        live.config.quantization_config = {"quant_method": method}
        live.config.save_pretrained(tmp_path)
        folder_of_a_model(tmp_path / "weights")
        (tmp_path / "weights" / "model.safetensors").rename(tmp_path / "model.safetensors")
        with pytest.raises(InvalidCheckpoint, match=rf"quantised \({method}\)"):
            Checkpoint(tmp_path)
        return
    live.save_pretrained(tmp_path)
    if FORMATS[name].packer:  # what transformers writes of some, it reads as other numbers
        live = loaded(name, tmp_path)

    read = load(build_skeleton(tmp_path, dtype=torch.float32), tmp_path, seed=0).model

    batch = batches()[0]
    found, wanted = logits_of(read, batch), logits_of(live, batch)
    # A kernel in half precision rounds its inputs, and nothing else.
    within = 0.05 if FORMATS[name].is_half else 1e-4
    assert (found - wanted).abs().max() <= within * wanted.abs().max()


def test_maps_of_gpt2_are_turned_when_they_are_packed(tmp_path):
    """Packers put outputs first, GPT-2 inputs: live, and read from what bitsandbytes saved."""
    config = GPT2Config(
        vocab_size=61, n_positions=32, n_embd=64, n_layer=2, n_head=2, initializer_range=0.2,
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "plain")
    live = quantised("bitsandbytes_nf4", tmp_path / "plain")
    live.save_pretrained(tmp_path / "packed")
    skeleton = build_skeleton(tmp_path / "packed", dtype=torch.float32)

    read = load(skeleton, tmp_path / "packed", seed=0).model

    batch = batches()[0]
    torch.testing.assert_close(
        logits_of(read, batch), logits_of(live, batch), rtol=1e-4, atol=1e-5
    )
    options = {"target_modules": ["c_attn", "c_proj"], "estimator": "exact"}
    found, wanted = (measure(model, batches(), **options) for model in (live, read))
    assert found.base_parameters == wanted.base_parameters
    for module, plain in zip(found.modules, wanted.modules, strict=True):
        assert (module.name, module.d_in, module.d_out) == (plain.name, plain.d_in, plain.d_out)
        energies = found.row_energies[module.name]
        assert relative_error(energies, wanted.row_energies[module.name]) <= 1e-4
