"""The signal of a plan: none where labels mean nothing, found where one layer carries the task."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fimlora import Budget, Statistics, allocate, fit_head, measure, score
from fimlora.confidence.compare import compare
from fimlora.confidence.signal import (
    judged,
    obstacle,
    shrinkage,
    signal_of,
    source_if_any,
    with_signal,
)
from fimlora.constraints import Constraints
from fimlora.errors import InvalidOption
from fimlora.methods.coherence import part_gradients
from fimlora.plan import TargetModule
from fimlora.scores import Scores
from support.models import make_batch, tiny

N_LAYERS, WIDTH, CARRIER = 12, 24, 7
OPTIONS = {
    "fim": {"r_min": 1, "r_max": 24},
    "spectral": {"r_min": 0, "r_max": 24},
}
BY_SCORES = ("fim", "coherent", "spectral", "spectral-denoised")


class Layers(nn.Module):
    """Linear maps side by side, whose outputs add up; all weights are 0, so that the residual is
    the target itself: what a head that is set by hand leaves to be learnt."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(N_LAYERS)
        )
        for layer in self.layers:
            nn.init.zeros_(layer.weight)

    def forward(self, x, labels):
        return sum(layer(x[:, i]) for i, layer in enumerate(self.layers))


def squared_error(outputs, batch):
    return (outputs - batch["labels"]).square().sum(dim=1)


