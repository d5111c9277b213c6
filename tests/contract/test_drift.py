"""Drift is a distance that noise explains or does not; whoever computes it says the same."""

import math
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fimlora.allocation.distance import moved_share
from fimlora_contract.drift import rank_changes, rank_drift
from fimlora_contract.drift_gate import judge, percent, read_limits
from support.rank_maps import map_of

modules = st.dictionaries(
    st.sampled_from([f"layers.{i}.q_proj" for i in range(8)]),
    st.tuples(st.integers(0, 64), st.floats(0, 1e6)),
    min_size=1,
)
noises = st.floats(0, 1)


class TestDrift:
    @given(modules)
    def test_a_result_does_not_differ_from_itself(self, some):
        """Nothing has moved, so that no limit is exceeded, not even zero."""
        plan = map_of(some)

        drift = rank_drift(plan, plan)

        assert (drift.share_moved, drift.moved, drift.n_changed) == (0, 0, 0)
        assert drift.share_of_scores_moved in {0, None}
        assert drift.remarks == []
        assert not judge(drift, {"ranks": 0, "scores": 0}).fails

    @given(modules, modules, noises, noises)
    def test_it_is_as_far_there_as_back(self, some, others, noise, other_noise):
        """Shares and noise are symmetric; changes have the other sign."""
        a = map_of(some, noise=(noise, noise / 2))
        b = map_of(others, noise=(other_noise, other_noise / 3))

        there, back = rank_drift(a, b), rank_drift(b, a)

        assert there.share_moved == back.share_moved
        assert there.rank_noise == back.rank_noise
        assert there.share_of_scores_moved == back.share_of_scores_moved
        assert there.score_noise == back.score_noise
        assert [c.change for c in rank_changes(a, b)] == [-c.change for c in rank_changes(b, a)]

    @given(modules, st.integers(-400, 400))
    def test_only_ratios_of_scores_count(self, some, exponent):
        """Another unit of the loss is no drift, also where sums of scores overflow."""
        scaled = {
            name: (rank, math.ldexp(score, exponent)) for name, (rank, score) in some.items()
        }

        moved = rank_drift(map_of(some), map_of(scaled)).share_of_scores_moved

        assert moved is None or moved == pytest.approx(0, abs=1e-9)

    @given(modules, modules)
    def test_ranks_move_as_the_engine_counts(self, some, others):
        """On the same modules the share is the one of the engine's own distance."""
        both = {name: others.get(name, (3, 1.0)) for name in some}

        drift = rank_drift(map_of(some), map_of(both))

        ranks = [{name: rank for name, (rank, _) in of.items()} for of in (some, both)]
        assert drift.share_moved == moved_share(*ranks)
        assert 0 <= drift.share_moved <= 1

    @given(modules)
    def test_results_without_a_common_module_are_wholly_apart(self, some):
        """All that either has moves, and the remark says why."""
        others = {
            f"other.{name}": (rank + 1, score + 1) for name, (rank, score) in some.items()
        }

        drift = rank_drift(map_of(some), map_of(others))

        assert drift.share_moved == 1
        assert drift.share_of_scores_moved in (None, pytest.approx(1))
        assert "no target module is in both" in drift.remarks[0]

    def test_a_share_of_the_scores_is_half_the_distance_of_their_shares(self):
        """From (1/4, 3/4) to (1/2, 1/2) a quarter moves."""
        a, b = ({"a": (8, 1.0), "b": (8, 3.0)}, {"a": (8, 10.0), "b": (8, 10.0)})

        assert rank_drift(map_of(a), map_of(b)).share_of_scores_moved == pytest.approx(0.25)

    def test_what_differs_besides_is_said(self):
        """Methods, budgets and modules are reasons for drift that are no news."""
        a = map_of({"a": (8, 1.0), "b": (8, 1.0)})
        b = map_of({"a": (9, 1.0)}, method="eva")

        assert rank_drift(a, b).remarks == [
            "1 target modules are in one of them only",
            "their methods differ: fim and eva",
            "they spend 16 and 9 ranks, and what one spends more counts as moved",
        ]


