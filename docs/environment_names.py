"""The names of the environment that anything of ours reads, as a module of the contract."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPOSE = (ROOT / "docker-compose.yml", *sorted((ROOT / "docker").glob("compose.*.yml")))
# Read by the tests alone, and handed down to the processes that they start.
TESTS = {"FIMLORA_REQUIRE_GPU", "FIMLORA_CONSUMER", "FIMLORA_CONSUMER_SOURCES"}


def environment_names() -> str:
    """A set of every ``FIMLORA_`` name, one a line."""
    from fimlora_client.settings import Settings as ClientSettings
    from fimlora_contract.environment import PREFIX, names_read
    from fimlora_service.settings import Settings as ServiceSettings
    from fimlora_worker.settings import Settings as WorkerSettings

    names = set(TESTS)
    for settings in (ClientSettings, ServiceSettings, WorkerSettings):
        names |= names_read(settings)
    for file in COMPOSE:
        names |= set(re.findall(r"\bFIMLORA_\w+", file.read_text(encoding="utf-8")))
    ours = sorted(name for name in names if name.startswith(PREFIX))
    lines = "".join(f'        "{name}",\n' for name in ours)
    return (
        '"""Every name of ours in the environment; made by `make docs` from the settings."""\n\n'
        f"NAMES = frozenset(\n    {{\n{lines}    }}\n)\n"
    )
