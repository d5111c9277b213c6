"""How service and worker read their settings."""

import os

import pytest

from fimlora_contract.environment import SettingsError
from fimlora_contract.settings_shown import show_settings
from fimlora_service.settings import Settings as ServiceSettings
from fimlora_worker.settings import Settings as WorkerSettings

BOTH = pytest.mark.parametrize("settings", [ServiceSettings, WorkerSettings])


@BOTH
def test_secrets_come_from_files_too(settings, monkeypatch, tmp_path):
    """As docker and Kubernetes hand them over."""
    for name, text in {"REDIS_URL": "redis://:pw@r", "HF_TOKEN": "hf_x"}.items():
        (tmp_path / name).write_text(f"{text}\n")
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / name))
        monkeypatch.delenv(name, raising=False)

    found = settings.read()

    assert found.redis_url == "redis://:pw@r"
    assert found.hub_token.get_secret_value() == "hf_x"


@BOTH
def test_an_empty_variable_is_one_that_is_not_set(settings, monkeypatch):
    """Compose and Kubernetes pass on empty ones for what nobody gave."""
    for name in ("REDIS_URL", "FIMLORA_LOG_LEVEL", "HF_TOKEN", "HF_TOKEN_FILE"):
        monkeypatch.setenv(name, "")

    found = settings.read()

    assert (found.redis_url, found.log_level) == ("redis://localhost:6379/0", "INFO")
    assert found.hub_token is None


def test_a_port_that_kubernetes_made_an_address_is_not_set(monkeypatch):
    """In every pod beside a Service named fimlora; nothing claims that somebody set it."""
    monkeypatch.setenv("FIMLORA_PORT", "tcp://10.0.0.1:8000")

    found = ServiceSettings.read()

    origins = {row.name: row.origin for row in show_settings(found, os.environ)}
    assert (found.port, origins["FIMLORA_PORT"]) == (8000, "default")


def test_no_device_at_all_is_a_choice(monkeypatch):
    """An empty list of devices is not the default one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    found = WorkerSettings.read()

    assert found.cuda_visible_devices == ""
    assert found.child_environment()["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("FIMLORA_PORT", "99999", "FIMLORA_PORT='99999' cannot be used: "),
        ("FIMLORA_LOG_LEVEL", "loud", "FIMLORA_LOG_LEVEL='LOUD' cannot be used: "),
        ("FIMLORA_WEBHOOK_HOSTS", "*", "FIMLORA_WEBHOOK_HOSTS has '*'; allowed are host,"),
        (
            "FIMLORA_WEBHOOK_SECRET",
            "whsec_s3cr=t!",
            "FIMLORA_WEBHOOK_SECRET cannot be used: it is not base64",
        ),
        ("REDIS_URL", "http://:s3cr@redis:6379", "REDIS_URL is no address of a server: it"),
        ("REDIS_URL", "redis://:s3cr@redis:x/0", "REDIS_URL is no address of a server: it"),
        ("FIMLORA_PROT", "1", "FIMLORA_PROT is no setting, did you mean FIMLORA_PORT?"),
        ("HF_TOKEN_FILE", "/nowhere/s3cr", "HF_TOKEN_FILE names a file that cannot be read"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(monkeypatch, name, value, said):
    """It names the variable, shows what was given where that is no secret, and one line."""
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as refused:
        ServiceSettings.read()

    assert str(refused.value).startswith(said)
    assert "s3cr" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_childs_environment_has_the_secret_and_not_its_file(monkeypatch, tmp_path):
    """With both it would refuse to start."""
    (tmp_path / "token").write_text("hf_x")
    monkeypatch.setenv("HF_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)

    environment = WorkerSettings.read().child_environment()

    assert environment["HF_TOKEN"] == "hf_x"
    assert "HF_TOKEN_FILE" not in environment
