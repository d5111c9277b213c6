"""What is refused before anything is queued."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fimlora_contract.requests import CalibrationRequest
from fimlora_service.errors import ModelNotFound, ValidationFailed
from fimlora_service.models.endpoints import describe_model
from fimlora_service.resolve.local_models import LocalModels
from fimlora_service.resolve.model_files import weight_shapes
from fimlora_service.resolve.request_digest import MEASURED, request_digest
from fimlora_service.resolve.target_checks import check_targets
from support.ordinary_user import as_ordinary_user, open_folder
from support.service import CONFIG, ROWS, as_jsonl, make_model


@pytest.fixture
def refuse(http, body):
    """Post a changed request, expect a refusal, return its code and sentence."""

    def post(**change: Any) -> tuple[str, str]:
        answer = http.post("/calibrate", json=body | change)
        assert 400 <= answer.status_code < 500, answer.text
        assert http.get("/jobs").json()["data"] == []
        return answer.json()["code"], answer.json()["detail"]

    return post


class TestLocalModels:
    def test_an_unknown_name_lists_the_registered_ones(self, refuse):
        """The message shows what could have been meant."""
        code, detail = refuse(base_model="local:tinny")

        assert (code, "['tiny']" in detail) == ("model_not_found", True)

    @pytest.mark.parametrize(
        ("config", "code", "reason"),
        [
            (
                CONFIG | {"auto_map": {"AutoModel": "x.Y"}},
                "unsupported_architecture",
                "auto_map",
            ),
            ({"architectures": []}, "unsupported_architecture", "model_type"),
            ([], "unsupported_architecture", "not an object"),
            ("{", "unsupported_architecture", "not JSON"),
            (None, "unsupported_architecture", "no config.json"),
        ],
        ids=["own-code", "no-type", "list", "broken", "missing"],
    )
    def test_a_configuration_that_cannot_be_used_is_refused(
        self, refuse, http, data_dir, config, code, reason
    ):
        """The request is refused, and the list of models says why."""
        folder = make_model(data_dir / "models" / "odd")
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text)
        if config is None:
            (folder / "config.json").unlink()

        found = refuse(base_model="local:odd")

        assert (found[0], reason in found[1]) == (code, True)
        listed = {model["id"]: model for model in http.get("/models").json()["data"]}
        assert (listed["odd"]["usable"], listed["tiny"]["usable"]) == (False, True)
        assert reason in listed["odd"]["problem"]

    @pytest.mark.parametrize(
        "weights",
        [
            {"pytorch_model.bin": b"\x80\x04pickle"},
            {},
            {"model.safetensors": b""},
            {"model.safetensors": b"\xff" * 16},
            {"model.safetensors": (2).to_bytes(8, "little") + b"[]"},
            {"model.safetensors": (8).to_bytes(8, "little") + b'{"a": 1}'},
            {"model.safetensors": b"\x1b" + b"\0" * 7 + b'{"a": {"shape": [Infinity]}}'},
        ],
        ids=["pickle", "none", "empty", "huge-header", "list", "no-shape", "infinite-shape"],
    )
    def test_weights_that_are_not_sound_safetensors_are_refused(
        self, refuse, data_dir, weights
    ):
        """No other format is ever opened."""
        folder = make_model(data_dir / "models" / "odd")
        (folder / "model.safetensors").unlink()
        for name, content in weights.items():
            (folder / name).write_bytes(content)

        assert refuse(base_model="local:odd")[0] == "unsafe_weights"

    @pytest.mark.parametrize("change", [-1, 1], ids=["cut off", "too long"])
    def test_a_file_of_another_size_than_its_tensors_is_refused(self, refuse, data_dir, change):
        """Before it is queued: no worker could read it."""
        file = make_model(data_dir / "models" / "odd") / "model.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[:-1] if change < 0 else content + b"\0")

        assert refuse(base_model="local:odd")[0] == "unsafe_weights"

    def test_a_link_that_leads_nowhere_is_refused(self, refuse, http, data_dir):
        """A registered model whose files were moved away is the operator's to mend."""
        folder = data_dir / "models" / "tiny"
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to(data_dir / "gone")

        assert refuse()[0] == "unsafe_weights"
        assert not http.get("/models").json()["data"][0]["usable"]

    @pytest.mark.parametrize("closed", [".", "config.json", "model.safetensors"])
    def test_a_model_that_may_not_be_read_is_refused(self, closed: str):
        """It is said to be closed, not to be broken; and it is listed, with the reason."""
        with open_folder() as models:
            (make_model(models / "odd") / closed).chmod(0)
            with as_ordinary_user():
                listed = describe_model(models / "odd")
                with pytest.raises(ModelNotFound, match="'odd' may not be read"):
                    LocalModels(models).resolve("odd")
            (models / "odd").chmod(0o755)

        assert not listed.usable
        assert "'odd' may not be read" in (listed.problem or "")

    def test_shapes_are_read_from_headers_of_all_shards(self, tmp_path: Path):
        """The same names and shapes as a real safetensors reader finds."""
        from safetensors import safe_open

        folder = make_model(tmp_path / "m")
        with safe_open(folder / "model.safetensors", "np") as file:
            expected = {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118

        assert weight_shapes(folder, where="m") == expected


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

    def test_an_embedding_is_refused_and_never_suggested(self, body):
        """No linear map, which the worker would find out after loading the model."""
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

        named = refused("embed_tokens")
        assert named.startswith("'embed_tokens' matches 'model.embed_tokens', an embedding")
        assert "embed_tokens'" not in refused("embed_token").partition("; ")[2]
        assert "['q_proj']" in refused("nothing")

    @pytest.mark.parametrize(
        ("entry", "shape"),
        [
            ("embed_tokens", (16, 54)),
            ("vision_embed_tokens", (55, 16)),
            ("embed_out", (55, 16)),
        ],
    )
    def test_what_may_be_a_linear_map_is_no_embedding(self, body, entry, shape):
        """Name and number of rows must both be those of a table."""
        request = CalibrationRequest.model_validate(body | {"target_modules": [entry]})

        check_targets(request, shapes={f"m.{entry}.weight": shape}, config={"vocab_size": 55})

    def test_a_mixture_of_experts_is_left_to_the_worker(self, http, body, data_dir):
        """Its modules are renamed on loading, so the checkpoint's names prove nothing."""
        make_model(data_dir / "models" / "moe", config=CONFIG | {"num_local_experts": 4})
        change = {"base_model": "local:moe", "target_modules": ["gate_up_proj"]}

        assert http.post("/calibrate", json=body | change).status_code == 202

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
            # Modules left out by the rule spectral cost nothing.
            ({"budget": {"parameters": 1}, "allocation": {"r_min": 0, "rule": "spectral"}},
             {"layer.0.query.weight": (4, 4)}, {}),
            # Four-bit weights lie packed in one column.
            ({"budget": 8}, {"layer.0.query.weight": (128, 1)}, {"quantization_config": {"b": 4}}),
        ],
        ids=["dropped-head", "small-map", "added-head", "wide-head", "left-out", "packed"],
    )  # fmt: skip
    def test_what_may_be_feasible_is_not_refused(self, body, change, shapes, config):
        """A doubt is left to the worker, who has the model."""
        request = CalibrationRequest.model_validate(body | change)

        check_targets(request, shapes=shapes, config=config)


