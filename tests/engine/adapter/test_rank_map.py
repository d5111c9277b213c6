"""The picture and the table of a plan."""

import itertools
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from fimlora.adapter.initial.stated import with_initial
from fimlora.adapter.rank_map import family_grids, layer_grid, ratio_text, render_text
from fimlora.adapter.rank_map_picture import render_svg
from fimlora.allocation import allocate
from fimlora.plan import Budget, PlanWarning, TargetModule
from fimlora.scores import Scores
from support.plans import plan_of

SVG = "{http://www.w3.org/2000/svg}"


def decoder(n_layers=32):
    kinds = [f"self_attn.{k}_proj" for k in "qkvo"] + [
        f"mlp.{k}_proj" for k in ("gate", "up", "down")
    ]
    return tuple(
        TargetModule(f"model.layers.{layer}.{kind}", 64, 64)
        for layer in range(n_layers)
        for kind in kinds
    )


def encoder():
    kinds = [
        "attention.self.query",
        "attention.self.value",
        "attention.output.dense",
        "output.dense",
    ]
    names = [f"bert.encoder.layer.{layer}.{kind}" for layer in range(3) for kind in kinds]
    return tuple(TargetModule(name, 8, 8) for name in (*names, "bert.pooler.dense", "<score>"))


def texts(svg):
    return [element.text for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_every_rank_is_in_its_cell():
    """Layers down, kinds across, in the model's order."""
    grid = layer_grid(plan_of(decoder(2), [1, 2, 3]))

    assert grid.columns[:3] == ("q_proj", "k_proj", "v_proj")
    assert [row.label for row in grid.rows] == ["0", "1"]
    assert grid.rows[0].cells == ((1,), (2,), (3,), (1,), (2,), (3,), (1,))
    assert grid.rows[1].cells == ((2,), (3,), (1,), (2,), (3,), (1,), (2,))


def test_kinds_with_one_leaf_name_stay_apart_and_loose_modules_have_own_rows():
    """BERT has two kinds of ``dense`` in a layer and more outside of them."""
    grid = layer_grid(plan_of(encoder(), [2]))

    assert grid.columns == ("query", "value", "attention.output.dense", "output.dense")
    assert grid.loose == (("bert.pooler.dense", 2), ("<score>", 2))


def test_towers_have_their_own_rows_and_experts_share_a_cell():
    """Layer 0 of the encoder is not layer 0 of the decoder; experts show their range."""
    names = [f"{tower}.block.0.experts.{i}.up" for tower in ("enc", "dec") for i in range(3)]
    plan = plan_of(tuple(TargetModule(n, 8, 8) for n in names), [1, 5, 2, 4, 4, 4])

    grid = layer_grid(plan)

    assert grid.columns == ("up",)
    assert [(row.label, row.cells) for row in grid.rows] == [
        ("enc.block.0", ((1, 5, 2),)),
        ("dec.block.0", ((4, 4, 4),)),
    ]
    assert "1-5" in texts(render_svg(plan))


def two_towers():
    """A vision tower of two layers, a connector, and a language model of three."""
    return (
        *(
            replace(module, name=f"vision.{module.name}", family="vision")
            for module in decoder(2)[:8]
        ),
        TargetModule("projector.linear", 64, 64, family="connector"),
        *(replace(module, family="language") for module in decoder(3)),
    )


def test_families_stand_one_below_another_each_with_its_columns():
    """In the model's order, under their names; what one family lacks leaves no column in it."""
    plan = plan_of(two_towers(), [3, 17, 8])

    bands = family_grids(plan)

    assert [name for name, _ in bands] == ["vision", "connector", "language"]
    vision, connector, language = (grid for _, grid in bands)
    assert [len(row.cells) for row in vision.rows] == [7, 7]
    assert [row.label for row in language.rows] == ["0", "1", "2"]
    assert (connector.rows, len(connector.loose)) == ((), 1)
    shown = texts(render_svg(plan))
    places = [shown.index(name) for name in ("vision", "connector", "language")]
    assert places == sorted(places)
    assert shown.count("q_proj") == 2


def test_a_model_of_one_family_is_one_table():
    """Without a name above it."""
    plan = plan_of(decoder(2), [1, 2, 3])

    ((name, grid),) = family_grids(plan)

    assert (name, grid) == ("", layer_grid(plan))


@pytest.mark.parametrize(
    "modules", [decoder(), encoder(), decoder(1)[:1], encoder()[-1:], two_towers()]
)
def test_the_svg_is_valid_titled_and_complete(modules):
    """Well-formed XML with a title, a description, every rank, and nothing outside it."""
    plan = plan_of(modules, [3, 17, 8])

    svg = render_svg(plan)

    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert f"{len(modules)} modules" in root.find(f"{SVG}title").text
    assert "budget" in root.find(f"{SVG}desc").text
    shown = texts(svg)
    assert [t for t in shown if t.isdigit() and int(t) in {3, 8, 17}].count("3") >= sum(
        rank == 3 for rank in plan.ranks.values()
    )
    width, height = float(root.get("width")), float(root.get("height"))
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.get("x", 0)) + float(rect.get("width")) <= width
        assert float(rect.get("y", 0)) + float(rect.get("height")) <= height
    assert width < 1200
    assert height < 1200


