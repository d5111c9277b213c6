"""Write the generated reference pages: ``python docs/generate.py``."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent


def openapi() -> str:
    """The HTTP API, as the service describes itself."""
    from fimlora_service.app import create_app
    from fimlora_service.settings import Settings

    return json.dumps(create_app(Settings()).openapi(), indent=2, ensure_ascii=False) + "\n"


PAGES: list[tuple[str, Callable[[], str]]] = [
    ("openapi.json", openapi),
]


def main() -> None:
    """Write every page, and name those that changed."""
    for name, generate in PAGES:
        path, text = HERE / name, generate()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stderr.write(f"wrote {path}\n")


if __name__ == "__main__":
    main()
