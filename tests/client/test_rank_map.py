"""The rank map in the terminal."""

import io
import re

import pytest
from rich.console import Console

from fimlora_client.rank_map import arrange, rank_map_table, short_names
from fimlora_contract.confidence import PlanWarning
from fimlora_contract.rank_maps import RankMap, WrittenAdapter
from fimlora_contract.signals import Signal


def module(name, rank, *, layer=None, kind=None):
    return {
        "name": name, "d_in": 64, "d_out": 64, "layer": layer, "kind": kind or name,
        "score": 1.0, "rank": rank, "alpha": 2 * rank, "parameters": 8 * rank,
    }  # fmt: skip


def make(modules, **budget):
    ranks = sum(m["rank"] for m in modules)
    return RankMap(
        format="fimlora.rank_map/1", budget=budget or {"unit": "rank", "value": 8, "limit": 99},
        rule="proportional", r_min=4, r_max=16, scale=2, modules=modules, provenance={},
        spent={"ranks": ranks, "parameters": 8 * ranks},
        controls={
            "uniform": {"ranks": 8, "parameters": 12_345, "pattern": {}},
            "random": {"ranks": 8, "parameters": 12_300, "pattern": {}},
            "random-2": {"ranks": 8, "parameters": 12_400, "pattern": {}},
        },
    )  # fmt: skip


def shown(rank_map, *, width=100, colour=False):
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, no_color=False,
        color_system="truecolor" if colour else None,
    )  # fmt: skip
    console.print(rank_map_table(rank_map))
    return console.file.getvalue()


BLOCKS = [
    module("layers.0.q", 4, layer=0, kind="attn.q"),
    module("layers.0.v", 16, layer=0, kind="attn.v"),
    module("layers.1.q", 8, layer=1, kind="attn.q"),
]


def test_layers_go_down_and_kinds_across():
    """A module that is not there leaves its cell empty."""
    rows = [line.split() for line in shown(make(BLOCKS)).splitlines() if line.strip()]

    assert rows[0] == ["layer", "q", "v", "mean"]
    assert rows[1] == ["0", "4", "(1.0)", "16", "(1.0)", "10.0"]
    assert rows[2] == ["1", "8", "(1.0)", "·", "8.0"]
    assert rows[3] == ["mean", "6.0", "16.0"]


def test_modules_outside_the_blocks_are_listed_below():
    """A pooler belongs to no layer."""
    rows = [
        line.split() for line in shown(make([*BLOCKS, module("pooler.dense", 9)])).splitlines()
    ]

    assert ["pooler.dense", "9", "(1.0)"] in rows


def test_a_map_without_blocks_has_no_table():
    """Only the list, and the budget."""
    text = shown(make([module("head", 9)]))

    assert "layer" not in text
    assert "head" in text


def test_experts_share_a_cell_with_their_lowest_and_highest_rank():
    """Hundreds of experts would not fit as columns."""
    experts = [
        module(f"l.0.mlp.experts.{n}.up", 4 + n, layer=0, kind=f"mlp.experts.{n}.up")
        for n in range(3)
    ]

    grid = arrange(make(experts).modules)

    assert grid.kinds == ["mlp.experts.*.up"]
    assert "4\N{EN DASH}6" in shown(make(experts))


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        (["self_attn.q_proj", "mlp.up_proj"], ["q_proj", "up_proj"]),
        (
            ["attention.output.dense", "output.dense"],
            ["attention.output.dense", "output.dense"],
        ),
        (["a.dense", "b.dense", "key"], ["a.dense", "b.dense", "key"]),
    ],
)
def test_names_are_as_short_as_they_can_be(kinds, names):
    """But never so short that two look alike."""
    assert short_names(kinds) == names


@pytest.mark.parametrize(
    ("budget", "asked", "spent"),
    [
        (
            {"unit": "rank", "value": 8, "limit": 99},
            "mean rank 8",
            "28 of 99 ranks = 224 param",
        ),
        (
            {"unit": "parameters", "value": 300, "limit": 300},
            "300 parameters",
            "224 of 300 param",
        ),
        (
            {"unit": "fraction", "value": 0.0125, "limit": 300},
            "1.250% of the base",
            "224 of 300",
        ),
        (
            {"unit": "bytes", "value": 1200, "limit": 300},
            "1,200 bytes",
            "224 of 300 parameters",
        ),
    ],
)
def test_the_budget_is_said_in_its_own_unit(budget, asked, spent):
    """What was asked, what is spent, and what the controls would spend."""
    text = shown(make(BLOCKS, **budget))

    assert asked in text
    assert spent in text
    assert "each 4 to 16" in text
    assert "uniform 12,345, random 12,300 to 12,400 (2 patterns) parameters" in text


