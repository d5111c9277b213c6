"""Named target modules, and budgets that no plan can meet."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from fimlora_contract.requests import CalibrationRequest
from fimlora_service.errors import ValidationFailed
from fimlora_service.resolve.target_checks import check_targets
from support.service import CONFIG, make_model


class TestTargets:
    @pytest.mark.parametrize(
        "entries",
        [
            ["query"],
            ["self.query", "output.dense"],
            ["encoder.layer.0.attention.self.query"],
            ["bert.encoder.layer.0.attention.self.query"],
            ["query", "classifier"],
        ],
        ids=" ".join,
    )
    def test_names_that_the_model_has_are_accepted(self, http, body, entries):
        """Leaves, dotted ends, full names, full names under a base prefix, and heads."""
        answer = http.post("/calibrate", json=body | {"target_modules": entries})

        assert answer.status_code == 202, answer.text

    def test_a_name_that_the_model_lacks_is_named_with_near_ones(self, refuse, http, body):
        """The field's index leads to the entry, the message to the right spelling."""
        request = body | {"target_modules": ["value", "qurey"]}

        problem = http.post("/calibrate", json=request).json()

        assert problem["errors"][0]["field"] == "body.target_modules[1]"
        assert "query" in problem["detail"]

    def test_part_of_a_name_is_no_match(self, refuse):
        """Only whole dotted parts count, as in PEFT."""
        assert refuse(target_modules=["uery"])[0] == "validation_failed"

    def test_an_embedding_is_a_target_by_name_and_never_suggested(self, body):
        """Few want it, and who misspells another name does not."""
        config = {"model_type": "llama", "vocab_size": 55}
        shapes = {
            "model.embed_tokens.weight": (55, 16),
            "model.layers.0.q_proj.weight": (16, 16),
        }

        def refused(entry: str) -> str:
            request = CalibrationRequest.model_validate(body | {"target_modules": [entry]})
            with pytest.raises(ValidationFailed) as caught:
                check_targets(request, shapes=shapes, config=config)
            assert caught.value.errors[0]["field"] == "body.target_modules[0]"
            return str(caught.value)

        named = CalibrationRequest.model_validate(body | {"target_modules": ["embed_tokens"]})
        check_targets(named, shapes=shapes, config=config)
        assert "embed_tokens'" not in refused("embed_token").partition("; ")[2]
        assert "['q_proj']" in refused("nothing")

    def test_fused_experts_are_refused_to_a_model_without_any(self, http, body, data_dir):
        """Its configuration tells; a mixture's are left to the worker."""
        make_model(data_dir / "models" / "moe", config=CONFIG | {"num_local_experts": 4})
        change = {"target_parameters": "all"}

        found = http.post("/calibrate", json=body | change)

        assert found.status_code == 422
        assert found.json()["errors"][0]["field"] == "body.target_parameters"
        of_mixture = body | change | {"base_model": "local:moe"}
        assert http.post("/calibrate", json=of_mixture).status_code == 202

    def test_experts_are_not_selected_of_a_model_without_any(self, http, body, data_dir):
        """Of their own, they are targets by name; of fused ones, weights must say which train."""
        make_model(data_dir / "models" / "moe", config=CONFIG | {"num_local_experts": 4})
        change = {"allocation": {"experts": {"select": "fisher", "share": 0.5}}}

        found = http.post("/calibrate", json=body | change)

        assert found.status_code == 422
        assert found.json()["errors"][0]["field"] == "body.allocation.experts"
        of_mixture = body | change | {"base_model": "local:moe"}
        assert http.post("/calibrate", json=of_mixture).status_code == 202
        fused = http.post("/calibrate", json=of_mixture | {"target_parameters": "all"})
        assert fused.status_code == 422
        assert "adapter.weights=true" in fused.json()["detail"]

    @pytest.mark.parametrize("given", ["experts", {"all": True}, [], [""], 3])
    def test_wrong_parameters_are_refused_in_a_sentence(self, http, body, given):
        """With what is allowed."""
        found = http.post("/calibrate", json=body | {"target_parameters": given})

        assert found.status_code == 422
        assert "target_parameters" in found.json()["errors"][0]["field"]

    def test_a_mixture_of_experts_is_left_to_the_worker(self, http, body, data_dir):
        """Its modules are renamed on loading, so the checkpoint's names prove nothing."""
        make_model(data_dir / "models" / "moe", config=CONFIG | {"num_local_experts": 4})
        change = {"base_model": "local:moe", "target_modules": ["gate_up_proj"]}

        assert http.post("/calibrate", json=body | change).status_code == 202

    @pytest.mark.parametrize(
        ("entry", "fits"),
        [
            ("model.language_model.layers.0.self_attn.q_proj", True),
            ("language_model.model.layers.0.self_attn.q_proj", True),
            ("model.language_model.layers.7.self_attn.q_proj", False),
            ("model.language_model.layers.0.self_attn.qq_proj", False),
        ],
    )
    def test_names_of_the_loaded_tree_and_of_the_checkpoint_are_accepted(
        self, body, entry, fits
    ):
        """A model of several parts may be loaded into another tree than it was saved from."""
        request = CalibrationRequest.model_validate(body | {"target_modules": [entry]})
        shapes = {"language_model.model.layers.0.self_attn.q_proj.weight": (16, 16)}
        config = {"model_type": "llava", "text_config": {"model_type": "llama"}}

        if fits:
            check_targets(request, shapes=shapes, config=config)
        else:
            with pytest.raises(ValidationFailed, match="q_proj"):
                check_targets(request, shapes=shapes, config=config)

    @pytest.mark.parametrize(
        ("change", "status"),
        [
            ({"target_modules": r".*\.(query|value)"}, 202),
            ({"target_modules": ["query", "value"], "exclude_modules": ["0.attention.self.value"]},
             202),
            ({"target_modules": "all-linear", "exclude_modules": r".*\.dense"}, 202),
            ({"target_modules": "(query"}, 422),
            ({"exclude_modules": []}, 422),
        ],
        ids=str,
    )  # fmt: skip
    def test_expressions_and_exclusions(self, http, body, change, status):
        """Whether they match is for the worker to see, but a broken one is refused at once."""
        assert http.post("/calibrate", json=body | change).status_code == status

    @pytest.mark.parametrize(
        ("budget", "fits"),
        [
            ({"parameters": 127}, False),
            ({"parameters": 128}, True),
            ({"bytes": 511}, False),
            ({"bytes": 512}, True),
            ({"bytes": 256, "bytes_per_parameter": 2}, True),
        ],
        ids=str,
    )
    def test_a_budget_below_the_lowest_ranks_is_refused(self, http, body, budget, fits):
        """Two modules of 16 x 16 at rank 2 cost 2 * 2 * (16 + 16) = 128 parameters."""
        change = {"target_modules": ["query"], "budget": budget, "allocation": {"r_min": 2}}

        answer = http.post("/calibrate", json=body | change)

        assert (answer.status_code == 202) is fits
        if not fits:
            assert answer.json()["code"] == "budget_infeasible"
            assert "128" in answer.json()["detail"]

    @pytest.mark.parametrize("targets", [None, "all-linear", ["query"]], ids=str)
    def test_a_mean_rank_above_every_matrix_is_refused(self, http, body, targets):
        """All maps are 16 x 16: rank 16 is the highest they can have, whatever is targeted."""
        for budget, fits in ((17, False), (512, False), (16, True)):
            answer = http.post(
                "/calibrate", json=body | {"target_modules": targets, "budget": budget}
            )

            assert (answer.status_code == 202) is fits, answer.text
            if not fits:
                assert answer.json()["code"] == "budget_infeasible"
                assert "feasible interval [1, 16]" in answer.json()["detail"]

    def test_a_fraction_below_one_rank_is_refused(self, http, body):
        """One rank of a map costs 17 at least, and no head doubles the model's 1,632."""
        for fraction, fits in ((0.004, False), (0.02, True)):
            answer = http.post("/calibrate", json=body | {"budget": {"fraction": fraction}})

            assert (answer.status_code == 202) is fits, answer.text
            if not fits:
                assert "budget fraction=0.004 allows 13" in answer.json()["detail"]

    def test_a_rank_above_what_the_named_maps_can_have_is_refused(self, http, body, data_dir):
        """Whatever others could have."""
        folder = make_model(data_dir / "models" / "uneven")
        shapes = {"layers.0.q.weight": (64, 64), "layers.0.k.weight": (4, 64)}
        weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        save_file(weights, folder / "model.safetensors")
        for targets, fits in ((["k"], False), (["q", "k"], True)):
            change = {"base_model": "local:uneven", "target_modules": targets}
            answer = http.post("/calibrate", json=body | change)

            assert (answer.status_code == 202) is fits, answer.text
            if not fits:
                assert (
                    "no target of the model can have a rank above 4" in answer.json()["detail"]
                )

    def test_a_budget_below_one_rank_is_refused(self, http, body):
        """Without names only what no choice of targets could meet is refused."""
        for budget, fits in (({"parameters": 16}, False), ({"parameters": 32}, True)):
            answer = http.post("/calibrate", json=body | {"budget": budget})

            assert (answer.status_code == 202) is fits, answer.text
            if not fits:
                assert answer.json()["code"] == "budget_infeasible"

    @pytest.mark.parametrize(
        ("change", "shapes", "config"),
        [
            # A pretraining head that a classifier does not load.
            ({"target_modules": ["dense"], "budget": {"parameters": 8}},
             {"layer.0.dense.weight": (4, 4), "cls.transform.dense.weight": (400, 400)}, {}),
            # A floor above what a small map can have counts as its highest rank.
            ({"target_modules": ["query"], "budget": {"parameters": 32},
              "allocation": {"r_min": 9}}, {"layer.0.query.weight": (4, 4)}, {}),
            # A head of two classes is cheaper than every map of the checkpoint.
            ({"target_modules": ["score"], "budget": {"parameters": 42}},
             {"layer.0.query.weight": (40, 40)}, {}),
            # A head on hidden states wider than the maps of the checkpoint.
            ({"target_modules": ["score"], "budget": 16}, {"layer.0.q.weight": (4, 4)},
             {"text_config": {"hidden_size": 16}}),
            # Modules left out by the method spectral cost nothing.
            ({"budget": {"parameters": 1}, "allocation": {"r_min": 0, "method": "spectral"}},
             {"layer.0.query.weight": (4, 4)}, {}),
        ],
        ids=["dropped-head", "small-map", "added-head", "wide-head", "left-out"],
    )  # fmt: skip
    def test_what_may_be_feasible_is_not_refused(self, body, change, shapes, config):
        """A doubt is left to the worker, who has the model."""
        request = CalibrationRequest.model_validate(body | change)

        check_targets(request, shapes=shapes, config=config)


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"budget": 17}, True),  # the default ceiling is twice the mean
        ({"budget": 16}, False),
        ({"budget": 17, "allocation": {"r_max": 32}}, False),
        ({"budget": 17, "allocation": {"max_lora_rank": 32}}, False),
        ({"budget": {"parameters": 4000}, "allocation": {"r_max": 33}}, True),
        ({"budget": {"parameters": 4000}}, False),  # the worker will know
        ({"budget": 17, "adapter": {"init": "gora"}}, False),
        ({"budget": 17, "target_modules": ["narrow"]}, False),
        ({"budget": 17, "target_modules": None}, False),  # nobody knows which
    ],
    ids=str,
)
def test_initial_weights_that_go_no_higher_are_refused(http, body, data_dir, change, refused):
    """Where the ceiling and the targets are known from the request and the headers."""
    folder = make_model(data_dir / "models" / "wide")
    shapes = {"layers.0.wide.weight": (80, 90), "layers.0.narrow.weight": (64, 90)}
    save_file(
        {n: np.zeros(s, np.float32) for n, s in shapes.items()}, folder / "model.safetensors"
    )
    asked = {"target_modules": ["wide"], "adapter": {"init": "lora-ga"}} | change

    answer = http.post("/estimate", json=body | {"base_model": "local:wide"} | asked)

    assert answer.status_code == (422 if refused else 200), answer.json()
    if refused:
        assert "init='lora-ga' fills ranks up to 32" in answer.json()["detail"]
