"""Fused experts are measured as plain autograd says, on every family that has them."""

import pytest
import torch

from fimlora import Settings, find_targets, measure, measure_streamed, score
from fimlora.errors import InvalidOption, UnknownTarget, UnsupportedModule
from fimlora.left_out import FUSED_EXPERTS, OUTPUT_HEAD
from support.experts import (
    KINDS,
    LINEAR,
    MIXTURES,
    SCALE,
    expert_gradients,
    lora_b_squares_of_experts,
    mixture,
    mixture_batches,
    n_tokens,
    with_experts,
)
from support.reference import relative_error
from support.streaming import assert_same, quiet, save  # noqa: F401 - a fixture

# PEFT says so of every key of a parameter, and it is wrong.
pytestmark = pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
FLOAT32 = 1e-5
RANK, SEED = 3, 7


def measured(model, batches, **options):
    given = {"target_modules": [LINEAR], "target_parameters": "all", "seed": SEED}
    return measure(model, batches, **(given | options))


def experts_of(statistics):
    return [module for module in statistics.modules if module.n_experts is not None]


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_equal_autograd(name):
    """Energies by expert and example, and all B under one A, those of a real PEFT model."""
    model, batches = mixture(name), mixture_batches()

    statistics = measured(model, batches, estimator="both", rank=RANK)

    modules = experts_of(statistics)
    gradients = expert_gradients(model, batches, modules)
    squares = lora_b_squares_of_experts(model, batches, modules, rank=RANK, seed=SEED)
    by_sampled = score(statistics, estimator="sampled").by_module
    by_exact = score(statistics, estimator="exact").by_module
    assert len(modules) >= 2
    for module in modules:
        G = gradients[module.name].square()
        rows = statistics.row_energies[module.name]
        assert relative_error(rows, G.sum(dim=(0, 2, 3))) <= FLOAT32
        examples = statistics.example_energies[module.name]
        assert relative_error(examples, G.sum(dim=(1, 2, 3))) <= FLOAT32
        found = SCALE**2 * statistics.squared_gradients[module.name]
        by_expert = squares[module.name].reshape(module.d_out, RANK, -1).sum(dim=0).T
        assert relative_error(found, by_expert) <= FLOAT32
        mean = squares[module.name].mean().item() / len(batches)
        assert by_sampled[module.name] == pytest.approx(mean, rel=FLOAT32)
        energy = G.sum().item() / len(G)
        wanted = SCALE**2 * energy / (3 * G[0].numel())
        assert by_exact[module.name] == pytest.approx(wanted, rel=FLOAT32)


@pytest.mark.parametrize("name", KINDS)
def test_every_token_is_counted_once_per_expert_it_goes_to(name):
    """Padding is not; examples may come in any number at once."""
    model, batches = mixture(name), mixture_batches()

    whole = measured(model, batches, estimator="exact")
    single = measured(model, batches, estimator="exact", micro_batch_size=1)

    for module in experts_of(whole):
        counts = whole.quantities["expert_tokens"][module.name]
        assert counts.sum() == n_tokens(batches) * 2  # experts per token
        assert (counts == single.quantities["expert_tokens"][module.name]).all()
        energies = (run.example_energies[module.name] for run in (whole, single))
        assert relative_error(*energies) <= FLOAT32


@pytest.mark.parametrize("name", KINDS)
def test_streamed_experts_are_resident_ones(name, tmp_path):
    """To the last bit, with null, halves and all that can be recorded of experts."""
    model, batches = save(mixture(name), tmp_path), mixture_batches()
    options = {
        "target_modules": [LINEAR], "target_parameters": "all", "estimator": "both",
        "record": ("spectra", "batch_energies"), "null": True, "halves": True,
    }  # fmt: skip

    streamed = measure_streamed(tmp_path, batches, Settings(**options))

    assert_same(streamed, measure(model, batches, **options))


@pytest.mark.parametrize("name", ["mixtral", "llama4_text"])
def test_an_adapter_on_experts_changes_nothing_while_b_is_zero(name):
    """Measured on a PEFT model, where experts have wrappers around them."""
    batches = mixture_batches()
    wanted = measured(mixture(name), batches, target_modules=[], estimator="exact")

    found = measure(with_experts(mixture(name)), batches, estimator="exact")

    assert found.modules == wanted.modules
    for module in found.modules:
        rows = found.row_energies[module.name]
        assert relative_error(rows, wanted.row_energies[module.name]) <= FLOAT32


