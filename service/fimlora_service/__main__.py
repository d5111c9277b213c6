"""Run the service: ``python -m fimlora_service``."""

import argparse
import gc
import os
import sys


def main() -> int:
    """Serve until told to stop; the exit status says whether the settings allow it."""
    try:
        return _main()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fimlora"):
            raise
        sys.stderr.write(
            f"the service needs {error.name!r}, which is not installed: "
            "pip install 'fimlora[service]'\n"
        )
        return os.EX_UNAVAILABLE


def _main() -> int:
    # The imports make no garbage to speak of, but would be searched for it again and again:
    # that is a fifth of the time to the first answer. `warm_up` turns the collector on.
    gc.disable()
    from fimlora_contract.environment import SettingsError
    from fimlora_jobs.settings import environment_help, settings_as_json
    from fimlora_service.settings import Settings

    parser = argparse.ArgumentParser(
        prog="python -m fimlora_service",
        description="Serve the fimlora HTTP API.",
        epilog=environment_help(Settings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="address to listen on (default FIMLORA_HOST)")
    parser.add_argument("--port", type=int, help="port, 0 for any (default FIMLORA_PORT)")
    parser.add_argument(
        "--settings", action="store_true", help="show what is set, as JSON, and quit"
    )
    given = {k: v for k, v in vars(parser.parse_args()).items() if v is not None}
    only_shown = given.pop("settings")
    try:
        settings = Settings.read(**given)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    if only_shown:
        sys.stdout.write(f"{settings_as_json(settings)}\n")
        return os.EX_OK
    from fimlora_service.server import serve

    serve(settings)
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
