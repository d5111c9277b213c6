"""What the environment may say."""

import pytest
from pydantic import SecretStr

from fimlora_service.settings import Settings, listed_origins


def test_the_operators_list_is_read_strictly():
    """A mistake in it stops the service instead of allowing something else."""
    assert listed_origins("") == {}
    assert listed_origins("a.example, b.example:8443,http://c:80,http://d") == {
        "https://a.example:443": False,
        "https://b.example:8443": True,
        "http://c:80": True,
        "http://d:80": False,
    }
    for wrong in ("*", "a.example/path", "ftp://a", "a b", "https://u@a"):
        with pytest.raises(ValueError, match="FIMLORA_WEBHOOK_HOSTS"):
            Settings(webhook_hosts=wrong)


def test_a_secret_that_is_no_key_stops_the_service():
    """Deliveries would fail otherwise; the message does not show it."""
    with pytest.raises(ValueError, match="not base64") as refused:
        Settings(webhook_secret=SecretStr("whsec_s3cr=t!"))

    assert "s3cr" not in str(refused.value)
