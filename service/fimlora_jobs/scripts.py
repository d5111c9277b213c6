"""What Redis does in one step: the scripts of ``lua/``, each with its KEYS and ARGV at its top.

In Lua, as a change must check attempt and status and write record, lists and events with nothing
in between: a worker that was taken for dead is refused, and nobody sees half a change. With WATCH
the same takes several round trips, and more of them the more is going on.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from redis import Redis


def run_script(
    redis: Redis, name: str, *, keys: Sequence[str], args: Sequence[str | int] = ()
) -> Any:
    """Run a script by its digest; a server that does not know it yet is given it once.

    Never in a pipeline: redis-py would ask before each whether the server knows the script.

    Args:
        redis: A connected client.
        name: Of the file, without its ending.
        keys: What the script reads and writes.
        args: All else that it needs.

    Returns:
        What the script returns.
    """
    return redis.register_script(_text_of(name))(keys=keys, args=args)


@cache
def _text_of(name: str) -> str:
    return (files("fimlora_jobs") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