def test_what_is_not_spent_is_said():
    """In the unit of the limit, and only when something is left."""
    budget = {"unit": "rank", "value": 9, "limit": 29}

    assert "1 ranks unspent" in shown(make(BLOCKS, **budget, unspent=1))
    assert "unspent" not in shown(make(BLOCKS, **budget, unspent=0))


def test_padding_is_said():
    """Layout C trains more than the plan spends; layout B does not."""
    padded = {"layout": "C", "width": 16, "trainable_parameters": 4_321}
    plain = {"layout": "B", "width": None, "trainable_parameters": 224}
    both = [
        make(BLOCKS).model_copy(update={"adapter": WrittenAdapter(**a)})
        for a in (padded, plain)
    ]

    assert "4,321 parameters, each module padded to rank 16" in shown(both[0])
    assert "padded" not in shown(both[1])
    assert "padded" not in shown(make(BLOCKS))


def test_a_deeper_shade_is_a_higher_rank():
    """The lowest and the highest rank have the two ends of the scale."""
    text = shown(make(BLOCKS), colour=True)

    shades = dict(re.findall(r"48;2;(\d+;\d+;\d+)m *(\d+) ", text))
    assert shades["238;243;247"] == "4"
    assert shades["10;53;83"] == "16"
    assert len(shades) == 3


def test_what_is_left_out_is_said_with_its_reason():
    """One name for each reason, and how many more there are."""
    left_out = {"tower.q": "too far", "tower.v": "too far", "pooler": "too new"}
    lines = shown(make(BLOCKS).model_copy(update={"not_targeted": left_out})).splitlines()

    found = [line.split() for line in lines if "left out" in line]
    assert [" ".join(line) for line in found] == [
        "left out tower.q and 1 more: too far",
        "left out pooler: too new",
    ]
    assert "left out" not in shown(make(BLOCKS))


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"model_class": "A"}, "names     of A"),
        (
            {"model_class": "A", "names_also_hold_for": "B"},
            "of A; those of the config hold for B",
        ),
        ({"model_class": "A", "names_do_not_hold_for": "B"}, "of A, and not for B"),
    ],
)
def test_the_classes_that_the_names_are_for_are_shown(facts, line):
    """A checkpoint for text and images has two, and names of its modules may differ."""
    assert line in shown(make(BLOCKS).model_copy(update={"provenance": facts}))
    assert "names " not in shown(make(BLOCKS))


def test_scores_stand_beside_the_ranks():
    """Over their mean, as bounds hide how far they go; without any there is no column of noughts."""
    scores = (1.0, 10.0, 100.0)
    modules = [m | {"score": score} for m, score in zip(BLOCKS, scores, strict=True)]
    text = shown(make(modules))

    assert [w for w in text.split() if re.fullmatch(r"\(\S+\)", w)] == [
        "(.03)",
        "(.27)",
        "(2.7)",
    ]
    assert "scores" in text
    blank = shown(make([m | {"score": 0.0} for m in BLOCKS]))
    assert "(0)" not in blank
    assert "scores" not in blank


def test_how_sure_it_is_and_what_to_mind_is_said():
    """Ranks that hold, the overlap to expect, and each warning with its step."""
    confidence = {
        "n_examples": 64, "n_resamples": 2000, "level": 0.95, "expected_overlap": 0.973,
        "n_unresolved": 1, "standard_errors": [0.1] * 3, "lowest_ranks": [4, 15, 8],
        "highest_ranks": [4, 16, 8], "shares": [1.0, 0.6, 1.0],
    }  # fmt: skip
    data = make(BLOCKS).model_dump() | {
        "confidence": confidence,
        "warnings": [{"code": "at_bounds", "message": "2 of 3 modules stand at a bound"}],
    }
    text = " ".join(shown(RankMap.model_validate(data), width=140).split())

    assert "2 of 3 ranks hold in 95% of other draws of 64 examples" in text
    assert "overlaps by 97.3%" in text
    assert "mind 2 of 3 modules stand at a bound" in text
    plain = shown(make(BLOCKS))
    assert "sure" not in plain
    assert "mind" not in plain


