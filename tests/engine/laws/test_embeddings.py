"""An embedding that is named is a target: a linear map of one-hot vectors, as PEFT adapts it."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from fimlora import (
    allocate,
    apply_fim_ranks,
    find_targets,
    measure,
    score,
    verify_adapter,
    write_adapter,
)
from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.measuring.resident import measure_resident
from fimlora.measuring.settings import Settings
from fimlora.measuring.streamed.run import measure_streamed
from support.models import VOCABULARY, make_batch, tiny
from support.peft_models import planned, resolved

FLOAT32 = 1e-5
DIM = 24
TABLES = {
    "llama_gqa_lm": "model.embed_tokens",
    "gpt2_lm": "transformer.wte",
    "bert_classifier": "bert.embeddings.word_embeddings",
}
# Every row has tokens that come more than once, and padding.
BATCHES = {name: [make_batch(name, [9, 5, 7], seed=i) for i in range(2)] for name in TABLES}
for batches in BATCHES.values():
    for batch in batches:
        batch["input_ids"][:, 3] = batch["input_ids"][:, 1]


@pytest.fixture(params=sorted(TABLES))
def name(request):
    return request.param


def gradients_by_peft(name, *, s=2):
    """Of A by example, for B the identity: s times the gradient of the table, transposed."""
    model, _ = tiny(name)
    peft_model = get_peft_model(
        model, LoraConfig(r=DIM, lora_alpha=s * DIM, target_modules=[TABLES[name]])
    ).eval()
    layer = peft_model.get_base_model().get_submodule(TABLES[name])
    layer.lora_embedding_B["default"].data.copy_(torch.eye(DIM))
    found = []
    for batch in BATCHES[name]:
        for row in range(3):
            peft_model.zero_grad()
            peft_model(**{n: t[row : row + 1] for n, t in batch.items()}).loss.backward()
            found.append(layer.lora_embedding_A["default"].grad.double() / s)
            assert not layer.lora_embedding_B["default"].grad.any()
    return torch.stack(found)  # (N, dim, rows of the table)


def test_energies_equal_autograd_through_peft(name):
    """By row and by example; padding, whose row PEFT gives no gradient, counts for nothing."""
    model, _ = tiny(name)
    wanted = gradients_by_peft(name)

    statistics = measure(model, BATCHES[name], target_modules=[TABLES[name]])

    (module,) = statistics.modules
    assert (module.d_in, module.d_out, module.is_embedding) == (VOCABULARY, DIM, True)
    squares = wanted.square()
    rows = statistics.row_energies[module.name]
    assert rows == pytest.approx(squares.sum(dim=(0, 2)).numpy(), rel=FLOAT32)
    examples = statistics.example_energies[module.name]
    assert examples == pytest.approx(squares.sum(dim=(1, 2)).numpy(), rel=FLOAT32)
    energy = squares.sum().item() / 6
    assert score(statistics).by_module[module.name] == pytest.approx(
        4 * energy / (3 * VOCABULARY * DIM), rel=FLOAT32
    )


def test_micro_batches_change_nothing(name):
    """Vectors as long as an example do not depend on the others."""
    model, targets = tiny(name)
    options = {"target_modules": [TABLES[name], *targets]}
    whole = measure(model, BATCHES[name], **options)
    single = measure(model, BATCHES[name], micro_batch_size=1, **options)

    for module in whole.modules:
        assert single.row_energies[module.name] == pytest.approx(
            whole.row_energies[module.name], rel=1e-4
        )


def test_an_embedding_is_a_target_only_where_it_is_named(name):
    """Neither by default nor by all-linear."""
    model, _ = tiny(name)

    for chosen in (None, "all-linear"):
        assert not any(m.is_embedding for m in find_targets(model, chosen))
    assert find_targets(model, [TABLES[name].rpartition(".")[2]])[0].name == TABLES[name]


def test_a_live_adapter_with_an_embedding_gets_its_ranks(name, tmp_path):
    """Parameters count as PEFT counts them; it trains, saves and loads."""
    model, targets = tiny(name)
    chosen = [TABLES[name], *targets]
    options = {"fan_in_fan_out": name == "gpt2_lm"}
    peft_model = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=chosen, **options)
    )
    before = peft_model.get_base_model().get_submodule(TABLES[name])
    B = before.lora_embedding_B["default"].detach().clone()

    plan = apply_fim_ranks(peft_model, BATCHES[name])

    assert resolved(peft_model) == planned(plan)
    layer = peft_model.get_base_model().get_submodule(TABLES[name])
    rank = plan.ranks[TABLES[name]]
    kept = min(rank, 4)
    A, new_B = (held["default"] for held in (layer.lora_embedding_A, layer.lora_embedding_B))
    assert (tuple(A.shape), tuple(new_B.shape)) == ((rank, VOCABULARY), (DIM, rank))
    assert torch.equal(new_B[:, :kept], B[:, :kept])
    assert not A.any()
    assert plan.spent.parameters == sum(
        p.numel() for n, p in peft_model.named_parameters() if "lora_" in n
    )
    peft_model.train()
    peft_model(**BATCHES[name][0]).loss.backward()
    assert A.grad.any()
    peft_model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert resolved(PeftModel.from_pretrained(tiny(name)[0], tmp_path)) == planned(plan)
    assert verify_adapter(tmp_path, plan).as_planned


def test_a_written_adapter_is_the_one_that_peft_makes(name, tmp_path):
    """Layouts B and C: PEFT loads all tensors, and the fresh adapter changes nothing."""
    model, targets = tiny(name)
    statistics = measure(model, BATCHES[name], target_modules=[TABLES[name], *targets])
    plan = allocate(score(statistics), 4)

    for layout in ("B", "C"):
        folder = tmp_path / layout
        write_adapter(
            plan,
            folder,
            base_model="x",
            task_type=None,
            weights=True,
            layout=layout,
            model=model,
        )
        loaded = PeftModel.from_pretrained(tiny(name)[0], folder)
        layer = loaded.get_base_model().get_submodule(TABLES[name])
        B = layer.lora_embedding_B["default"]
        assert B[:, : plan.ranks[TABLES[name]]].std().item() == pytest.approx(1, rel=0.5)
        batch = BATCHES[name][0]
        with torch.no_grad():
            torch.testing.assert_close(loaded(**batch).logits, tiny(name)[0](**batch).logits)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_tied_pair_gets_one_rank():
    """Of a live adapter; a plan from the bare model would part them, and is refused."""
    model, targets = tiny("llama_tied_lm")
    pair = ["embed_tokens", "lm_head"]
    batches = [make_batch("llama_tied_lm", [9, 5, 7])]

    with pytest.raises(UnsupportedModule, match="are one weight"):
        measure(model, batches, target_modules=pair)
    peft_model = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=[*pair, *targets])
    )
    plan = apply_fim_ranks(peft_model, batches)

    assert plan.ranks["model.embed_tokens"] == plan.ranks["lm_head"]
    assert len(set(plan.ranks.values())) > 1
    assert measure(tiny("llama_tied_lm")[0], batches, target_modules=["lm_head"])
    shared = LoraConfig(r=4, target_modules=pair, ensure_weight_tying=True)
    with pytest.raises(UnsupportedModule, match="ensure_weight_tying=True"):
        apply_fim_ranks(get_peft_model(tiny("llama_tied_lm")[0], shared), batches)


@pytest.mark.parametrize("estimator", ["sampled", "sketched"])
def test_other_estimators_are_refused(estimator):
    """They multiply with a matrix next to the input."""
    model, _ = tiny("llama_gqa_lm")

    with pytest.raises(InvalidOption, match="use 'exact' or 'auto'"):
        measure(
            model, BATCHES["llama_gqa_lm"], target_modules=["embed_tokens"], estimator=estimator
        )


def test_what_is_of_linear_maps_is_refused():
    """By the name of the record and of the embedding."""
    model, _ = tiny("llama_gqa_lm")

    with pytest.raises(UnsupportedModule, match=r"'spectra' is of linear maps.*embed_tokens"):
        measure(
            model, BATCHES["llama_gqa_lm"], target_modules=["embed_tokens"], record="spectra"
        )


@pytest.mark.parametrize("name", [*TABLES, "llama_tied_lm"])
def test_streamed_it_is_the_same_to_the_last_bit(name, tmp_path):
    """Looked up before the first block runs; a head beside it, or one weight with it."""
    model, _ = tiny(name)
    model.save_pretrained(tmp_path)
    batches = BATCHES.get(name, BATCHES["llama_gqa_lm"])
    table = TABLES.get(name, "model.embed_tokens")
    head = ["lm_head"] if name == "llama_gqa_lm" else []
    settings = Settings(target_modules=[table, *head], null=True, halves=True)

    resident = measure_resident(model, batches, settings)
    streamed = measure_streamed(tmp_path, batches, settings, model_class=type(model))

    assert [m.name for m in streamed.modules] == [table, *head]
    assert all(
        np.array_equal(mine[module], other[module])
        for mine, other in (
            (streamed.row_energies, resident.row_energies),
            (streamed.example_energies, resident.example_energies),
            (streamed.null.row_energies, resident.null.row_energies),
        )
        for module in (table, *head)
    )


def test_a_table_that_does_more_than_look_up_is_refused():
    """PEFT multiplies by the same factor, which its class keeps to itself."""

    class Scaled(torch.nn.Embedding):
        def forward(self, ids):
            return 3 * super().forward(ids)

    model, _ = tiny("llama_gqa_lm")
    model.model.embed_tokens = Scaled(VOCABULARY, DIM)

    with pytest.raises(UnsupportedModule, match="plain Embedding can be measured"):
        measure(model, BATCHES["llama_gqa_lm"], target_modules=["embed_tokens"])


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"layers_to_transform": [1]}, None),
        ({"modules_to_save": ["lm_head"]}, None),
        ({"trainable_token_indices": [1, 2]}, "single trained tokens"),
    ],
    ids=lambda given: next(iter(given), "") if isinstance(given, dict) else "",
)
def test_other_fields_of_peft_stay_or_are_named(options, fault, tmp_path):
    """Ranks are those of the layers that PEFT has adapted; what a plan cannot hold, verify names."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **options)
    peft_model = get_peft_model(tiny("llama_gqa_lm")[0], config)
    carriers = resolved(peft_model).keys()

    plan = apply_fim_ranks(peft_model, BATCHES["llama_gqa_lm"])

    assert resolved(peft_model) == planned(plan)
    assert plan.ranks.keys() == carriers
    peft_model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(tiny("llama_gqa_lm")[0], tmp_path)
    assert resolved(loaded) == planned(plan)
    found = verify_adapter(tmp_path, plan)
    assert found.as_planned is (fault is None)
    assert fault is None or fault in found.faults[0].message
