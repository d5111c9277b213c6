"""The page that says what was found: one row per family, then what is refused and why."""

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from families.checks import CHECKS, Found
from families.registry import FAMILIES
from families.rows import LENGTHS

PAGE = Path(__file__).parents[2] / "docs" / "families.md"

_INTRO = """\
# Families

{n} architectures with a head, each as a tiny random model of transformers {transformers} \
(torch {torch}, PEFT {peft}, on a CPU), measured on rows of {lengths} tokens. Made by \
`make families`; `make families ONLY="llama qwen3_moe"` checks some and says more.

{summary}

What the columns say:

- **targets**: what PEFT's or our own default choice comes to, as endings of names.
- **all-linear**: how many modules `all-linear` targets, and how many linear maps and fused
  experts it leaves out; those are listed in the rank map.
- **autograd**: the largest relative difference in float32 between a module's score and plain
  autograd: a freshly loaded model, its own loss, one unpadded example at a time, `dL/dW`. At
  most {limit:g} is right.
- **micro-batches**: micro-batches of one example, and batches of 2, 4 and 8, give the same.
- **PEFT**: the written adapter, on two freshly loaded models of different seeds, in stock PEFT:
  exactly the planned modules, ranks, scales and parameters, and the base's own logits.
- **streamed**: block by block, to the last bit as resident.
- **bfloat16**: no further from float32 than plain autograd in bfloat16 is, within a factor.

`classification` starts from a checkpoint without the head, `vision_text` runs text through a model
that also sees. Decoders of `causal_lm` and classifiers are run as jobs, the rest as a library.
"""


def page(found: Sequence[Found]) -> str:
    """The whole page."""
    n_right = sum(result.is_right for result in found)
    n_wrong = sum(result.is_wrong for result in found)
    intro = _INTRO.format(
        n=len(found),
        lengths=", ".join(map(str, LENGTHS)),
        summary=f"Right in every column: {n_right}. Refused in some, by name: "
        f"{len(found) - n_right - n_wrong}. Wrong in some: {n_wrong}.",
        limit=1e-5,
        **{name: version(name).partition("+")[0] for name in ("transformers", "torch", "peft")},
    )
    header = ["family", "targets", "all-linear", *CHECKS]
    rows = [[*_start(result), *(_cell(result, check) for check in CHECKS)] for result in found]
    parts = [intro, _table(header, rows), "## Not right, and why\n", _reasons(found)]
    return "\n".join(parts)


def listed() -> list[str]:
    """Names of the families that the page must have."""
    return list(FAMILIES)


def _start(result: Found) -> list[str]:
    targets = " ".join(f"`{name}`" for name in result.defaults) or "none"
    counts = f"{result.targets} (+{len(result.not_targeted)})" if result.targets else "none"
    return [f"`{result.name}`", targets, counts]


def _cell(result: Found, check: str) -> str:
    verdict = result.verdicts.get(check)
    if verdict is None:
        return "-"
    if check == "autograd" and result.error is not None:
        return "< 1e-6" if result.error < 1e-6 else f"< {_power_above(result.error)}"
    return verdict.partition(":")[0]


def _power_above(error: float) -> str:
    """The next power of ten: digits below are the machine's, not the family's."""
    exponent = next(n for n in range(-5, 3) if error < 10.0**n)
    return f"1e{exponent}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _reasons(found: Sequence[Found]) -> str:
    """Who shares a reason stands together."""
    by_reason: dict[str, list[str]] = {}
    for result in found:
        for check, verdict in result.not_right():
            by_reason.setdefault(f"{check}, {verdict}", []).append(f"`{result.name}`")
    lines = [f"- {', '.join(names)}: {reason}\n" for reason, names in by_reason.items()]
    return "".join(lines) or "Nothing.\n"