def rows(seed, *, carried, n=1024):
    """Inputs of all layers and targets; only that of one layer has to do with its target.

    Its inputs are large where the target is (what energies see), and the target is a turn of
    them (what signed gradients see). Where nothing is carried, targets are those of other rows.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, N_LAYERS, WIDTH, generator=generator)
    is_hot = torch.rand(n, generator=generator) < 1 / 8
    x[:, CARRIER] *= torch.where(is_hot, math.sqrt(8), 0.2)[:, None]
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    targets = x[:, CARRIER] @ turn.T
    if not carried:
        targets = targets[torch.randperm(n, generator=generator)]
    return x, targets


def statistics_of(seed, *, carried, n_batches=8):
    x, targets = rows(seed, carried=carried)
    batches = [
        {"x": some, "labels": wanted}
        for some, wanted in zip(x.chunk(n_batches), targets.chunk(n_batches), strict=True)
    ]
    return measure(
        Layers(), batches, target_modules="all-linear", loss_fn=squared_error, record="spectra",
        null=True, halves=True, seed=seed,
    )  # fmt: skip


def plan_of(statistics, method="fim", budget=4):
    return allocate(score(statistics, method), budget, **OPTIONS[method])


@pytest.mark.parametrize("method", sorted(OPTIONS))
@pytest.mark.parametrize("seed", range(4))
def test_a_layer_that_alone_carries_the_task_is_found(method, seed):
    """It moves most when labels are exchanged, and the verdict says that they matter."""
    statistics = statistics_of(seed, carried=True)
    plan = plan_of(statistics, method)

    signal = signal_of(statistics, plan)

    assert signal.verdict == "task", signal.sentence
    moved = [
        plan.ranks[m.name] - r for m, r in zip(plan.modules, signal.null_ranks, strict=True)
    ]
    assert plan.modules[int(np.argmax(moved))].name == f"layers.{CARRIER}"
    assert max(moved) > 2 * np.partition(moved, -2)[-2]
    assert "labels move" in signal.sentence


@pytest.mark.parametrize("method", sorted(OPTIONS))
def test_the_same_layers_without_a_task_have_no_signal(method):
    """Inputs as large, targets of other rows: for every one of many seeds."""
    verdicts = []
    for seed in range(12):
        statistics = statistics_of(seed, carried=False)
        verdicts.append(signal_of(statistics, plan_of(statistics, method)).verdict)

    assert Counter(verdicts) == {"none": 12}


@pytest.mark.parametrize("name", ["bert_classifier", "llama_gqa_lm"])
def test_random_labels_have_no_signal(name):
    """A transformer on tokens that mean nothing, labels drawn at random: many seeds, as planned."""
    model, targets = tiny(name)
    verdicts = Counter()
    for seed in range(24):
        batches = [make_batch(name, [9, 7, 7, 5, 3, 8], seed=20 * seed + i) for i in range(6)]
        statistics = measure(
            model, batches, target_modules=targets, record="spectra", null=True, halves=True,
            seed=seed,
        )  # fmt: skip
        for method in BY_SCORES:
            signal = signal_of(statistics, allocate(score(statistics, method), 6))
            verdicts[method, signal.verdict] += 1

    assert verdicts == {(method, "none"): 24 for method in BY_SCORES}


def test_no_score_is_no_signal_however_little_the_halves_differ():
    """Plans that are uniform for want of a score agree, which says nothing of labels."""
    model, targets = tiny("bert_classifier")
    lengths, found = [9, 7, 7, 5, 3, 8], []
    for seed in range(12):
        batches = [make_batch("bert_classifier", lengths, seed=20 * seed + i) for i in range(6)]
        statistics = measure(
            model, batches, target_modules=targets, record="spectra", null=True, halves=True
        )
        parts = part_gradients(statistics)
        energies = [parts[m.name].signal for m in statistics.modules]
        if sum(energies) > 0:
            continue
        signal = signal_of(statistics, allocate(score(statistics, "coherent"), 6))
        n_below = sum(energy <= 0 for energy in energies)
        assert f"; {n_below} of {len(energies)} estimates are not above zero" in signal.sentence
        assert ("outweigh the others" in signal.sentence) == (n_below < len(energies))
        found.append(signal.verdict)

    assert found
    assert set(found) == {"none"}
    task = statistics_of(0, carried=True)  # one estimate of twelve outweighs all others
    signal = signal_of(task, allocate(score(task, "coherent"), 4))
    assert "not above zero" not in signal.sentence


@pytest.mark.parametrize(
    ("labels", "halves", "chance", "verdict"),
    [
        (0.10, 0.05, 0.09, "weak"),  # far from other rows, near what chance may do
        (0.10, 0.02, 0.04, "task"),
        (0.10, 0.08, 0.04, "none"),  # nearer to other rows than the count of ranks lets tell
        (1 / 144, 0.0, 0.0, "none"),  # one rank
        (1 / 144, 0.0, None, "none"),
        (0.10, 0.0, None, "task"),
        (0.40, None, 0.15, "task"),
        (0.40, None, 0.25, "weak"),
        (0.40, None, 0.45, "none"),
    ],
)
def test_a_task_stands_out_of_other_rows_and_of_chance(labels, halves, chance, verdict):
    """By the stated rule, with every distance that is known in the sentence."""
    modules = tuple(TargetModule(f"layers.{i}", 8, 8) for i in range(18))
    plan = allocate(Scores(modules, {m.name: 1.0 for m in modules}, method="fim"), 8)

    signal = judged(
        plan, moved_by_labels=labels, moved_between_halves=halves, moved_by_chance=chance,
        targets=(64, 60), label_correlation=None, half_correlation=None, null_ranks=(),
        half_ranks=(),
    )  # fmt: skip

    assert signal.verdict == verdict
    assert f"labels move {'0.7' if labels < 0.01 else round(100 * labels)} %" in signal.sentence
    assert ("other rows" in signal.sentence) == (halves is not None)
    known = chance is not None
    assert (f"chance up to {100 * (chance or 0):.0f} %" in signal.sentence) == known


@pytest.fixture(scope="module")
def statistics():
    return statistics_of(0, carried=True)


@pytest.mark.parametrize("method", ["fim", "coherent", "spectral"])
def test_random_labels_have_no_signal_under_a_head_that_was_fitted_to_others(method):
    """Labels that a head has seen look as if they followed from their rows, so it sees others."""
    model, targets = tiny("bert_classifier")
    lengths, verdicts = [9, 7, 7, 5, 3, 8, 11, 6], Counter()
    for seed in range(8):
        rows = [make_batch("bert_classifier", lengths, seed=40 * seed + i) for i in range(24)]
        fit_head(model, rows[8:])
        statistics = measure(
            model, rows[:8], target_modules=targets, record="spectra", null=True, halves=True,
            seed=seed,
        )  # fmt: skip
        bounds = {"r_min": 0 if method == "spectral" else 1, "r_max": 16}
        plan = allocate(score(statistics, method), 4, **bounds)
        verdicts[signal_of(statistics, plan).verdict] += 1

    assert verdicts == {"none": 8}


@pytest.mark.parametrize("method", sorted(OPTIONS))
def test_distances_are_those_of_plans_that_allocate_makes(statistics, method):
    """Of the null, and of the halves under the scale that the method's rule says."""
    plan = plan_of(statistics, method)
    null = plan_of(statistics.null, method).ranks
    halves = [plan_of(half, method).ranks for half in statistics.halves]

    signal = signal_of(statistics, plan)

    total = sum(plan.ranks.values())
    names = [module.name for module in plan.modules]
    apart = sum(abs(plan.ranks[n] - null[n]) for n in names) / 2 / total
    between = sum(abs(halves[0][n] - halves[1][n]) for n in names) / 2 / total
    assert signal.moved_by_labels == pytest.approx(apart)
    assert signal.moved_between_halves == pytest.approx(between)
    by_rows = between / math.sqrt(2) if method == "fim" else between
    assert signal.moved_by_rows == pytest.approx(by_rows)
    assert signal.null_ranks == tuple(null[n] for n in names)
    assert signal.half_ranks == tuple(tuple(half[n] for n in names) for half in halves)
    assert (signal.moved_by_chance is not None) == (method == "fim")