class TestUploads:
    @pytest.fixture
    def upload(self, http):
        def post(rows: list[dict[str, Any]]) -> dict[str, str]:
            type_ = {"Content-Type": "application/jsonl"}
            answer = http.post("/datasets", content=as_jsonl(rows), headers=type_)
            return {"source": "upload", "id": answer.json()["id"]}

        return post

    def test_an_upload_is_resolved_to_its_content(self, http, body, upload):
        """Digest, columns by role, and the number of rows are on the job's record."""
        dataset = upload(ROWS)

        job = http.post("/calibrate", json=body | {"dataset": dataset}).json()

        resolved = job["resolved"]["dataset"]
        assert resolved["digest"].startswith(f"sha256:{dataset['id'].removeprefix('ds_')}")
        assert (resolved["fields"]["text"], resolved["fields"]["label"]) == ("text", "label")
        assert resolved["rows"] == 8

    def test_an_unknown_upload_is_named(self, refuse):
        """404: there is no such dataset."""
        assert refuse(dataset="ds_" + "0" * 32)[0] == "dataset_not_found"

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"label": 0}, "line 10: column 'text' must be text, it holds nothing"),
            ({"text": None, "label": 0}, "line 10: column 'text'"),
            ({"text": "a"}, "line 10: column 'label'"),
            ({"text": "a", "label": {}}, "line 10: column 'label'"),
            ({"text": "a", "label": "b"}, "line 10: column 'label' mixes text and numbers"),
        ],
        ids=str,
    )
    def test_every_line_is_checked(self, refuse, upload, row, reason):
        """Not only the first lines: the last one is named."""
        code, detail = refuse(dataset=upload([*ROWS, ROWS[0], row, ROWS[1]]))

        assert code == "dataset_schema"
        assert detail.startswith(reason)

    def test_a_column_that_is_not_there_lists_those_that_are(self, refuse, upload):
        """The message shows what could have been meant."""
        code, detail = refuse(dataset=upload(ROWS) | {"columns": {"text": "txt"}})

        assert code == "dataset_schema"
        assert "['label', 'text']" in detail

    def test_one_class_is_no_classification(self, refuse, upload):
        """Every label is the same: there is nothing to tell apart."""
        code, detail = refuse(dataset=upload([{"text": "a", "label": "x"}] * 3))

        assert (code, "['x']" in detail) == ("dataset_schema", True)

    def test_labels_are_not_needed_for_a_language_model(self, http, body, upload):
        """The task decides what is checked."""
        dataset = upload([{"text": "a", "label": "x"}] * 3)
        change = {"dataset": dataset, "calibration": {"task": "causal_lm"}}

        assert http.post("/calibrate", json=body | change).status_code == 202

    def test_floats_are_a_regression(self, http, body, upload):
        """Whole and broken numbers together are numbers."""
        dataset = upload([{"text": "a", "label": n} for n in (-1, 0.5, 2)])

        assert http.post("/calibrate", json=body | {"dataset": dataset}).status_code == 202

    def test_what_was_checked_once_is_not_read_again(self, http, body, upload, data_dir):
        """Uploads never change: a second request does not depend on the size of the first."""
        dataset = upload(ROWS)
        http.post("/calibrate", json=body | {"dataset": dataset})
        (data_dir / "uploads" / dataset["id"] / "data.jsonl").unlink()

        assert http.post("/calibrate", json=body | {"dataset": dataset}).status_code == 202