def test_numbers_contrast_with_their_cells():
    """White on dark and black on light, at 4.5 to 1 or more as WCAG AA asks."""

    def luminance(color):
        digits = color.lstrip("#")
        digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
        channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    root = ET.fromstring(render_svg(plan_of(decoder(), list(range(1, 33)))))
    fills = [e.get("fill") for e in root if e.get("fill")]
    cells = [pair for pair in itertools.pairwise(fills) if pair[1] in {"#fff", "#000"}]

    assert len(cells) >= 224
    for rect, ink in cells[:224]:
        light, dark = sorted((luminance(rect), luminance(ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_same_plan_gives_the_same_picture():
    """However its dicts are ordered."""
    plan = plan_of(decoder(3), [1, 2, 3])
    backwards = {name: plan.ranks[name] for name in reversed(plan.ranks)}

    assert render_svg(plan) == render_svg(type(plan)(**{**as_dict(plan), "ranks": backwards}))


def as_dict(plan):
    return {field: getattr(plan, field) for field in plan.__dataclass_fields__}


def test_the_table_is_aligned_and_ends_with_the_budget():
    """For a terminal: one line per layer, then the budget and what the controls cost."""
    modules = (*decoder(2), TargetModule("score", 64, 3))
    plan = allocate(Scores(modules, {m.name: float(i) for i, m in enumerate(modules)}), 4)

    lines = render_text(plan).splitlines()

    assert lines[0] == "Rank map: 15 modules, proportional, ranks 2 to 8"
    assert len({len(line) for line in lines[2:5]}) == 1
    assert lines[5] == "score  3 (2.0)"
    assert lines[-1] == (
        f"budget: mean rank 4; spent: 60 ranks, {plan.spent.parameters:,} trainable parameters "
        "(uniform 7,497, random 7,497)"
    )


def test_the_spending_of_the_controls_stands_beside_the_plans():
    """At ranks of unequal cost, five random patterns span an interval."""
    modules = tuple(TargetModule(f"h.{i}.w{k}", 64, 8 << k) for i in range(4) for k in range(3))
    plan = allocate(Scores(modules, {m.name: float(i) for i, m in enumerate(modules)}), 4)
    spent = {n: plan.spending_of(ranks).parameters for n, ranks in plan.controls.items()}
    uniform = spent.pop("uniform")
    low, high = min(spent.values()), max(spent.values())

    line = render_text(plan).splitlines()[-1]

    assert low < high
    assert line.endswith(f"(uniform {uniform:,}, random {low:,} to {high:,})")


def test_a_budget_above_every_ceiling_is_pointed_out():
    """The reader sees what could not be spent, and why."""
    modules = decoder(1)
    cost = sum(m.cost for m in modules)

    plan = allocate(
        Scores(modules, dict.fromkeys((m.name for m in modules), 1.0)),
        Budget("parameters", 9 * cost),
        r_max=8,
    )

    assert f"{cost:,} unspent, as every module is at r_max" in render_text(plan)
    assert "unspent" in render_svg(plan)


def with_signal(plan):
    """A plan that has two more ranks at its first module than its null, and one less at others."""
    null = [plan.ranks[m.name] + (-2 if i == 0 else 1 if i < 3 else 0)
            for i, m in enumerate(plan.modules)]  # fmt: skip
    signal = {"verdict": "task", "sentence": "4 % of the ranks <follow>", "null_ranks": null}
    return replace(plan, signal=signal)


def test_the_sentence_stands_before_the_map_and_moves_beside_their_ranks():
    """In text and picture alike; what did not move has no number of its own."""
    plan = with_signal(plan_of(decoder(2), [5, 2, 3]))

    lines = render_text(plan).splitlines()
    found = texts(render_svg(plan))

    assert lines[1] == "4 % of the ranks <follow>"
    row = [cell for cell in lines[4].split() if cell != "(1.0)"]
    assert row == ["0", "5", "+2", "2", "-1", "3", "-1", "5", "2", "3", "5"]
    assert "4 % of the ranks <follow>" in found
    small = [e.text for e in ET.fromstring(render_svg(plan)).iter(f"{SVG}tspan")]
    assert [text for text in small if text != "(1.0)"] == ["+2", "-1", "-1"]
    assert any("labels of other rows" in text for text in found)
    assert "labels of other rows" in lines[-3]


def test_a_legend_explains_no_marks_that_are_not_there():
    """Where labels move no rank, nothing stands behind a rank."""
    plan = plan_of(decoder(2), [5, 2, 3])
    null = [plan.ranks[each.name] for each in plan.modules]
    signal = {"verdict": "none", "sentence": "no signal", "null_ranks": null}
    unmoved = replace(plan, signal=signal)

    assert "after a rank" in render_text(with_signal(plan))
    assert "after a rank" not in render_text(unmoved)
    assert "after a rank" not in render_svg(unmoved)


def test_a_plan_without_a_signal_says_nothing_of_one():
    """Nor does one that only says why there is none have any moves."""
    plan = plan_of(decoder(2), [5, 2, 3])
    unknown = replace(
        plan, signal={"verdict": "unknown", "sentence": "its signal is not known"}
    )

    assert "labels" not in render_text(plan) + render_svg(plan)
    assert render_text(unknown).splitlines()[1] == "its signal is not known"
    small = {e.text for e in ET.fromstring(render_svg(unknown)).iter(f"{SVG}tspan")}
    assert small == {"(1.0)"}


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.0, "0"), (1e-9, "<.01"), (0.005, ".01"), (0.124, ".12"), (0.99, ".99"), (0.9949, ".99"),
        (0.996, "1.0"), (1.0, "1.0"), (9.94, "9.9"), (9.96, "10"), (120.4, "120"), (1e9, ">9k"),
    ],
)  # fmt: skip
def test_a_score_is_four_characters_at_most(ratio, text):
    """To be seen beside a rank, not to be computed with."""
    assert ratio_text(ratio) == text


