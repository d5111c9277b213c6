"""The names of the environment that anything of ours reads, as a module of the contract."""

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPOSE = (ROOT / "docker-compose.yml", *sorted((ROOT / "docker").glob("compose.*.yml")))
# Read by the tests alone, and handed down to the processes that they start.
TESTS = {
    "FIMLORA_REQUIRE_GPU", "FIMLORA_REQUIRE_BROWSER", "FIMLORA_CONSUMER", "FIMLORA_CONSUMER_SOURCES"
}  # fmt: skip


def environment_names() -> str:
    """Every ``FIMLORA_`` name, one a line, and the secrets that each process reads."""
    from fimlora_client.settings import Settings as ClientSettings
    from fimlora_contract.environment import PREFIX, names_read, secrets_read
    from fimlora_service.settings import Settings as ServiceSettings
    from fimlora_worker.settings import Settings as WorkerSettings

    processes = {"client": ClientSettings, "service": ServiceSettings, "worker": WorkerSettings}
    names = set(TESTS)
    for settings in processes.values():
        names |= names_read(settings)
    for file in COMPOSE:
        names |= set(re.findall(r"\bFIMLORA_\w+", file.read_text(encoding="utf-8")))
    ours = _set_of((name for name in names if name.startswith(PREFIX)), indent=0)
    secrets = "".join(
        f'    "{process}": {_set_of(secrets_read(settings), indent=4)},\n'
        for process, settings in processes.items()
    )
    return (
        '"""Every name of ours in the environment; made by `make docs` from the settings."""\n\n'
        f"NAMES = {ours}\nSECRETS = {{\n{secrets}}}\n"
    )


def _set_of(names: Iterable[str], *, indent: int) -> str:
    """A set as the formatter writes it."""
    margin = " " * indent
    lines = "".join(f'{margin}        "{name}",\n' for name in sorted(names))
    return f"frozenset(\n{margin}    {{\n{lines}{margin}    }}\n{margin})"
