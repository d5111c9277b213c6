"""What a model needs, against its weights, what autograd keeps and what a run records."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fimlora import Settings
from fimlora.adapter.factors import Factors
from fimlora.measuring.executors import shortage
from fimlora.measuring.recording.fisher_exact import FisherExact
from fimlora.measuring.recording.mean_gradient import Signs
from fimlora.measuring.recording.projected_gradient import ProjectedGradient
from fimlora.measuring.recording.quantities import quantities_for
from fimlora.measuring.recording.quantity import Pass, SeenCall
from fimlora.memory.need import SKETCH_WIDTH, bytes_recorded, estimate_need
from fimlora.model.checkpoint import Checkpoint, StoredTensor
from fimlora.plan import TargetModule
from fimlora.statistics.options import Passes, Record
from support.models import make_batch, tiny


def no_gram() -> list[torch.Tensor]:
    """The Gram matrix of an input, which nothing here asks for."""
    raise AssertionError


def stored(*shape: int):
    return StoredTensor(Path("x"), 0, torch.float32, shape)


@pytest.mark.parametrize("name", ["bert_classifier", "llama_gqa_lm"])
def test_the_need_is_about_the_weights_and_what_autograd_keeps(name, tmp_path):
    """Weights to the byte; activations within 2.5 times, a tiny model's vocabulary included."""
    model, _ = tiny(name)
    model.save_pretrained(tmp_path)
    batch = make_batch(name, [30])
    saved: dict[int, int] = {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = model.requires_grad_(False)(  # noqa: F841 - keeps the graph
            inputs_embeds=torch.randn(1, 30, 24, requires_grad=True),
            attention_mask=batch["attention_mask"],
        )

    need = estimate_need(Checkpoint(tmp_path).tensors, itemsize=4, n_tokens=30)

    assert need.weight_bytes == sum(p.numel() * 4 for p in model.parameters())
    assert need.converted_bytes == 0
    assert 0.5 <= need.example_bytes / sum(saved.values()) <= 2.5


def test_experts_that_a_token_does_not_visit_keep_nothing():
    """Of a mixture, as many as it goes through."""
    dense, mixture = (
        estimate_need(
            {
                f"layers.0.mlp.{part}.weight": stored(8, 4)
                for part in ("up", *(f"experts.{n}.up" for n in range(n_experts)))
            },
            itemsize=2,
            n_tokens=10,
            experts_per_token=2,
        )
        for n_experts in (0, 16)
    )

    assert mixture.weight_bytes == 17 * dense.weight_bytes == 17 * 8 * 4 * 2
    assert mixture.converted_bytes == mixture.weight_bytes  # stored in four bytes each
    assert mixture.example_bytes == 3 * dense.example_bytes == 3 * 12 * 10 * 2


def test_what_goes_forward_only_keeps_a_few_maps():
    """The largest ones' inputs and outputs; what reads no example keeps none."""
    shapes = {f"layers.{n}.up.weight": (8 + n, 4) for n in range(9)}
    tensors = {name: stored(*shape) for name, shape in shapes.items()}

    back, forward, none = (
        estimate_need(tensors, itemsize=4, n_tokens=10, passes=passes).example_bytes
        for passes in (Passes.BACKWARD, Passes.FORWARD, Passes.NONE)
    )

    assert back == 4 * 10 * sum(8 + n + 4 for n in range(9))
    assert forward == 4 * 10 * sum(8 + n + 4 for n in range(5, 9))
    assert none == 0


# What is no sum is counted where it is tested.
SUMMED = [record for record in Record if record is not Record.INPUT_COMPONENTS]


@pytest.mark.parametrize(
    "record",
    [
        (),
        *SUMMED,
        ("spectra", "moments"),
        ("spectra", "weight_gradient"),
        ("spectra", "gradient_factors"),
        (*SUMMED,),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("spectra_bytes", [0, 2**30])
@pytest.mark.parametrize(("null", "halves"), [(False, False), (True, False), (True, True)])
def test_what_is_recorded_is_foreseen_to_the_byte(record, dtype, spectra_bytes, null, halves):
    """Sums, what the third pass over a batch adds to them, and the signs of sketches; the same
    again of a null, and of one half what was kept apart, but for what is not of parts."""
    shapes = [(900, 1100), (1100, 900), (900, 1100), (1500, 900), (8, 4)]
    modules = [
        TargetModule(f"layers.{i}.up", d_in, d_out) for i, (d_in, d_out) in enumerate(shapes)
    ]
    signs, seen = Signs(SKETCH_WIDTH), set()
    settings = Settings(record=record, spectra_bytes=spectra_bytes)
    ranks = {module.name: i + 1 for i, module in enumerate(modules)}
    factors = {
        m.name: Factors(
            torch.ones(ranks[m.name], m.d_in), torch.ones(m.d_out, ranks[m.name]), 2
        )
        for m in modules
    }
    own, others = (
        [
            found
            for found in quantities_for(
                settings, modules, torch.device("cpu"), signs=signs, factors=factors
            )
            if not isinstance(found, FisherExact)
        ]
        for _ in range(2)
    )
    quantities = [*own, *(other for other in others if null and other.of_parts)]

    for quantity in quantities:
        for number in range(3):
            quantity.commit()
            for _, pending in quantity.run_sums():
                is_half = halves and quantity.of_parts and number == 1
                pending.keeps_apart = is_half and quantity in own
            quantity.begin(Pass(torch.ones(2), None, is_whole=False))
            for module in modules:
                x = torch.ones(2, 3, module.d_in, dtype=dtype)
                g = torch.ones(2, 3, module.d_out, dtype=dtype)
                kept = quantity.keep(module.name, x, no_gram)
                quantity.add(module.name, [SeenCall(kept, g)])
            if isinstance(quantity, ProjectedGradient):
                seen |= set(quantity._lora_a.values())

    for staged in itertools.chain(*(quantity.pending_sums() for quantity in quantities)):
        seen |= {staged.total, staged.apart, staged._staged} - {None}
    seen |= set(signs._drawn.values())
    options = {"spectra_bytes": spectra_bytes, "itemsize": dtype.itemsize}
    options |= {"null": null, "halves": halves, "adapter_ranks": ranks}
    found = bytes_recorded(modules, record, **options)
    assert found == sum(tensor.numel() * tensor.itemsize for tensor in seen)


def test_what_is_recorded_takes_its_part_of_the_memory():
    """It does not grow with the examples, and is named where it does not fit."""
    need = estimate_need({"a": stored(8, 4)}, itemsize=4, n_tokens=10, recorded_bytes=2**20)
    without = replace(need, recorded_bytes=0)
    free = round(1.05 * (need.weight_bytes + 2**20 + 5.5 * need.example_bytes))

    assert need.examples_within(free, 99999) == 5
    assert without.examples_within(free, 99999) > 5
    assert not need.fits(without.least)
    assert need.fits(need.least)
    found = shortage(replace(need, recorded_bytes=2**60), torch.device("cpu"))
    assert "GiB to record and about" in str(found)