class TestExperts:
    """Of fused experts it counts which ones train, too: equal ranks of others are other plans."""

    MODULES: ClassVar = {"0.experts.up": (8, 1.0), "1.experts.up": (8, 1.0)}

    def drift(self, a, b, modules=MODULES):
        """Between two selections of four experts in each of two modules."""
        maps = [map_of(modules, n_experts=4, experts=each) for each in (a, b)]
        return rank_drift(*maps), rank_changes(*maps)

    @pytest.mark.parametrize(
        ("a", "b", "moved"),
        [
            ({"0.experts.up": [0], "1.experts.up": [2]},) * 2 + (0,),
            # one of two is another
            (
                {"0.experts.up": [0], "1.experts.up": [2]},
                {"0.experts.up": [0], "1.experts.up": [3]},
                0.5,
            ),
            ({"0.experts.up": [0, 1]}, {"0.experts.up": [2, 3]}, 1 / 3),  # all train in 1.
            ({"0.experts.up": [0]}, {}, 3 / 13),  # 1 + 4 before, 4 + 4 after, three of them new
            ({}, {}, None),
            ({"0.experts.up": [0, 1, 2, 3]}, {}, 0),  # named, but all
        ],
        ids=["same", "one", "disjoint", "all", "none", "all by name"],
    )
    def test_the_share_that_moved_is_that_of_what_trains(self, a, b, moved):
        """As of ranks: what either trains alone, over what both train in sum."""
        drift, _ = self.drift(a, b)

        expected = None if moved is None else pytest.approx(moved)
        assert drift.share_of_experts_moved == expected
        assert self.drift(b, a)[0].share_of_experts_moved == expected
        assert drift.share_moved == 0

    def test_a_module_with_other_experts_is_a_change(self):
        """With what trains in either, all where none are named; the rank stays as it is."""
        drift, changes = self.drift(
            {"0.experts.up": [1], "1.experts.up": [2]}, {"1.experts.up": [2]}
        )

        assert [(c.name, c.change, c.experts_a, c.experts_b) for c in changes] == [
            ("0.experts.up", 0, [1], [0, 1, 2, 3])
        ]
        assert (drift.n_changed, drift.n_other_experts) == (0, 1)
        assert drift.moved == drift.largest_change == 0

    def test_the_gate_fails_for_other_experts_at_equal_ranks(self):
        """Whatever limit is given without a kind is theirs, too."""
        drift, _ = self.drift(
            {"0.experts.up": [0], "1.experts.up": [2]},
            {"0.experts.up": [1], "1.experts.up": [3]},
        )

        found = judge(drift, read_limits(["50%"]))

        assert found.fails
        assert "100% of the experts moved, above the limit of 50%" in found.sentence
        assert [(kind.of, kind.fails) for kind in found.kinds] == [
            ("ranks", False), ("scores", False), ("experts", True)
        ]  # fmt: skip
        assert not judge(drift, read_limits(["ranks=0"])).fails

    def test_where_none_are_selected_none_are_judged(self):
        """Nothing is said of them, unless they alone were asked about."""
        drift, changes = self.drift({}, {})

        assert changes == []
        assert [kind.of for kind in judge(drift, read_limits(["0"])).kinds] == [
            "ranks",
            "scores",
        ]
        alone = judge(drift, read_limits(["experts=0"]))
        assert not alone.fails
        assert "neither of the two selects any" in alone.sentence

    @pytest.mark.parametrize("limits", ["experts=0", "5%"])
    def test_experts_that_are_modules_are_counted_by_them(self, limits):
        """Selected ones are there, others are not; dense layers and shared experts are none."""

        def plan(*chosen, selects=True):
            names = [f"0.mlp.experts.{i}.up" for i in chosen]
            always = ["0.q_proj", "0.mlp.shared_experts.up"]
            ranked = dict.fromkeys([*names, *always], (8, 1.0))
            return map_of(
                ranked,
                provenance={"expert_selection": {"method": "routed"} if selects else None},
            )

        drift = rank_drift(plan(0, 1), plan(1, 2))

        assert drift.share_of_experts_moved == pytest.approx(0.5)
        assert judge(drift, read_limits([limits])).fails
        assert rank_drift(plan(0, 1), plan(0, 1)).share_of_experts_moved == 0
        none_selected = [plan(0, 1, selects=False), plan(0, 2, selects=False)]
        assert rank_drift(*none_selected).share_of_experts_moved is None

    @pytest.mark.parametrize(
        "gone", [{"0.experts.up": (0, 1.0)}, {}], ids=["rank 0", "no target"]
    )
    def test_a_module_that_trains_no_longer_has_lost_its_experts(self, gone):
        """Whether it has no rank or is none of the plan's."""
        before = map_of(
            {"0.experts.up": (8, 1.0)}, n_experts=4, experts={"0.experts.up": [0, 1]}
        )
        after = map_of(gone | {"0.q_proj": (8, 1.0)}, n_experts=None)

        assert rank_drift(before, after).share_of_experts_moved == 1
        assert judge(rank_drift(after, before), read_limits(["experts=0"])).fails


class TestNoise:
    def test_each_result_has_its_share_of_it(self):
        """Of two that are equally noisy it is that noise; of one that is not, a root of half."""
        some = {"a": (8, 1.0)}
        noisy, calm = map_of(some, noise=(0.1, 0.2)), map_of(some, noise=(0.0, 0.0))

        assert rank_drift(noisy, noisy).rank_noise == pytest.approx(0.1)
        assert rank_drift(noisy, noisy).score_noise == pytest.approx(0.2)
        assert rank_drift(noisy, calm).rank_noise == pytest.approx(0.1 / math.sqrt(2))

    def test_no_rows_move_a_control(self):
        """Uniform ranks go by no score and have no noise."""
        some = {"a": (8, 1.0)}
        drift = rank_drift(map_of(some, rule="uniform"), map_of(some, noise=(0.1, 0.2)))

        assert drift.rank_noise == pytest.approx(0.1 / math.sqrt(2))
        assert drift.share_of_scores_moved is None
        assert drift.score_noise is None

    def test_where_only_the_expected_move_is_known_more_than_that_is_noise(self):
        """Of 100 ranks 4 are expected to move, and two roots of that more are no news."""
        signal = {"verdict": "task", "sentence": "", "moved_by_rows": 0.04}
        plan = map_of({"a": (100, 1.0)}, rule="spectral", signal=signal)

        drift = rank_drift(plan, plan)

        assert drift.rank_noise == pytest.approx(0.08)
        assert drift.score_noise is None

    def test_unknown_noise_stays_unknown(self):
        """A result that says nothing of its noise is not taken for one without any."""
        some = {"a": (8, 1.0)}
        drift = rank_drift(map_of(some), map_of(some, noise=(0.1, 0.2)))

        assert (drift.rank_noise, drift.score_noise) == (None, None)


