"""What is asked of a trained adapter: truncated, audited, converted, through the client."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from fimlora_client import Client
from fimlora_client.errors import AdapterInvalid, AdapterNotFound, BudgetInfeasible
from support.adapter_files import NAMES, TAR, as_tar, files_of, write_adapter_files


@pytest.fixture
def client(http) -> Client:
    return Client(http=http)


@pytest.fixture
def trained(tmp_path):
    return write_adapter_files(tmp_path / "trained")


def updates(folder) -> dict[str, np.ndarray]:
    """Update per module in float64, by the config's own scale."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for name in NAMES:
        A, B = (
            tensors[f"base_model.model.{name}.lora_{factor}.weight"].astype(float)
            for factor in "AB"
        )
        rank = (
            config["rank_pattern"].get(name, config["r"])
            if config.get("rank_pattern")
            else config["r"]
        )
        alphas = config.get("alpha_pattern") or {}
        found[name] = alphas.get(name, config["lora_alpha"]) / rank * B @ A
    return found


def test_a_cut_adapter_is_kept_and_fetched(client, trained, tmp_path):
    """From a folder to a folder; what comes is the truncated SVD that the report tells of."""
    uploaded = client.adapters.upload(trained)

    cut = client.adapters.truncate(uploaded.id, budget=2)
    files = client.adapters.download(cut.adapter.id, tmp_path / "out")

    assert (cut.adapter.source, cut.adapter.derived_from) == ("derived", uploaded.id)
    assert set(files) >= {"adapter_config.json", "adapter_model.safetensors", "rank_map.json"}
    assert cut.ranks == sum(module.rank for module in cut.modules) == 12
    assert cut.error < cut.error_uniform
    before, after = updates(trained), updates(tmp_path / "out")
    for module in cut.modules:
        U, S, Vh = np.linalg.svd(before[module.name], full_matrices=False)
        best = (U[:, : module.rank] * S[: module.rank]) @ Vh[: module.rank]
        np.testing.assert_allclose(after[module.name], best, atol=1e-5)
    apart = sum(np.square(before[n] - after[n]).sum() for n in NAMES)
    whole = sum(np.square(before[n]).sum() for n in NAMES)
    assert cut.error_written == pytest.approx((apart / whole) ** 0.5, rel=1e-6)


def test_the_same_cut_is_the_same_adapter(client, trained):
    """Kept once, as equal content is; another one is another."""
    id_ = client.adapters.upload(trained).id

    first, again, other = (client.adapters.truncate(id_, budget=n) for n in (2, 2, 3))

    assert first == again
    assert first.adapter.id != other.adapter.id
    assert len(client.adapters.list().data) == 3


def test_energy_bytes_and_layouts_are_taken(client, trained):
    id_ = client.adapters.upload(trained).id

    by_energy = client.adapters.truncate(id_, energy=0.9, r_min=0)
    by_bytes = client.adapters.truncate(id_, budget={"bytes": 3_200}, layout="C")

    assert 0 < by_energy.error <= 0.1**0.5
    assert 736 < by_bytes.parameters <= 800
    assert {by_bytes.adapter.rank_min, by_bytes.adapter.rank_max} == {8}


def test_a_registered_adapter_is_worked_on(client, data_dir):
    write_adapter_files(data_dir / "adapters" / "mine")

    cut = client.adapters.truncate("mine", budget=2)
    padded = client.adapters.convert("mine", layout="C")

    assert cut.adapter.derived_from == padded.adapter.derived_from == "mine"
    assert (padded.width, padded.error, set(padded.ranks.values())) == (8, 0, {4})


def test_a_registered_adapter_with_a_rank_map_keeps_what_it_says(client, data_dir, tmp_path):
    """That the base model changes; so does what is made of what was made."""
    folder = write_adapter_files(data_dir / "adapters" / "mine")
    stated = {"name": "lora-ga", "starts_as_base": False, "changes_base": True}
    (folder / "rank_map.json").write_text(json.dumps({"provenance": {"initial": stated}}))

    converted = client.adapters.convert("mine", layout="C").adapter
    cut = client.adapters.truncate(converted.id, budget=2).adapter

    for made in (converted, cut):
        client.adapters.download(made.id, tmp_path / made.id)
        data = json.loads((tmp_path / made.id / "rank_map.json").read_text())
        assert data["provenance"]["initial"] == stated
        assert data["warnings"][0]["code"] == "base_changes"