def test_scores_stand_beside_the_ranks_that_bounds_hide():
    """Two modules at the ceiling differ tenfold; experts of a cell share their mean."""
    names = [*(f"h.{i}.w" for i in range(3)), "h.0.experts.0.up", "h.0.experts.1.up", "out"]
    modules = tuple(TargetModule(name, 64, 64) for name in names)
    scores = dict(zip(names, [1.0, 10.0, 100.0, 4.0, 6.0, 0.0], strict=True))
    plan = allocate(Scores(modules, scores), 4, r_max=6)
    mean = 121 / 6

    grid = layer_grid(plan)
    text, picture = render_text(plan), render_svg(plan)

    assert [row.scores[0] for row in grid.rows] == pytest.approx(
        [s / mean for s in (1, 10, 100)]
    )
    assert grid.rows[0].scores[1] == pytest.approx(5 / mean)
    assert grid.loose_scores == (0,)
    assert [w for w in text.split() if w.startswith("(") and w.endswith(")")] == [
        "(.05)", "(.25)", "(.50)", "(5.0)", "(0)",
    ]  # fmt: skip
    for score in ("(.05)", "(.25)", "(.50)", "(5.0)", "(0)"):
        assert f">{score}</tspan>" in picture
    assert "score over the mean score" in text
    assert "score over the mean score" in picture


