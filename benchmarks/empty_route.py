"""The service as `python -m fimlora_service` runs it, with one route more, which does nothing."""

import gc
import sys
from pathlib import Path


def main() -> None:
    gc.disable()  # as there, until the service has started
    sys.path.extend(
        str(Path(__file__).parents[1] / place)
        for place in ("clients/python", "service", "worker")
    )
    from fimlora_service.server import serve
    from fimlora_service.settings import Settings

    def empty() -> dict[str, str]:
        return {}

    serve(
        Settings(port=int(sys.argv[1]), log_level="WARNING"),
        extend=lambda app: app.get("/empty")(empty),
    )


if __name__ == "__main__":
    main()
