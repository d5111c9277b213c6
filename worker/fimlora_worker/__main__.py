"""Run a worker: ``python -m fimlora_worker``; what it needs may not be installed."""

import os
import sys


def main() -> int:
    """Take jobs from the queue until told to stop; the exit status says whether it could."""
    try:
        from fimlora_worker.command import main as work

        return work()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fimlora"):
            raise
        sys.stderr.write(
            f"the worker needs {error.name!r}, which is not installed: "
            "pip install 'fimlora[worker]'\n"
        )
        return os.EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