class TestLocalDatasets:
    def test_a_registered_parquet_file_is_resolved(self, http, body, data_dir):
        """Only the columns in use are read."""
        folder = data_dir / "datasets" / "reviews"
        folder.mkdir(parents=True)
        for part in ("a", "b"):
            table = pa.Table.from_pylist([row | {"other": b"\xff"} for row in ROWS])
            pq.write_table(table, folder / f"{part}.parquet")

        answer = http.post("/calibrate", json=body | {"dataset": "local:reviews"})

        assert answer.status_code == 202, answer.text
        assert answer.json()["resolved"]["dataset"]["rows"] == 16

    def test_a_wrong_row_names_its_file(self, refuse, data_dir):
        """With several files the line alone would not lead there."""
        folder = data_dir / "datasets" / "reviews"
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_bytes(as_jsonl(ROWS))
        (folder / "b.jsonl").write_bytes(as_jsonl([*ROWS, {"text": 5, "label": 0}]))

        code, detail = refuse(dataset="local:reviews")

        assert code == "dataset_schema"
        assert detail.startswith("b.jsonl, line 9: column 'text'")

    @pytest.mark.parametrize(
        ("files", "code"),
        [
            (None, "dataset_not_found"),
            ({}, "dataset_schema"),
            ({"a.jsonl": b""}, "dataset_empty"),
            ({"a.parquet": b"PAR1"}, "dataset_schema"),
        ],
        ids=["missing", "no-files", "empty", "damaged"],
    )
    def test_a_registered_dataset_without_rows_is_refused(self, refuse, data_dir, files, code):
        """Each reason has its code."""
        if files is not None:
            (data_dir / "datasets" / "reviews").mkdir(parents=True)
        for name, content in (files or {}).items():
            (data_dir / "datasets" / "reviews" / name).write_bytes(content)

        assert refuse(dataset="local:reviews")[0] == code


class TestRequestDigest:
    def digest(self, *, rows=None, model="sha256:m", **change) -> str:
        base = {"base_model": "tiny", "dataset": "local:d", "budget": 8}
        request = CalibrationRequest.model_validate(base | change)
        dataset = {"digest": "sha256:d", "fields": None, "rows": rows}
        return request_digest(request, model_digest=model, dataset=dataset)

    @pytest.mark.parametrize(
        "change",
        [
            {"metadata": {"a": "b"}},
            {"force": True},
            {"budget": {"rank": 8}},
            {"base_model": "other"},
            {"dataset": "local:e"},
            {"calibration": {"n_batches": 8}},
            {"calibration": {"executor": "streamed"}},
            {"rows": 3},
        ],
        ids=str,
    )
    def test_what_cannot_change_the_result_does_not_count(self, change):
        """Names, notes and spelled-out defaults give the same key."""
        assert self.digest(**change) == self.digest()

    @pytest.mark.parametrize(
        "change",
        [
            {"budget": 9},
            {"budget": {"parameters": 8}},
            {"model": "sha256:n"},
            {"target_modules": "all-linear"},
            {"calibration": {"estimator": "sampled"}},
            {"allocation": {"rule": "uniform"}},
            {"adapter": {"weights": True}},
        ],
        ids=str,
    )
    def test_what_can_change_the_result_counts(self, change):
        """Content and settings give another key."""
        assert self.digest(**change) != self.digest()


def test_statistics_without_spectra_are_not_taken_for_the_rule_spectral():
    """Other rules share one key of the statistics; this one measures more."""
    dataset = {"source": "upload", "digest": "sha256:0", "fields": None}

    def key(rule: str) -> str:
        body = {"base_model": "local:m", "dataset": "ds_" + "0" * 32, "budget": 8}
        request = CalibrationRequest.model_validate(body | {"allocation": {"rule": rule}})
        return request_digest(
            request, model_digest="sha256:1", dataset=dataset, settings=MEASURED
        )

    assert key("proportional") == key("random") != key("spectral")
