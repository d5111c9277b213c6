"""The page that says what was found: one row per family, then what is refused and why.

Beside it lies the same as data, so that some families can be checked again and the rest stay.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from families.checks import CHECKS, Found
from families.comparisons import FLOAT32
from families.registry import FAMILIES
from families.rows import LENGTHS

LONGEST_REASON = 240  # characters; the rest of a sentence names the ways out
DOCS = Path(__file__).parents[2] / "docs"
PAGE, DATA = DOCS / "families.md", DOCS / "families.json"

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
- **defaults** and **autograd**: in float32, the score of every module that is targeted by
  default, or by `all-linear`, is within {limit:g} of plain autograd: a freshly loaded model, its
  own loss, one example at a time, `dL/dW`. Examples are not padded, unless the model reads its
  padding (marked *p*): then they are as in the batch. Where autograd in float32 is further than
  that from autograd in float64, so may the score be.
- **micro-batches**: one example at a time, and batches of 2, 4 and 8, give the same; of a model
  that reads its padding, one example at a time only.
- **peft**: the written adapter, on two freshly loaded models of different seeds, in stock PEFT:
  exactly the planned modules, ranks, scales and parameters, and the base's own logits.
- **streamed**: block by block, to the last bit as resident.
- **experts**: with `target_parameters="all"`, fused experts beside all linear maps: scores against
  autograd as above, streamed to the last bit, and in stock PEFT as planned.
- **bfloat16**: half of the scores are no further from float32 than plain autograd in bfloat16 is,
  within a factor of three. A mixture that in bfloat16 sends a token of an example to other experts
  where there are others in its batch is measured one example at a time there, if it has to be.

`classification` starts from a checkpoint without the head, `vision_text` runs text through a model
that also sees. `media` has rows with one or two images of several sizes, or with a sound, from a
dataset through the model's own processor; its rows are measured one at a time. Decoders of
`causal_lm`, classifiers and `media` are run as jobs, the rest as a library.
"""


def update(found: Mapping[str, Found]) -> None:
    """Write what was found, and what had been found of families that were not checked now."""
    merged = [found.get(name) or was for name, was in known().items()]
    DATA.write_text(json.dumps([asdict(f) for f in merged], indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(merged), encoding="utf-8")


def known() -> dict[str, Found]:
    """What is on record of every family of the registry, in its order."""
    recorded = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else []
    by_name = {fields["name"]: Found(**fields) for fields in recorded}
    return {
        name: by_name.get(name) or Found(name, family.model_class.__name__)
        for name, family in FAMILIES.items()
    }


def page(found: Sequence[Found]) -> str:
    """The whole page."""
    n_right = sum(result.is_right for result in found)
    n_wrong = sum(result.is_wrong for result in found)
    intro = _INTRO.format(
        n=len(found),
        lengths=", ".join(map(str, LENGTHS)),
        summary=f"Right in every column: {n_right}. Refused in some, by name: "
        f"{len(found) - n_right - n_wrong}. Wrong in some: {n_wrong}.",
        limit=FLOAT32,
        **{name: version(name).partition("+")[0] for name in ("transformers", "torch", "peft")},
    )
    header = ["family", "targets", "all-linear", *CHECKS]
    rows = [[*_start(result), *(_cell(result, check) for check in CHECKS)] for result in found]
    parts = [intro, _table(header, rows), "## Not right, and why\n", _reasons(found)]
    return "\n".join(parts)


def _start(result: Found) -> list[str]:
    targets = " ".join(f"`{name}`" for name in result.defaults) or "none"
    counts = f"{result.targets} (+{len(result.not_targeted)})" if result.targets else "none"
    name = f"`{result.name}`" + " *p*" * result.reads_padding
    return [name, targets, counts]


def _cell(result: Found, check: str) -> str:
    verdict = result.verdicts.get(check)
    if verdict is None:
        return "-"
    return verdict.partition(":")[0]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _reasons(found: Sequence[Found]) -> str:
    """Who shares a reason stands together."""
    by_reason: dict[str, list[str]] = {}
    for result in found:
        own: dict[str, list[str]] = {}
        for check, verdict in result.not_right():
            own.setdefault(verdict, []).append(check)
        for verdict, checks in own.items():
            reason = f"**{', '.join(checks)}** {_shortened(verdict, result)}"
            by_reason.setdefault(reason, []).append(f"`{result.name}`")
    lines = [f"- {reason}\\\n  {', '.join(names)}\n" for reason, names in by_reason.items()]
    return "".join(lines) or "Nothing.\n"


def _shortened(verdict: str, result: Found) -> str:
    """Without the family's own name, and not too long."""
    reason = verdict.replace(f"'{result.name.partition('/')[0]}'", "'...'")
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ..."