def test_an_audit_is_held_against_the_plan_of_a_job(client, trained, http, job_id, succeed):
    """Alone, and against what a job planned for other modules."""
    id_ = client.adapters.upload(trained).id
    succeed(job_id)

    alone, held = client.adapters.audit(id_), client.adapters.audit(id_, job_id=job_id)

    assert (alone.deviations, alone.parameters) == ([], 1344)
    assert [module.name for module in alone.modules] == sorted(NAMES)
    assert held.job_id == job_id
    assert held.deviations == [f"{n} has rank 4 and is not in the plan" for n in sorted(NAMES)]
    missing = http.post(f"/adapters/{id_}/audit", json={"job_id": "job_0"})
    assert missing.json()["code"] == "job_not_found"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "validation_failed"),
        ({"budget": 2, "energy": 0.5}, "validation_failed"),
        ({"budget": {"fraction": 0.1}}, "validation_failed"),
        ({"budget": 9}, "budget_infeasible"),
        ({"budget": 2, "multiple_of": 64}, "budget_infeasible"),
        ({"budget": 2, "r_min": 3, "r_max": 2}, "validation_failed"),
        ({"energy": 0}, "validation_failed"),
        ({"energy": 0.5, "multiple_of": 2}, "validation_failed"),
        ({"budget": 2, "layout": "D"}, "validation_failed"),
        ({"budget": 2, "rank": 3}, "validation_failed"),
    ],
)
def test_what_cannot_be_is_refused(http, body, code, data_dir):
    """With a code, and nothing is kept."""
    id_ = http.post("/adapters", content=as_tar(files_of()), headers=TAR).json()["id"]

    answer = http.post(f"/adapters/{id_}/truncate", json=body)

    assert answer.json()["code"] == code, answer.text
    assert [path.name for path in (data_dir / "uploads").iterdir()] == [id_]
    assert not list((data_dir / "tmp").iterdir())


def test_errors_are_typed(client, trained, tmp_path):
    id_ = client.adapters.upload(trained).id
    (trained / "adapter_config.json").write_text("{}")

    with pytest.raises(BudgetInfeasible):
        client.adapters.truncate(id_, budget=100)
    with pytest.raises(AdapterInvalid):
        client.adapters.upload(trained)
    with pytest.raises(AdapterNotFound):
        client.adapters.audit("ad_" + "0" * 32)


def test_padding_does_not_outgrow_the_limit_of_an_upload(http):
    """One module of rank 200 would make all others as wide."""
    rng = np.random.default_rng(0)
    ranks = dict.fromkeys(NAMES, 1) | {NAMES[0]: 200}
    tensors = {
        f"base_model.model.{name}.lora_{factor}.weight": rng.normal(
            size=(rank, 64) if factor == "A" else (64, rank)
        ).astype(np.float32)
        for name, rank in ranks.items()
        for factor in "AB"
    }
    from support.adapter_files import config_of

    config = config_of(r=1, rank_pattern={NAMES[0]: 200}, alpha_pattern={NAMES[0]: 1_600})
    archive = as_tar(files_of(config, tensors))
    id_ = http.post("/adapters", content=archive, headers=TAR).json()["id"]

    refused = http.post(f"/adapters/{id_}/convert", json={"layout": "C"})

    assert refused.json()["code"] == "validation_failed", refused.text
    assert "over the limit of 400000" in refused.json()["detail"]
    assert http.post(f"/adapters/{id_}/convert", json={"layout": "B"}).status_code == 200


def test_adalora_is_kept_and_becomes_plain_lora(http, client):
    """It is converted, and refused by name where plain LoRA is needed."""
    rng = np.random.default_rng(0)
    tensors = {
        f"base_model.model.{name}.lora_{part}": rng.normal(size=shape).astype(np.float32)
        for name in NAMES
        for part, shape in (("A", (4, 24)), ("B", (24, 4)), ("E", (4, 1)))
    }
    tensors[f"base_model.model.{NAMES[0]}.lora_E"][:] = 0
    tensors[f"base_model.model.{NAMES[1]}.lora_E"][1:] = 0
    config = {
        "peft_type": "ADALORA",
        "lora_alpha": 8,
        "init_r": 4,
        "target_modules": ["q_proj"],
    }
    archive = as_tar(files_of(config, tensors))
    kept = http.post("/adapters", content=archive, headers=TAR).json()
    assert (kept["peft_type"], kept["n_modules"], kept["rank_min"]) == ("ADALORA", 5, 1)

    made = client.adapters.convert(kept["id"])

    assert made.ranks == {name: 1 if name == NAMES[1] else 4 for name in NAMES[1:]}
    assert list(made.left_out) == [NAMES[0]]
    assert client.adapters.truncate(made.adapter.id, budget=1).ranks == 5
    with pytest.raises(AdapterInvalid, match="convert"):
        client.adapters.audit(kept["id"])
