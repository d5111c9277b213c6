"""Registered models that cannot be used are refused before anything is queued."""

import json
from pathlib import Path

import pytest

from fimlora_service.errors import ModelNotFound
from fimlora_service.models.endpoints import describe_model
from fimlora_service.resolve.local_models import LocalModels
from fimlora_service.resolve.model_files import weight_entries
from support.ordinary_user import as_ordinary_user, open_folder
from support.service import CONFIG, make_model


class TestLocalModels:
    def test_an_unknown_name_lists_the_registered_ones(self, refuse):
        """The message shows what could have been meant."""
        code, detail = refuse(base_model="local:tinny")

        assert (code, "['tiny']" in detail) == ("model_not_found", True)

    @pytest.mark.parametrize(
        ("config", "code", "reason"),
        [
            (
                CONFIG | {"model_type": "own", "auto_map": {"AutoModel": "x.Y"}},
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

    def test_code_beside_a_model_that_transformers_has_is_no_obstacle(self, http, data_dir):
        """It is not run, and the model is one of those that can be used."""
        make_model(
            data_dir / "models" / "own", config=CONFIG | {"auto_map": {"AutoModel": "x.Y"}}
        )

        listed = {model["id"]: model for model in http.get("/models").json()["data"]}

        assert listed["own"]["usable"]

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

        found = {name: each.shape for name, each in weight_entries(folder, where="m").items()}
        assert found == expected
