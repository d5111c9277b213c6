"""Requests to measure at a trained adapter: pinned by content, and refused where they cannot be."""

import numpy as np
import pytest

from support.adapter_files import TAR, as_tar, config_of, files_of, write_adapter_files

MODULES = [
    f"bert.encoder.layer.{i}.attention.self.{kind}"
    for i in (0, 1)
    for kind in ("query", "value")
]


def adapter_for(*, width: int = 16, modules=MODULES, seed: int = 0):
    """LoRA for the model of these tests, as the loaded classifier names its modules."""
    rng = np.random.default_rng(seed)
    tensors = {
        f"base_model.model.{name}.lora_{factor}.weight": rng.normal(
            size=(2, width) if factor == "A" else (width, 2)
        ).astype(np.float32)
        for name in modules
        for factor in "AB"
    }
    targets = sorted({name.rpartition(".")[2] for name in modules})
    return files_of(config_of(r=2, lora_alpha=4, target_modules=targets), tensors)


@pytest.fixture
def kept(http) -> str:
    return http.post("/adapters", content=as_tar(adapter_for()), headers=TAR).json()["id"]


def test_a_job_carries_the_content_of_its_adapter(http, body, kept, store, data_dir):
    """By id or by name it is one job; another adapter is another; without one, yet another."""
    folder = data_dir / "adapters" / "mine"
    folder.mkdir()
    for name, content in adapter_for().items():
        (folder / name).write_bytes(content)
    other = http.post("/adapters", content=as_tar(adapter_for(seed=1)), headers=TAR).json()[
        "id"
    ]

    answers = [
        http.post("/calibrate", json=body | {"calibration": {"adapter": name}})
        for name in (kept, "mine", other)
    ]
    answers.append(http.post("/calibrate", json=body))

    assert [a.status_code for a in answers] == [202] * 4, answers[0].text
    ids = [answer.json()["id"] for answer in answers]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert store.get(ids[0]).resolved["adapter"]["name"] == kept
    estimate = http.post("/estimate", json=body | {"calibration": {"adapter": "mine"}})
    assert estimate.json()["job_id"] == ids[0]


def test_an_adapter_that_a_job_needs_is_kept(http, body, kept):
    """409 names the job, and once it has ended the adapter may go."""
    job = http.post("/calibrate", json=body | {"calibration": {"adapter": kept}}).json()["id"]

    refused = http.delete(f"/adapters/{kept}")

    assert (refused.status_code, refused.json()["code"]) == (409, "adapter_in_use")
    assert refused.json()["errors"] == [{"job_id": job}]
    http.post(f"/jobs/{job}/cancel")
    assert http.delete(f"/adapters/{kept}").status_code == 204


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"calibration": {"executor": "streamed"}}, "blocks carry no adapter"),
        ({"calibration": {"n_batches": "auto"}}, "give a number of batches"),
        ({"target_modules": ["query"]}, "says which modules are targets"),
        ({"exclude_modules": ["query"]}, "says which modules are targets"),
        ({"allocation": {"method": "spectral"}}, "only fim is scored"),
        ({"allocation": {"aggregation": "max"}}, "take mean"),
        ({"adapter": {"weights": True}}, "/truncate"),
    ],
)
def test_what_means_nothing_there_is_refused(http, body, kept, change, said):
    """With the field and the way out."""
    calibration = {"adapter": kept} | change.pop("calibration", {})

    answer = http.post("/calibrate", json=body | change | {"calibration": calibration})

    assert answer.json()["code"] == "validation_failed", answer.text
    assert said in answer.text


@pytest.mark.parametrize("route", ["/compare", "/evaluations"])
def test_only_calibrations_are_measured_there(http, body, kept, route):
    answer = http.post(route, json=body | {"calibration": {"adapter": kept}})

    assert answer.json()["code"] == "validation_failed", answer.text
    assert "calibration.adapter" in answer.text


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (adapter_for(width=24), "24 x 24, and that of the base model is 16 x 16"),
        (adapter_for(modules=["h.0.attn.c_attn"]), "none of the adapter's modules"),
    ],
)
def test_an_adapter_for_another_model_is_refused_at_once(http, body, files, said):
    id_ = http.post("/adapters", content=as_tar(files), headers=TAR).json()["id"]

    answer = http.post("/calibrate", json=body | {"calibration": {"adapter": id_}})

    assert answer.json()["code"] == "adapter_invalid", answer.text
    assert said in answer.json()["detail"]


def test_an_adapter_that_is_not_there_is_not_found(http, body, data_dir):
    write_adapter_files(data_dir / "adapters" / "mine")
    for name in ("ad_" + "0" * 32, "other"):
        answer = http.post("/calibrate", json=body | {"calibration": {"adapter": name}})
        assert answer.json()["code"] == "adapter_not_found", answer.text