class TestGate:
    @staticmethod
    def drift(*, moved, noise):
        """A tenth of the ranks and scores moved, or so, beside such a noise."""
        n = round(100 * moved)
        a = map_of({"a": (50, 50.0), "b": (50, 50.0)}, noise=noise)
        b = map_of({"a": (50 + n, 50.0 + n), "b": (50 - n, 50.0 - n)}, noise=noise)
        return rank_drift(a, b)

    @pytest.mark.parametrize(
        ("moved", "noise", "fails"),
        [
            (0.10, 0.02, True),  # above both
            (0.10, 0.12, False),  # above the limit, within the noise
            (0.04, 0.02, False),  # above the noise, within the limit
            (0.05, 0.02, False),  # at the limit is not above it
            (0.10, 0.1001, False),  # hardly within the noise
            (0.0, 0.0, False),
        ],
    )
    def test_only_what_is_above_limit_and_noise_fails(self, moved, noise, fails):
        """And the sentence has all three figures."""
        found = judge(self.drift(moved=moved, noise=(noise, noise)), read_limits(["5%"]))

        assert found.fails == fails
        assert [kind.fails for kind in found.kinds] == [fails, fails]
        assert f"{percent(moved)} of the ranks moved" in found.sentence
        assert "limit of 5%" in found.sentence
        assert f"other rows would move up to {percent(noise)}" in found.sentence
        assert found.sentence.startswith("drift" if fails else "no drift")

    def test_unknown_noise_excuses_nothing(self):
        """What is above the limit fails, and the sentence says that noise is not known."""
        found = judge(self.drift(moved=0.1, noise=None), {"ranks": 0.05})

        assert found.fails
        assert "is not known" in found.sentence

    def test_one_kind_is_enough_to_fail(self):
        """Ranks may stay where scores have moved."""
        limits = read_limits(["ranks=50%", "scores=5%"])

        found = judge(self.drift(moved=0.1, noise=(0.0, 0.0)), limits)

        assert found.fails
        assert [(kind.of, kind.fails) for kind in found.kinds] == [
            ("ranks", False),
            ("scores", True),
        ]

    def test_scores_that_are_not_there_are_not_judged(self):
        """A control has none; its ranks are judged all the same."""
        a = map_of({"a": (8, 1.0), "b": (8, 0.0)}, rule="uniform")
        b = map_of({"a": (12, 1.0), "b": (4, 0.0)})

        found = judge(rank_drift(a, b), read_limits(["5%"]))

        assert "scores are not judged" in found.sentence
        assert [kind.fails for kind in found.kinds] == [True, False]

    @pytest.mark.parametrize(
        ("texts", "limits"),
        [
            (["5%"], {"ranks": 0.05, "scores": 0.05, "experts": 0.05}),
            (["0.05"], {"ranks": 0.05, "scores": 0.05, "experts": 0.05}),
            (["0"], {"ranks": 0, "scores": 0, "experts": 0}),
            (["experts=0"], {"experts": 0}),
            (["ranks=5%"], {"ranks": 0.05}),
            (["scores=.1", "ranks=100%"], {"scores": 0.1, "ranks": 1}),
            (["5%", "scores=10%"], {"ranks": 0.05, "scores": 0.1, "experts": 0.05}),
        ],
    )
    def test_limits_are_read(self, texts, limits):
        """One for all kinds, or for one, which goes before."""
        assert read_limits(texts) == pytest.approx(limits)

    @pytest.mark.parametrize(
        "texts",
        [["5"], ["101%"], ["-1%"], ["five"], [""], ["nan"], ["1e-2"], ["rank=5%"], ["ranks="],
         ["5%", "6%"], ["ranks=5%", "ranks=6%"], ["9" * 400]],
    )  # fmt: skip
    def test_a_limit_that_is_none_is_refused(self, texts):
        """With what was given and what is allowed: 5 may be meant as five percent."""
        with pytest.raises(ValueError, match=r"5%|give one"):
            read_limits(texts)

    @given(st.floats(0, 1))
    def test_a_share_that_is_not_zero_does_not_read_as_zero(self, share):
        """However small; and it is a number with a sign."""
        shown = percent(share)

        assert (shown == "0%") == (share == 0)
        assert math.isclose(float(shown.removesuffix("%")) / 100, share, rel_tol=0.06)
