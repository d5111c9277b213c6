"""A signed result from the worker to whoever fetches it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from fimlora_client import Client
from fimlora_client.errors import InvalidFile, SignatureInvalid
from fimlora_client.signatures import verify_folder
from fimlora_contract.signatures import NAME
from fimlora_jobs.results.store import describe
from fimlora_worker.job.signing import SigningKey
from support.jobs import LABELLED
from support.signing_keys import KeyPair, make_keys
from support.workers import running_worker

VECTOR = Path(__file__).parents[1] / "support" / "openssf_signature.json"
FIELDS = {
    "base_model": "local:tiny",
    "budget": 4,
    "calibration": {"n_batches": 1, "batch_size": 2},
}


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return make_keys(tmp_path_factory.mktemp("keys") / "ours")


@pytest.fixture(scope="session")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return make_keys(tmp_path_factory.mktemp("keys") / "theirs")


@pytest.fixture
def job_id(client: Client, keys: KeyPair, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job whose worker signs."""
    monkeypatch.setenv("FIMLORA_SIGNING_KEY_FILE", str(keys.private))
    job = client.calibrate(**FIELDS, dataset=client.datasets.upload(LABELLED).id)
    job.wait()
    return job.id


@pytest.fixture
def folder(keys: KeyPair, tmp_path: Path) -> Path:
    """Files that a worker has signed."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "rank_map.json"):
        (folder / name).write_text(json.dumps({"this is": name}))
    signature = SigningKey(keys.private.read_text()).sign("sha256:0", describe(folder))
    (folder / NAME).write_text(signature)
    return folder


def test_whoever_has_the_public_key_can_verify_what_is_fetched(
    client, run, job_id, keys, other_keys, tmp_path
):
    """On the command line and from Python; a wrong key writes nothing."""
    wrong = run("fetch", job_id, "--output", tmp_path / "w", "--verify",
                "--public-key", other_keys.public)  # fmt: skip
    assert wrong.exit_code == 1
    assert "none of the given keys" in wrong.stderr
    assert not (tmp_path / "w").exists()

    command = ["fetch", job_id, "--output", tmp_path / "r", "--verify",
               "--public-key", other_keys.public, "--public-key", keys.public]  # fmt: skip
    for _ in range(2):  # the second time nothing is sent, and all is verified
        right = run(*command)
        assert right.exit_code == 0, right.output
        assert "every file is signed" in right.stderr

    shown = run("verify-signature", tmp_path / "r", "--public-key", keys.public)
    assert shown.stdout.strip() == client.jobs.retrieve(job_id).result.digest
    (tmp_path / "r" / "more.txt").write_text("x")
    assert run(*command).exit_code == 1


def test_the_digest_is_the_same_without_a_signature(
    client, job_id, keys, monkeypatch, tmp_path
):
    """The signature lies beside the result; without a key there is none."""
    monkeypatch.delenv("FIMLORA_SIGNING_KEY_FILE")
    signed = client.jobs.retrieve(job_id).result
    again = client.calibrate(**FIELDS, dataset=client.datasets.upload(LABELLED).id, force=True)
    plain = again.wait()

    assert plain.digest == signed.digest
    assert {a.name for a in signed.artifacts} - {a.name for a in plain.artifacts} == {NAME}
    with pytest.raises(SignatureInvalid, match="not signed"):
        client.jobs.download(again.id, tmp_path / "x", public_keys=[keys.public])
    assert not (tmp_path / "x").exists()


def spoil_file(folder: Path) -> None:
    path = folder / "rank_map.json"
    path.write_bytes(path.read_bytes() + b" ")


def swap_files(folder: Path) -> None:
    (folder / "rank_map.json").rename(folder / "x")
    (folder / "adapter_config.json").rename(folder / "rank_map.json")
    (folder / "x").rename(folder / "adapter_config.json")


def link_file(folder: Path) -> None:
    (folder / "rank_map.json").rename(folder.parent / "elsewhere.json")
    (folder / "rank_map.json").symlink_to(folder.parent / "elsewhere.json")


def change_statement(folder: Path) -> None:
    """Sign for less with the same signature."""
    bundle = json.loads((folder / NAME).read_text())
    payload = bundle["dsseEnvelope"]["payload"]
    bundle["dsseEnvelope"]["payload"] = payload[:-8] + "AAAA" + payload[-4:]
    (folder / NAME).write_text(json.dumps(bundle))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "rank_map.json").unlink(), "rank_map.json was signed and is missing"),
        (lambda f: (f / "extra.bin").touch(), "extra.bin is there and was not signed"),
        (lambda f: (f / "sub").mkdir(), "sub is there and was not signed"),
        (lambda f: (f / ".hidden").touch(), ".hidden is there and was not signed"),
        (spoil_file, "rank_map.json is not the file that was signed"),
        (swap_files, "is not the file that was signed"),
        (link_file, "rank_map.json is not the file that was signed"),
        (change_statement, "none of the given keys"),
        (lambda f: (f / NAME).write_text("{}"), "no signature"),
        (lambda f: (f / NAME).write_bytes(b"x" * (2 << 20)), "larger than any"),
        (lambda f: (f / NAME).unlink(), "not signed"),
    ],
)  # fmt: skip
def test_whatever_is_done_to_the_folder_is_seen(folder, keys, tmp_path, spoil, said):
    """Missing, changed, exchanged, more; and the signature itself."""
    assert len(verify_folder(folder, [keys.public]).files) == 2
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy)

    with pytest.raises(SignatureInvalid, match=said):
        verify_folder(copy, [keys.public])


def test_what_openssf_model_signing_has_made_is_verified(tmp_path):
    """A signature by its own tool, over the same files; theirs of ours, docs/signing.md tells."""
    made = json.loads(VECTOR.read_text())
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, text in made["files"].items():
        (folder / name).write_text(text)
    (folder / NAME).write_text(json.dumps(made["bundle"]))
    (tmp_path / "key.pub").write_text(made["public_key"])

    assert verify_folder(folder, [tmp_path / "key.pub"]).files.keys() == made["files"].keys()
    (folder / "rank_map.json").write_text("other")
    with pytest.raises(SignatureInvalid):
        verify_folder(folder, [tmp_path / "key.pub"])


def test_a_key_that_is_none_is_named(run, folder, keys, tmp_path):
    """A private one, another curve, no file: each is the caller's mistake."""
    (tmp_path / "odd.pub").write_text(
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"
    )
    command = "openssl ecparam -name secp384r1 -genkey -noout -out k.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True)
    subprocess.run(["openssl", "ec", "-in", "k.pem", "-pubout", "-out", "p384.pub"], cwd=tmp_path, check=True,
                   capture_output=True)  # fmt: skip

    for path in (keys.private, tmp_path / "odd.pub", tmp_path / "p384.pub", tmp_path / "none"):
        with pytest.raises(InvalidFile):
            verify_folder(folder, [path])
    assert run("fetch", "job_1", "--verify").exit_code == 2
    assert run("fetch", "--pin", "a:b", "--verify", "--public-key", keys.public).exit_code == 2
    assert run("fetch", "job_1", "--output", "x", "--public-key", keys.public).exit_code == 2


def test_a_worker_whose_key_cannot_be_used_does_not_start(tmp_path, valkey_url, other_keys):
    """The status of a wrong setting, and a sentence without the key."""
    for text in (other_keys.public.read_text(), "no key at all"):
        (tmp_path / "key").write_text(text)
        log = tmp_path / "log"
        with running_worker(
            valkey_url, tmp_path, log, FIMLORA_SIGNING_KEY_FILE=str(tmp_path / "key")
        ) as worker:
            assert worker.wait(30) == 78
        assert "FIMLORA_SIGNING_KEY cannot be used: it is no private key" in log.read_text()
        assert text not in log.read_text()