def test_distances_are_in_parameters_at_a_budget_in_parameters(statistics):
    """As the budget counts; the options of the plan are heeded."""
    groups = [["layers.0", "layers.1"], ["layers.2", f"layers.{CARRIER}"]]
    budget = Budget("parameters", 4 * N_LAYERS * 2 * WIDTH)
    plan = allocate(score(statistics), budget, r_max=24, multiple_of=2, groups=groups)

    signal = signal_of(statistics, plan)

    assert all(rank % 2 == 0 for rank in signal.null_ranks)
    assert signal.null_ranks[0] == signal.null_ranks[1]
    assert "parameters" in signal.sentence
    with pytest.raises(InvalidOption, match="give other ranks with these options"):
        signal_of(statistics, replace(plan, constraints=Constraints()))


def test_chance_is_the_furthest_of_plans_with_values_exchanged_one_by_one(statistics):
    """Against plans of means over examples whose true value is drawn, made one at a time."""
    plan = plan_of(statistics)
    energies = [
        np.column_stack([s.example_energies[m.name] for m in s.modules])
        for s in (statistics, statistics.null)
    ]
    drawn = np.random.default_rng(3).integers(0, 2, size=(7, 1024)).astype(bool)
    furthest = 0.0
    for exchanged in drawn:
        ranks = []
        for mask in (exchanged, ~exchanged):
            values = np.where(mask[:, None], energies[1], energies[0]).mean(axis=0)
            scores = dict(zip((m.name for m in plan.modules), values, strict=True))
            whole = score(statistics)
            made = allocate(type(whole)(whole.modules, scores), 4, **OPTIONS["fim"])
            ranks.append(np.array(list(made.ranks.values())))
        furthest = max(furthest, np.abs(ranks[0] - ranks[1]).sum() / 2 / (4 * N_LAYERS))

    signal = signal_of(statistics, plan, n_draws=7, seed=3)

    assert signal.moved_by_chance == pytest.approx(furthest)


def test_it_is_the_same_again_and_from_a_file(statistics, tmp_path):
    """Plain data that goes into a rank map: same statistics, same bytes."""
    statistics.save(tmp_path / "s")
    plan = plan_of(statistics)

    with Statistics.opened(tmp_path / "s") as stored:
        found = signal_of(stored, plan)

    assert found.to_json() == signal_of(statistics, plan).to_json()
    assert found.to_json()["null_ranks"] == list(found.null_ranks)


def test_labels_that_are_nearly_all_one_are_said_to_be():
    """A null of which little is another label shows little, whatever the task."""
    model, targets = tiny("bert_classifier")
    batches = [make_batch("bert_classifier", [9, 7, 5, 3] * 4, seed=i) for i in range(3)]
    for batch in batches:
        batch["labels"][:] = 1
    batches[1]["labels"][3] = 0
    options = {"target_modules": targets, "null": True, "halves": True}
    few = measure(model, batches, **options)

    signal = signal_of(few, allocate(score(few), 4))

    assert signal.n_targets == 48
    assert 0 < signal.n_changed <= 3
    assert "of the labels had another to become" in signal.sentence
    alike = measure(model, batches[:1], **options)
    reason = obstacle(alike)
    assert reason is not None
    assert "one label" in reason


def test_what_cannot_be_said_is_refused_with_the_reason(statistics):
    """Controls look at no score; a run without a null, or one batch of spectra, shows nothing."""
    uniform = allocate(score(statistics, "uniform"), 4)
    with pytest.raises(InvalidOption, match="'uniform' looks at no score"):
        signal_of(statistics, uniform)
    with pytest.raises(InvalidOption, match="null was not measured"):
        signal_of(statistics.with_parts({}), plan_of(statistics))
    alone = statistics_of(1, carried=True, n_batches=1)
    with pytest.raises(InvalidOption, match="at least two batches"):
        signal_of(alone, plan_of(alone, "spectral"))
    signal = signal_of(alone, plan_of(alone))  # values per example show what chance does
    assert signal.moved_by_rows is None
    assert "chance up to" in signal.sentence