def test_the_sentence_of_the_signal_comes_first():
    """All else hangs on it; a map without one begins with the table."""
    sentence = "no signal: this map is the model's"
    plain = make(BLOCKS)
    stated = plain.model_copy(update={"signal": Signal(verdict="none", sentence=sentence)})

    assert shown(stated).split("\n")[1].strip() == sentence
    assert "signal" not in shown(plain)


def test_what_training_begins_with_comes_before_all_else():
    """A base model that must change is said above the signal, and once; others stay below."""
    plain = make(BLOCKS)
    first = PlanWarning(code="base_changes", message="need another base model")
    other = PlanWarning(code="few_examples", message="only 3 examples")
    signal = Signal(verdict="none", sentence="no signal")
    found = shown(
        plain.model_copy(update={"signal": signal, "warnings": [first, other]})
    ).split("\n")
    lines = [line.strip() for line in found if line.strip()]

    assert lines[0] == "mind  need another base model"
    assert lines[1] == "no signal"
    assert lines[-1] == "mind  only 3 examples"
    assert sum("another base model" in line for line in lines) == 1


def test_families_have_tables_of_their_own_below_what_each_gets():
    """Towers of one depth would share cells otherwise; scores stay over the mean of all."""
    modules = [
        module("vision.layers.0.q", 4, layer=0, kind="q") | {"family": "vision"},
        module("projector", 5) | {"family": "connector"},
        module("text.layers.0.q", 16, layer=0, kind="q") | {"family": "language", "score": 4.0},
    ]
    share = {"modules": 1, "share_of_ranks": 0.5, "share_of_parameters": 0.25}
    rows = [
        share
        | {"name": m["family"], "ranks": m["rank"], "parameters": 1_000, "share_of_scores": 0.2}
        for m in modules
    ]
    rank_map = make(modules)
    rank_map = RankMap.model_validate(
        rank_map.model_dump() | {"shares": {"types": [], "depths": [], "families": rows}}
    )

    lines = [line.strip() for line in shown(rank_map, width=200).splitlines()]

    headings = [
        f"{m['family']}  1 module, {m['rank']} ranks, 1,000 parameters, 25% of all, 20% of the scores"
        for m in modules
    ]
    assert [line for line in lines if line.endswith("of the scores")] == headings
    at = [lines.index(heading) for heading in headings]
    assert re.search(r"4 \(\.50\)", "\n".join(lines[at[0] : at[1]]))
    assert re.search(r"projector +5 \(\.50\)", "\n".join(lines[at[1] : at[2]]))
    assert re.search(r"16 \(2\.0\)", "\n".join(lines[at[2] :]))


@pytest.mark.parametrize(
    "blocks",
    [
        [
            module("layers.0.q", 384, layer=0, kind="q"),
            module("layers.0.v", 384, layer=0, kind="v"),
        ],
        [
            module(f"layers.0.e.{n}.q", r, layer=0, kind=f"e.{n}.q")
            for n, r in ((0, 16), (1, 128))
        ],
    ],
    ids=["high", "experts"],
)
def test_a_wide_cell_stays_apart_from_its_neighbours(blocks):
    """Layer 0 at rank 384 is not read as 0384."""
    rows = [line.split() for line in shown(make(blocks)).splitlines() if line.strip()]
    cells = [word for word in rows[1] if not word.startswith("(")]

    assert cells[0] == "0"
    assert cells[1] in {"384", "16\N{EN DASH}128"}


def test_modules_too_small_for_the_lowest_rank_are_said():
    """They have their full rank, which is below what each is said to get."""
    small, large = module("layers.0.q", 3, layer=0), module("layers.0.v", 16, layer=0)
    small |= {"d_in": 3}

    text = " ".join(shown(make([small, large])).split())

    assert "each 4 to 16; 1 of 2 modules at their full rank below" in text
    assert "full rank" not in shown(make(BLOCKS))


def test_bounds_are_shown_as_far_as_modules_can_have_them():
    """A budget beyond all of them has bounds by default that no module reaches."""
    full = [module(f"layers.{i}.q", 3, layer=i) | {"d_in": 3} for i in range(2)]
    rank_map = make(full)

    assert "each 3 to 3; all modules at their full rank" in " ".join(shown(rank_map).split())
    assert "2 modules, ranks 3 to 3," in rank_map._repr_mimebundle_()["text/plain"]
    part = make([full[0], module("layers.1.q", 4, layer=1)])
    assert part.bounds == (4, 16)
