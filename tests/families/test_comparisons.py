"""The comparisons see a fault: each is shown one."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from families.comparisons import (
    Rounding,
    Wrong,
    as_planned,
    names_of,
    no_worse_in_half,
    same_as_autograd,
    same_but_for_rounding,
    same_scores,
    same_statistics,
)
from families.product import Wanted, run
from families.reference import (
    Adapted,
    example_energies,
    load_adapted,
    load_base,
    logits_of,
    reads_padding,
    routes_by_rounding,
)
from families.registry import FAMILIES
from families.rows import batches, examples, padded_examples, write_tokenizer

FAMILY = FAMILIES["llama/causal_lm"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("room") / "models" / "family"
    folder.mkdir(parents=True)
    FAMILY.pretrained().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def product(checkpoint):
    return run(FAMILY, checkpoint, Wanted(), checkpoint)


@pytest.fixture(scope="module")
def base(checkpoint):
    return load_base(FAMILY, checkpoint, seed=1, dtype=torch.float32)


def off_by(product, factor, *, examples=slice(None)):
    """The same, with one module's energies of some examples off."""
    name = product.plan.modules[3].name
    statistics = product.statistics
    energies = statistics.example_energies[name].copy()
    energies[examples] *= factor
    rows = (
        statistics.row_energies[name] * energies.sum() / statistics.example_energies[name].sum()
    )
    return replace(
        product,
        statistics=replace(
            statistics,
            row_energies={**statistics.row_energies, name: rows},
            example_energies={**statistics.example_energies, name: energies},
        ),
    )


def test_one_score_that_is_off_is_seen(product, base):
    """By autograd and by another run; the right one by none."""
    found, wrong = examples(FAMILY), off_by(product, 1.001)

    same_as_autograd(product, base, found)
    same_scores(product, product)
    with pytest.raises(Wrong, match=r"1\.0e-03 at"):
        same_as_autograd(wrong, base, found)
    with pytest.raises(Wrong, match=r"1\.0e-03 at"):
        same_scores(product, wrong)
    with pytest.raises(Wrong, match=r"1\.0e-03 at"):
        same_statistics(product, wrong)


def test_no_fault_passes_for_rounding(product, base):
    """However much plain autograd rounds: in float64 the product must be right."""
    names = names_of(product)
    found = examples(FAMILY)
    single = example_energies(base, found, names)

    rounding = Rounding.of(base, found, names, single)

    assert rounding.is_all
    assert not replace(rounding, product_off=1e-5).is_all
    assert rounding.limit < 1e-4
    with pytest.raises(Wrong, match=r"1\.0e-03 at"):
        same_but_for_rounding(product, off_by(product, 1.001), base, found)
    same_but_for_rounding(product, product, base, found)


def test_the_last_bit_is_seen(product):
    """Streamed is resident, not about so."""
    same_statistics(product, product)
    with pytest.raises(Wrong, match="not to the last bit"):
        same_statistics(product, off_by(product, 1 + 1e-12))


def test_an_example_that_is_off_is_seen_though_the_sum_is_right(product, base):
    """Two examples whose energies are exchanged for one another's mean."""
    name = product.plan.modules[0].name
    energies = product.statistics.example_energies[name].copy()
    energies[:2] = energies[:2].mean()
    wrong = replace(
        product.statistics,
        example_energies={**product.statistics.example_energies, name: energies},
    )

    with pytest.raises(Wrong, match="at an example of"):
        same_as_autograd(replace(product, statistics=wrong), base, examples(FAMILY))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: replace(a, settings={**a.settings, "lm_head": (3, 2.0)}), "not planned"),
        (lambda a: replace(a, settings=dict([*a.settings.items()][1:])), "leaves out 1"),
        (lambda a: replace(a, settings={n: (r, 1.0) for n, (r, _) in a.settings.items()}), "scale"),
        (lambda a: replace(a, n_parameters=a.n_parameters + 1), "parameters, planned"),
        (lambda a: replace(a, missing=("missing keys: x",)), "misses keys"),
        (lambda a: replace(a, logits=a.logits + 1), "logits differ"),
    ],
)  # fmt: skip
def test_an_adapter_that_is_not_as_planned_is_seen(checkpoint, base, product, change, said):
    """Whatever differs; and one that is as planned passes."""
    batch = batches(examples(FAMILY))[0]
    wanted = logits_of(base, batch)
    fresh = load_base(FAMILY, checkpoint, seed=2, dtype=torch.float32)
    adapted: Adapted = load_adapted(fresh, product.folder, batch)

    as_planned(adapted, product.plan, wanted)
    with pytest.raises(Wrong, match=said):
        as_planned(change(adapted), product.plan, wanted)


def test_half_precision_that_is_off_is_seen(product, base):
    """A plan from other scores than those of the model is not the dtype's fault."""
    names = {m.name: 2.0 for m in product.plan.modules}
    rows = {n: product.statistics.row_energies[n] * f for n, f in names.items()}
    half = replace(product, statistics=replace(product.statistics, row_energies=rows))

    no_worse_in_half(product, product, base, examples(FAMILY))
    with pytest.raises(Wrong, match="median difference"):
        no_worse_in_half(half, product, base, examples(FAMILY))


def test_who_reads_padding_is_told_from_who_does_not():
    """By the losses of the model alone."""
    for name, wanted in {"llama/causal_lm": False, "fnet/classification": True}.items():
        model, alone = FAMILIES[name].pretrained(), examples(FAMILIES[name])
        if wanted:
            model = FAMILIES[name].model_class(FAMILIES[name].config()).eval()
            alone = [{**e, "labels": e["labels"] % 2} for e in alone]

        assert reads_padding(model, alone, padded_examples(alone)) is wanted


@pytest.mark.parametrize(("shift", "moves"), [(0.0, False), (0.02, False), (0.2, True)])
def test_a_route_that_a_batch_decides_is_told_from_rounding(shift, moves):
    """By the model's own logits, alone and beside others; its precision is not looked at."""

    class Model(torch.nn.Module):
        def forward(self, input_ids, **_):
            logits = torch.nn.functional.one_hot(input_ids, 1_000).float()
            logits[-1] += shift * (len(input_ids) > 1)
            return SimpleNamespace(logits=logits)

    alone = examples(FAMILY)

    assert routes_by_rounding(Model(), alone, batches(alone)) == moves
