"""Where ranks and parameters lie, summed up by hand."""

import pytest

from fimlora.adapter.rank_map import render_text
from fimlora.allocation import allocate
from fimlora.plan import RankPlan, TargetModule
from fimlora.scores import Scores
from fimlora.shares import OUTSIDE
from support.allocation import llama_like, scores_of

MODULES = (*llama_like(10), TargetModule("score", 64, 4))


@pytest.fixture(scope="module")
def plan():
    return allocate(Scores(MODULES, scores_of(MODULES)), 8)


def by_loop(plan, modules):
    """Ranks, parameters, and both shares of the plan and of uniform, one after the other."""
    found = [len(modules)]
    for ranks in (plan.ranks, plan.controls["uniform"]):
        own = [sum(ranks[m.name] * w(m) for m in modules) for w in (lambda m: 1, _cost)]
        all_ = [sum(ranks[m.name] * w(m) for m in plan.modules) for w in (lambda m: 1, _cost)]
        found += [*own, *(round(a / b, 4) for a, b in zip(own, all_, strict=True))]
    return found


def _cost(module):
    return module.d_in + module.d_out


FIELDS = ("modules", "ranks", "parameters", "share_of_ranks", "share_of_parameters",
          "uniform_share_of_ranks", "uniform_share_of_parameters")  # fmt: skip


def assert_rows(plan, rows, wanted):
    assert [row["name"] for row in rows] == list(wanted)
    for row in rows:
        expected = by_loop(plan, wanted[row["name"]])
        assert [row[f] for f in FIELDS] == [*expected[:5], *expected[7:]]


def test_types_are_summed_over_all_layers(plan):
    """In the model's order; what is outside the blocks is together."""
    kinds = dict.fromkeys(m.kind for m in llama_like(1))
    wanted = {kind: [m for m in MODULES if m.kind == kind] for kind in kinds}

    assert_rows(plan, plan.shares()["types"], wanted | {OUTSIDE: [MODULES[-1]]})


def test_depths_are_four_ranges_of_layers(plan):
    """Ten layers: two and three in turn."""
    ranges = {"0-1": (0, 1), "2-4": (2, 3, 4), "5-6": (5, 6), "7-9": (7, 8, 9)}
    wanted = {name: [m for m in MODULES if m.layer in some] for name, some in ranges.items()}

    assert_rows(plan, plan.shares()["depths"], wanted | {OUTSIDE: [MODULES[-1]]})


def test_experts_are_one_type_and_towers_have_depths_of_their_own():
    """A number inside a kind is an expert's; a name before the layer is a tower's."""
    modules = tuple(
        TargetModule(f"{tower}.layers.{i}.experts.{j}.up", 8, 8)
        for tower in ("vision", "text")
        for i in (0, 1)
        for j in (0, 1)
    )
    shares = allocate(Scores(modules, {m.name: 1.0 for m in modules}), 4).shares()

    assert [row["name"] for row in shares["types"]] == ["experts.*.up"]
    assert [row["name"] for row in shares["depths"]] == [
        "vision.layers.0",
        "vision.layers.1",
        "text.layers.0",
        "text.layers.1",
    ]
    assert all(row["share_of_ranks"] == 0.25 for row in shares["depths"])


def test_they_stand_in_the_rank_map_and_below_the_table(plan):
    """As data, and in a line each."""
    text = render_text(plan)

    assert plan.to_json()["shares"] == plan.shares()
    assert RankPlan.from_json(plan.to_json()) == plan
    for row in plan.shares()["types"][:3]:
        own, even = (100 * row[f"{of}share_of_parameters"] for of in ("", "uniform_"))
        assert f"{row['name'].split('.')[-1]} {own:.0f}/{even:.0f}" in text
    assert "layers 0-1 " in text


def test_families_have_rows_with_their_share_of_scores_where_a_model_has_several(plan):
    """A rule for a family is kept to, and the map is read back as it was."""
    modules = [
        TargetModule("vision.layers.0.q_proj", 8, 8, family="vision"),
        TargetModule("text.layers.0.q_proj", 8, 8, family="language.attention"),
        TargetModule("text.layers.0.in_proj", 8, 24, family="language.ssm"),
        TargetModule("text.layers.1.in_proj", 8, 24, family="language.ssm"),
    ]
    scores = Scores(
        tuple(modules), dict(zip((m.name for m in modules), (1.0, 2.0, 2.0, 3.0), strict=True))
    )

    found = allocate(scores, 4, per_type={"family:vision": {"r_max": 2}})

    rows = found.shares()["families"]
    assert [row["name"] for row in rows] == ["vision", "language.attention", "language.ssm"]
    assert [row["share_of_scores"] for row in rows] == [0.125, 0.25, 0.625]
    assert [row["ranks"] for row in rows] == [
        found.ranks[modules[0].name],
        found.ranks[modules[1].name],
        found.ranks[modules[2].name] + found.ranks[modules[3].name],
    ]
    assert rows[0]["ranks"] <= 2
    assert sum(row["share_of_parameters"] for row in rows) == pytest.approx(1, abs=1e-3)
    assert "vision " in render_text(found).split("of uniform: ")[-1]
    again = RankPlan.from_json(found.to_json())
    assert [m.family for m in again.modules] == [m.family for m in modules]
    assert "families" not in plan.shares()
    assert not any("family" in row for row in plan.to_json()["modules"])