@pytest.mark.parametrize("name", ["qwen3_next", "gpt_oss"])
def test_the_balance_of_experts_is_no_part_of_the_loss_and_is_named(name):
    """It is made of all tokens of a batch, so that no example has one of its own."""
    batches, quiet_model, loud = mixture_batches(), mixture(name), mixture(name)
    loud.config.output_router_logits = True

    found = measured(loud, batches, estimator="exact")

    assert found.auxiliary_losses_left_out == ("router_aux_loss_coef",)
    wanted = measured(quiet_model, batches, estimator="exact")
    for module in wanted.modules:
        assert (
            found.example_energies[module.name] == wanted.example_energies[module.name]
        ).all()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # checkpointing gets another name
@pytest.mark.parametrize("way", ["eager", "batched_mm", "grouped_mm", "checkpointing"])
def test_however_a_model_runs_its_experts(way):
    """They are measured in one way, whatever its config names, and counted once."""
    batches, model = mixture_batches(), mixture("mixtral")
    wanted = measured(mixture("mixtral"), batches, estimator="exact")
    if way == "checkpointing":
        model.gradient_checkpointing_enable()
        model.train()
    else:
        model.set_experts_implementation(way)

    found = measured(model, batches, estimator="exact")

    for module in experts_of(wanted):
        for group in ("row_energies", "expert_tokens"):
            assert (found.groups[group][module.name] == wanted.groups[group][module.name]).all()


def test_a_run_that_was_cut_off_goes_on_with_its_experts(tmp_path):
    """Bit for bit, tokens and all."""
    batches, file = mixture_batches(), tmp_path / "sums"
    options = {"estimator": "both", "null": True, "halves": True}
    wanted = measured(mixture("qwen2_moe"), batches, **options)

    def stop(done, expected):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(mixture("qwen2_moe"), batches, on_batch=stop, progress_file=file, **options)

    found = measured(mixture("qwen2_moe"), batches, progress_file=file, **options)

    assert found.to_bytes() == wanted.to_bytes()


def test_spectra_of_experts_are_those_of_one_rank_in_each():
    """A rank of the parameter is one of every expert, so their energies add up."""
    model, batches = mixture("mixtral"), mixture_batches()

    statistics = measured(model, batches, estimator="exact", record="spectra")

    modules = experts_of(statistics)
    gradients = expert_gradients(model, batches, modules)
    for module in modules:
        values = torch.linalg.svdvals(gradients[module.name].mean(dim=0))  # (E K)
        wanted = values.square().sum(dim=0).sqrt()
        assert relative_error(statistics.spectra[module.name], wanted) <= FLOAT32


def test_the_model_runs_its_own_forward_again_afterwards():
    """Also when the run has failed."""
    model, batches = mixture("mixtral"), mixture_batches()
    experts = model.model.layers[0].mlp.experts
    before = dict(vars(experts))

    def broken(outputs, batch):
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        measured(model, batches, loss_fn=broken)

    assert vars(experts) == before


def test_experts_that_do_not_run_as_said_are_refused():
    """A class may bear the marks of transformers' decorator and do something else."""
    model, batches = mixture("mixtral"), mixture_batches()
    kind = type(model.model.layers[1].mlp.experts)

    class Odd(kind):
        def forward(self, hidden_states, top_k_index, top_k_weights):
            return 2 * super().forward(hidden_states, top_k_index, top_k_weights)

    model.model.layers[1].mlp.experts.__class__ = Odd

    with pytest.raises(UnsupportedModule, match=r"layers.1.mlp.experts', a Odd, do not run"):
        measured(model, batches)


def test_experts_are_left_out_unless_they_are_asked_for():
    """The reason says how to have them."""
    model = mixture("mixtral")
    choice = measure(model, mixture_batches(), target_modules="all-linear", estimator="exact")

    assert set(choice.not_targeted.values()) == {FUSED_EXPERTS, OUTPUT_HEAD}
    assert "target_parameters" in FUSED_EXPERTS
    down = find_targets(model, [LINEAR], target_parameters=["experts.down_proj"])
    assert [m.name.rpartition(".")[2] for m in down] == [LINEAR, "down_proj"] * 2


REFUSED = {
    "no entry": ([], "is empty"),
    "no such parameter": (["down_project"], r"no parameter .*Near names: down_proj"),
    "a word": ("experts", "allowed are 'all', or a list"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_parameters_are_refused(given, message):
    """With what is allowed."""
    with pytest.raises((InvalidOption, UnknownTarget), match=message):
        find_targets(mixture("mixtral"), [LINEAR], target_parameters=given)


def test_what_is_of_one_matrix_is_refused_by_name():
    """Records and aggregations that look at single rows."""
    model, batches = mixture("mixtral"), mixture_batches()

    with pytest.raises(UnsupportedModule, match="record='moments' is of one matrix"):
        measured(model, batches, record="moments")
    with pytest.raises(InvalidOption, match="one sum per expert is recorded"):
        score(measured(model, batches, estimator="exact"), aggregation="max")