def test_scores_that_are_all_zero_are_not_shown():
    """They have no mean to be compared with."""
    modules = decoder(1)
    plan = allocate(Scores(modules, dict.fromkeys((m.name for m in modules), 0.0)), 4)

    assert "(" not in render_text(plan).replace("(uniform", "")


def test_what_to_mind_stands_below_the_budget():
    """A warning a line."""
    warnings = (PlanWarning("few_examples", "only 2"), PlanWarning("at_bounds", "9 of 14"))
    plan = replace(plan_of(decoder(2), [5, 2, 3]), warnings=warnings)

    assert render_text(plan).splitlines()[-2:] == ["mind: only 2", "mind: 9 of 14"]


def test_what_training_begins_with_comes_before_all_else():
    """In text under the heading and once; in the picture and its description, wrapped."""
    plan = replace(
        plan_of(decoder(), [4, 8]),
        warnings=(PlanWarning("few_examples", "only 3 examples"),),
    )

    moved = with_initial(plan, "zeros", None)

    message = moved.warnings[0].message
    text, svg = render_text(moved).splitlines(), ET.fromstring(render_svg(moved))
    assert text[1] == f"mind: {message}"
    assert sum(message in line for line in text) == 1
    assert "mind: only 3 examples" in text
    assert svg.find(f"{SVG}desc").text.startswith(message)
    shown = [e.text for e in svg.iter(f"{SVG}text")]
    assert "initial weights zeros are all zero" in " ".join(filter(None, shown))
    assert max(len(line) for line in shown if line) < len(message)
    assert "initial weights" not in render_text(plan) + render_svg(plan)


@pytest.mark.parametrize("n_layers", [6, 41, 80, 200])
def test_long_models_stand_in_blocks_side_by_side(n_layers):
    """No cell lies over another or outside, every layer is named once, and each block its axis."""
    root = ET.fromstring(render_svg(plan_of(decoder(n_layers), [3, 17, 8])))

    cells = [rect for rect in root.iter(f"{SVG}rect") if rect.get("height") == "22"]
    places = {(float(c.get("x")), float(c.get("y"))) for c in cells}
    columns = sorted({x for x, _ in places})
    shown = [element.text for element in root.iter(f"{SVG}text")]
    assert len(places) == len(cells) == 7 * n_layers
    assert all(b - a >= float(cells[0].get("width")) for a, b in itertools.pairwise(columns))
    assert shown.count("layer") == len(columns) // 7 == min(4, -(-n_layers // 40))
    assert set(map(str, range(n_layers))) <= set(shown)
    assert float(root.get("width")) < 2500
    assert float(root.get("height")) < (1250 if n_layers <= 160 else 1550)


def test_the_picture_says_what_the_plan_was_made_of():
    """Model and data by name and content; the day only if one is given."""
    sources = {
        "base_model": {"source": "hub", "id": "org/model", "revision": "0e9e39f249a16976918f"},
        "dataset": {"source": "inline", "digest": "sha256:8827c541486d1e3bc367"},
    }
    plan = replace(plan_of(decoder(2), [5, 2]), provenance=sources)
    line = "model: org/model (0e9e39f249a1), data: rows of the request (8827c541486d)"

    kept, drawn = render_svg(plan), render_svg(plan, dated="2026-11-28")

    assert line in texts(kept)
    assert f"{line}, 2026-11-28" in texts(drawn)
    assert line in ET.fromstring(kept).find(f"{SVG}desc").text
    assert "2026" not in kept
