"""The page on what ranks keep to: its code runs, its commands are read, its menu is ours."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from fimlora.constraints import GROUP_PRESETS, RANK_MENUS
from fimlora_client.cli.common.constraints import constraints_of
from fimlora_contract.allocations import Allocation

PAGE = (Path(__file__).parents[2] / "docs" / "allocation.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_example_runs_as_printed(capsys):
    """Tied, of the menu, and half of the ranks for one type."""
    [code] = blocks("python")
    names: dict[str, object] = {}

    exec(code, names)

    plan, shared = names["plan"], names["shared"]
    assert all(
        len({plan.ranks[m.name] for m in plan.modules if m.layer == i}) == 1 for i in range(4)
    )
    assert {rank.bit_count() for rank in plan.ranks.values()} == {1}
    values = [rank for name, rank in shared.ranks.items() if name.endswith("v_proj")]
    assert sum(values) == shared.spent.ranks / 2
    assert "v_proj" in capsys.readouterr().out


@pytest.mark.parametrize("command", blocks("sh")[0].splitlines(), ids=str)
def test_its_commands_are_allocations(command):
    """Each option is read as the command line reads it, and accepted by the contract."""
    words = shlex.split(command)
    given = {"--group": [], "--per-type": [], "--rank-menu": [None], "--max-lora-rank": [None]}
    for option, value in pairwise(words):
        if option in given:
            given[option].append(value)
    cap = given["--max-lora-rank"][-1]

    fields = constraints_of(
        given["--group"], given["--rank-menu"][-1], given["--per-type"], cap and int(cap)
    )

    assert fields
    Allocation.model_validate(fields)


def test_what_it_lists_is_all_there_is():
    """Presets and menus; and the body over HTTP is one that the contract takes."""
    [body] = re.findall(r"`(\{.*?\})`\.", PAGE)

    assert Allocation.model_validate(json.loads(body)).max_lora_rank == 64
    assert all(f"| `{preset}` |" in PAGE for preset in GROUP_PRESETS)
    assert ", ".join(map(str, RANK_MENUS["vllm"])) in PAGE
    assert all(f"`{menu}`" in PAGE for menu in RANK_MENUS)
