"""Whether a chat template can be compiled, told by reading it only.

Templates come from strangers. Compiling one already calculates what is constant in it, for as
long and with as much memory as that takes; here it is parsed, and nothing is evaluated. What
parsing leaves open shows in the worker, under its limits of time and memory.
"""

from collections.abc import Container, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Twice what the longest of known templates has; one of only plus signs takes a second to parse.
MAX_CHARS = 1 << 15
MAX_SHOWN = 300
# Names inside are looked up only when their branch is taken.
BRANCHES = (nodes.If, nodes.CondExpr)


def fault_of(template: str) -> str | None:
    """What is wrong with a template; ``None`` if it is sound, or too long to be read here."""
    if len(template) > MAX_CHARS:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    try:
        tree = environment.parse(template)
    except jinja2.TemplateSyntaxError as error:
        return f"{' '.join(str(error.message).split())[:MAX_SHOWN]} in line {error.lineno}"
    except (RecursionError, ValueError):
        return None
    return next(_unknown_names(tree, environment), None)


class _Generation(Extension):
    """What transformers adds to the language: a mark around what the assistant writes."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(
            ("name:endgeneration",), drop_needle=True
        )
        return body


def _unknown_names(tree: nodes.Node, environment: jinja2.Environment) -> Iterator[str]:
    known: dict[type[nodes.Node], Container[str]] = {
        nodes.Filter: environment.filters,
        nodes.Test: environment.tests,
    }
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        names = known.get(type(node))
        if names is not None and node.name not in names:  # type: ignore[attr-defined]
            kind = type(node).__name__.lower()
            yield f"No {kind} named {node.name!r} in line {node.lineno}"  # type: ignore[attr-defined]
        waiting.extend(child for child in node.iter_child_nodes() if not _is_branch(child))


def _is_branch(node: nodes.Node) -> bool:
    return isinstance(node, BRANCHES)