def test_a_half_that_cannot_be_scored_is_the_reason_why_nothing_is_known():
    """One example has none to be compared with; nothing fails for that."""
    model, targets = tiny("bert_classifier")
    batches = [make_batch("bert_classifier", n, seed=5) for n in ([9, 7, 5, 3] * 2, [8])]
    batches[0]["labels"][:2] = torch.tensor([0, 1])
    found = measure(
        model, batches, target_modules=targets, record="spectra", null=True, halves=True
    )
    plan = allocate(score(found, "coherent"), 4)

    reason = obstacle(found, "coherent")
    stated = with_signal(plan, source_if_any(found, "coherent", scale=2))

    assert reason is not None
    assert reason.startswith("a half of the examples cannot be scored: method 'coherent'")
    assert stated.signal == {
        "verdict": "unknown", "sentence": f"its signal is not known: {reason}"
    }  # fmt: skip
    with pytest.raises(InvalidOption, match="a half of the examples cannot be scored"):
        signal_of(found, plan)
    assert set(compare(found, 4).signals) == {"fim", "spectral", "fisher-layers"}


@pytest.mark.parametrize("rule", ["uniform", "random"])
def test_a_plan_whose_rule_looks_at_no_score_has_no_signal(statistics, rule):
    """Whatever the method of its scores."""
    plan = allocate(score(statistics), 4, rule=rule)

    assert with_signal(plan, source_if_any(statistics, "fim", scale=2)) == plan
    assert compare(statistics, 4, methods=["fim", "coherent"], rule=rule).signals == {}


def test_unequal_halves_are_held_apart_by_the_smaller_one():
    """Against draws of means: of halves of 60 and 20 examples, and of twice 80."""
    rng = np.random.default_rng(0)

    def apart(one, other):
        means = [rng.standard_normal((4000, n)).mean(axis=1) for n in (one, other)]
        return np.abs(means[0] - means[1]).mean()

    assert shrinkage(40, 40) == pytest.approx(1 / math.sqrt(2))
    assert shrinkage(60, 20) == pytest.approx(apart(80, 80) / apart(60, 20), rel=0.04)
    whole = statistics_of(0, carried=True, n_batches=5)
    signal = signal_of(whole, plan_of(whole))
    sizes = [half.n_examples for half in whole.halves]
    assert sizes[0] > sizes[1]
    expected = signal.moved_between_halves * shrinkage(*sizes)
    assert signal.moved_by_rows == pytest.approx(expected)


@pytest.mark.parametrize("has_labels", [True, False])
def test_a_loss_that_reads_no_labels_has_no_null(has_labels, tmp_path):
    """Its null would be the run itself: no evidence of anything. Also from a file."""
    model, targets = tiny("bert_classifier")
    batches = [make_batch("bert_classifier", [9, 7, 5, 3] * 2, seed=i) for i in range(3)]
    wanted = [batch["labels"].clone() for batch in batches]
    if not has_labels:
        batches = [{k: v for k, v in batch.items() if k != "labels"} for batch in batches]

    def from_inputs(outputs, batch):
        kinds = batch["input_ids"][:, 1] % outputs["logits"].shape[1]
        return nn.functional.cross_entropy(outputs["logits"], kinds, reduction="none")

    def from_labels(outputs, batch):
        return nn.functional.cross_entropy(outputs["logits"], batch["labels"], reduction="none")

    options = {"target_modules": targets, "record": "spectra", "null": True, "halves": True}
    found = measure(model, batches, loss_fn=from_inputs, **options)
    found.save(tmp_path / "s")
    plan = allocate(score(found), 4)
    why = "does not seem to read batch['labels']" if has_labels else "hold no labels"

    assert found.null is None
    for one in (found, Statistics.load(tmp_path / "s")):
        stated = with_signal(plan, source_if_any(one, "fim", scale=2)).signal
        assert stated["verdict"] == "unknown"
        assert why in stated["sentence"]
    with pytest.raises(InvalidOption, match=r"fim-over-null.*there is none"):
        score(found, "fim-over-null")
    labelled = [dict(b, labels=y) for b, y in zip(batches, wanted, strict=True)]
    assert measure(model, labelled, loss_fn=from_labels, **options).null is not None
    unasked = measure(model, batches, loss_fn=from_inputs, target_modules=targets)
    assert source_if_any(unasked, "fim", scale=2) is None
