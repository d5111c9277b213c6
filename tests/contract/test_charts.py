"""Charts: every specification names its data and no address, and rows hold a plan's numbers."""

import json

import pytest

from fimlora.plan import TargetModule
from fimlora_contract.charts import EVALUATION_CHARTS, PLAN_CHARTS, chart, specification, theme
from fimlora_contract.charts.rows import evaluation_rows, plan_rows, short_names
from support.plans import plan_of

ALL = (*PLAN_CHARTS, *EVALUATION_CHARTS)


def addresses(value):
    """Every address in a specification, but for that of its schema."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name == "url" or (isinstance(each, str) and "://" in each and name != "$schema"):
                yield each
            yield from addresses(each)
    elif isinstance(value, list):
        for each in value:
            yield from addresses(each)


def fields(value):
    """Every field that a specification reads."""
    if isinstance(value, dict):
        if isinstance(value.get("field"), str):
            yield value["field"]
        for each in value.values():
            yield from fields(each)
    elif isinstance(value, list):
        for each in value:
            yield from fields(each)


def experts():
    """Two layers of a projection and three experts, and a module outside; ranks 1 to 9."""
    names = [
        *(f"h.{layer}.attn.q" for layer in range(2)),
        *(f"h.{layer}.mlp.experts.{i}.up" for layer in range(2) for i in range(3)),
        "score",
    ]
    plan = plan_of(tuple(TargetModule(n, 8, 4) for n in names), list(range(1, 10)))
    uniform = dict.fromkeys(names, 5)
    return type(plan)(**{
        **{f: getattr(plan, f) for f in plan.__dataclass_fields__},
        "controls": {"random": dict(plan.ranks), "uniform": uniform},
        "confidence": {"standard_errors": [0.1] * len(names)},
    })  # fmt: skip


def found():
    arms = [
        {"name": name, "best_rate": 0.01, "curve": [[1, 0.9, None], [2, None, None], [3, 0.7, 0.1]],
         "rates": [{"rate": 0.01, "loss": 0.7}, {"rate": 0.02, "loss": None}]}
        for name in ("fim", "uniform")
    ]  # fmt: skip
    difference = {"arm": "fim", "reference": "uniform", "mean": -0.1, "low": -0.2, "high": 0.1}
    lost = {"arm": "fim", "reference": "random", "mean": None, "low": None, "high": None}
    return {
        "arms": arms,
        "differences": [
            difference | {"metric": "loss"},
            difference | {"metric": "accuracy"},
            lost | {"metric": "loss"},
        ],
    }


@pytest.mark.parametrize("name", ALL)
def test_a_specification_can_be_drawn_of_its_rows_alone(name):
    """Whole with rows and a theme, no address, a title and words for who does not see it."""
    rows = plan_rows(experts().to_json()) | evaluation_rows(found())
    spec = chart(name, rows)

    known = set(rows[spec["data"]["name"]][0])
    made = {"amount", "whose", "key"}
    assert not list(addresses(spec))
    assert spec["title"]
    assert len(spec["description"]) > 40
    assert set(fields(specification(name))) <= known | made
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec


def test_a_chart_without_rows_is_none():
    """Nothing is drawn of nothing."""
    assert chart("curves", {"curves": []}) is None
    assert chart("curves", {}) is None


def test_themes_have_the_same_places_and_other_colours():
    """So a chart that is drawn in one can be told in the other."""

    def places(value, path=()):
        if isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            return [found for key, each in pairs for found in places(each, (*path, key))]
        return [path]

    light, dark = theme("light"), theme("dark")

    assert places(light) == places(dark)
    assert light != dark


def test_experts_share_a_row_with_their_mean_and_their_sum():
    """Ranks and scores are means, parameters are sums, uniform stands beside."""
    plan = experts()

    cells = {(row["layer"], row["type"]): row for row in plan_rows(plan.to_json())["cells"]}

    assert set(cells) == {(0, "q"), (1, "q"), (0, "up"), (1, "up"), (None, "score")}
    assert cells[0, "up"]["modules"] == 3
    assert cells[0, "up"]["rank"] == (3 + 4 + 5) / 3
    assert cells[0, "up"]["parameters"] == 12 * (3 + 4 + 5)
    assert cells[0, "up"]["uniform_parameters"] == 12 * 15
    assert cells[0, "up"]["score"] == pytest.approx(1)
    spread = 1.96 * 0.1 * 3**0.5 / 3
    assert cells[0, "up"]["score_low"] == pytest.approx(1 - spread)
    assert sum(row["parameters"] for row in cells.values()) == plan.spent.parameters


def test_two_towers_have_types_of_their_own():
    """Layer 0 of the encoder is not layer 0 of the decoder."""
    names = [f"{tower}.block.0.attn.q" for tower in ("enc", "dec")]
    plan = plan_of(tuple(TargetModule(n, 8, 8) for n in names), [1, 2])

    rows = plan_rows(plan.to_json())["cells"]

    assert [(row["type"], row["rank"]) for row in rows] == [
        ("enc.block: q", 1),
        ("dec.block: q", 2),
    ]


def test_controls_stand_behind_the_plan_with_uniform_first():
    """One reads from the plan to what it is held against."""
    spending = plan_rows(experts().to_json())["spending"]

    assert [row["name"] for row in spending] == ["plan", "uniform", "random"]


def test_what_is_not_known_of_an_evaluation_is_no_row():
    """A run that diverged has no loss, one seed has no band, other metrics no place."""
    rows = evaluation_rows(found())

    assert [(r["arm"], r["step"], r["low"], r["high"]) for r in rows["curves"]][:2] == [
        ("uniform", 1, 0.9, 0.9),
        ("uniform", 3, pytest.approx(0.6), pytest.approx(0.8)),
    ]
    assert [r["contrast"] for r in rows["differences"]] == ["fim \N{MINUS SIGN} uniform"]
    assert [(r["rate"], r["is_best"]) for r in rows["rates"]] == [(0.01, True)] * 2


def test_names_are_as_short_as_tells_them_apart():
    """Two kinds of ``dense`` keep what comes before."""
    kinds = ["attention.output.dense", "output.dense", "attention.self.query"]

    assert short_names(kinds) == ["attention.output.dense", "output.dense", "query"]
