"""Check one family: every column of the page, each against something obviously right."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from families.product import Product, Wanted, run
from families.reference import (
    Adapted,
    exact_scores,
    example_energies,
    give_head,
    linear_maps,
    load_adapted,
    load_base,
    logits_of,
)
from families.registry import Family
from families.rows import Example, batches, examples, padded_examples, write_tokenizer
from fimlora import RankPlan, Statistics, score
from fimlora.errors import FimloraError
from fimlora_worker.errors import WorkerError
from fimlora_worker.job.failures import code_of

FLOAT32 = 1e-5  # largest relative difference of two scores
LOGITS = 1e-5  # largest difference of logits, as a share of the largest
SMALL = 1e-6  # a score below this share of the highest is compared with that share
# How much further off a score in half precision may be than plain autograd in half precision.
HALF_FACTOR, HALF_SLACK = 3.0, 0.02

RIGHT = "right"
CHECKS = ("defaults", "autograd", "micro-batches", "peft", "streamed", "bfloat16")


@dataclass
class Found:
    """What became of a family.

    Attributes:
        name: The family.
        model_class: Its class.
        targets: Number of modules of ``all-linear``.
        not_targeted: Linear maps and fused experts that ``all-linear`` leaves out.
        defaults: Endings of the default targets.
        verdicts: By check: `RIGHT`, ``refused: ...`` or what is wrong.
        error: Largest relative difference from autograd in float32.
        reads_padding: Whether an example's loss depends on the padding beside it.
    """

    name: str
    model_class: str
    targets: int = 0
    not_targeted: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    verdicts: dict[str, str] = field(default_factory=dict)
    error: float | None = None
    reads_padding: bool = False

    def not_right(self) -> list[tuple[str, str]]:
        """Checks that are refused or wrong, and why."""
        return [(name, said) for name, said in self.verdicts.items() if said != RIGHT]

    @property
    def is_right(self) -> bool:
        """Every check is."""
        return not self.not_right() and len(self.verdicts) == len(CHECKS)

    @property
    def is_wrong(self) -> bool:
        """Some check is, where it should be right or refused by name."""
        return any(said.startswith("wrong") for _, said in self.not_right())


class Wrong(Exception):
    """A check has failed; the message says by how much."""


def check_family(family: Family, room: Path) -> Found:
    """Run all checks in an empty folder, which is empty again afterwards."""
    torch.use_deterministic_algorithms(True)
    checkpoint = room / "models" / "family"
    checkpoint.mkdir(parents=True)
    (room / "out").mkdir()
    try:
        return _Checks(family, checkpoint, room / "out").run()
    finally:
        shutil.rmtree(room, ignore_errors=True)


@dataclass
class _Checks:
    family: Family
    checkpoint: Path
    out: Path

    def run(self) -> Found:
        found = Found(self.family.name, self.family.model_class.__name__)
        self.family.pretrained().save_pretrained(self.checkpoint, max_shard_size="100KB")
        write_tokenizer(self.checkpoint)
        defaults, everything = self._defaults(found), self._autograd(found)
        product, targets = (everything, "all-linear") if everything else (defaults, None)
        if product is None:
            return found
        for name, check in self._others(product, targets, found):
            found.verdicts[name] = _verdict(check)
        return found

    def _defaults(self, found: Found) -> Product | None:
        made: list[Product] = []

        def check() -> None:
            product = self._run(None)
            made.append(product)
            self._compare(product, None, found)

        found.verdicts["defaults"] = _verdict(check)
        if made:
            found.defaults = _endings(made[0].plan)
        return made[0] if made else None

    def _autograd(self, found: Found) -> Product | None:
        made: list[Product] = []

        def check() -> None:
            product = self._run("all-linear")
            made.append(product)
            found.targets = len(product.plan.modules)
            found.not_targeted = _left_out(self._base(), product)
            found.error = self._compare(product, "all-linear", found)

        found.verdicts["autograd"] = _verdict(check)
        return made[0] if made else None

    def _compare(self, product: Product, targets: str | None, found: Found) -> float:
        """Compare with examples alone, or as they stand in the batch if that is read."""
        base, alone = give_head(self._base(), product.folder), examples(self.family)
        try:
            return compare_with_autograd(product, base, alone)
        except Wrong:
            padded = padded_examples(alone)
            if not reads_padding(base, alone, padded):
                raise
            found.reads_padding = True
            product = self._run(targets, batch_size=len(alone))
            return compare_with_autograd(product, base, padded)

    def _run(self, targets: str | None, **options: Any) -> Product:
        wanted = Wanted(target_modules=targets, **options)
        return run(self.family, self.checkpoint, wanted, self.out)

    def _others(
        self, product: Product, targets: str | None, found: Found
    ) -> Iterator[tuple[str, Callable[[], None]]]:
        again = partial(self._run, targets)
        yield "micro-batches", lambda: self._sizes(product, targets, found)
        yield "peft", lambda: self._peft(product)
        yield "streamed", lambda: _same_bytes(product, again(executor="streamed"))
        yield "bfloat16", lambda: self._half(product, again(dtype="bfloat16"))

    def _sizes(self, product: Product, targets: str | None, found: Found) -> None:
        """Of micro-batches, and of batches unless their width is read."""
        _same_scores(product, self._run(targets, one_at_a_time=True))
        if not found.reads_padding:
            for size in (2, 8):
                _same_scores(product, self._run(targets, batch_size=size))

    def _base(self, *, seed: int = 1, dtype: torch.dtype = torch.float32) -> Any:
        return load_base(self.family, self.checkpoint, seed=seed, dtype=dtype)

    def _peft(self, product: Product) -> None:
        batch = batches(examples(self.family))[0]
        with_head = give_head(self._base(), product.folder)
        wanted = logits_of(with_head, batch)
        for seed in (2, 3):
            adapted = load_adapted(self._base(seed=seed), product.folder, batch)
            check_adapted(adapted, product.plan, wanted)

    def _half(self, single: Product, half: Product) -> None:
        """No further from float32 than plain autograd in half precision is."""
        found, names = examples(self.family), [m.name for m in single.plan.modules]
        base = give_head(self._base(dtype=torch.bfloat16), half.folder)
        plain = exact_scores(base, example_energies(base, found, names))
        exact = score(single.statistics).by_module
        ours = score(half.statistics).by_module
        highest = max(exact.values())
        error, usual = (
            float(
                np.median(
                    [abs(s[n] - exact[n]) / max(exact[n], SMALL * highest) for n in names]
                )
            )
            for s in (ours, plain)
        )
        if not error <= HALF_FACTOR * usual + HALF_SLACK:
            raise Wrong(f"median difference {error:.1e}, of plain autograd {usual:.1e}")


def _verdict(check: Callable[[], None]) -> str:
    try:
        check()
    except Wrong as wrong:
        return f"wrong: {wrong}"
    except (FimloraError, WorkerError) as refusal:
        return f"refused: {code_of(refusal)}: {refusal}"
    except Exception as error:
        return f"wrong: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return RIGHT


def compare_with_autograd(product: Product, model: Any, found: list[Any]) -> float:
    """The largest relative difference of a score, and of an example's energy, from autograd."""
    names = [m.name for m in product.plan.modules]
    energies = example_energies(model, found, names)
    error, name = worst(score(product.statistics).by_module, exact_scores(model, energies))
    if not error <= FLOAT32:
        raise Wrong(f"{error:.1e} at {name}")
    measured = product.statistics.example_energies
    highest = max(float(values.max()) for values in energies.values())
    for name, wanted in energies.items():
        ours, theirs = np.sort(measured[name]), np.sort(wanted.numpy())
        if ours.shape != theirs.shape:
            raise Wrong(f"{len(ours)} examples of {len(theirs)}")
        # A module that hardly any gradient reaches is all rounding.
        scale = max(float(theirs.max()), SMALL * highest)
        if not (off := float(np.abs(ours - theirs).max()) / scale) <= FLOAT32:
            raise Wrong(f"{off:.1e} at one example of {name}")
    return error


def worst(found: dict[str, float], wanted: dict[str, float]) -> tuple[float, str]:
    """The largest relative difference, and where."""
    floor = SMALL * max(wanted.values())
    errors = {n: abs(found[n] - w) / max(w, floor) for n, w in wanted.items()}
    name = max(errors, key=errors.__getitem__)
    return errors[name], name


def _same_scores(product: Product, other: Product) -> None:
    wanted = dict(score(product.statistics).by_module)
    error, name = worst(dict(score(other.statistics).by_module), wanted)
    if not error <= FLOAT32:
        raise Wrong(f"{error:.1e} at {name}")


def reads_padding(model: Any, alone: list[Example], padded: list[Example]) -> bool:
    """Whether a model by itself, without the product, gives an example another loss beside padding."""
    with torch.no_grad():
        losses = [[model(**e).loss.item() for e in found] for found in (alone, padded)]
    return not np.allclose(*losses, rtol=FLOAT32, atol=0)


def _same_bytes(product: Product, streamed: Product) -> None:
    if product.statistics.to_bytes() == streamed.statistics.to_bytes():
        return
    _same_modules(product.statistics, streamed.statistics)
    _same_scores(product, streamed)
    raise Wrong("equal to 1e-5 only, not to the last bit")


def _same_modules(one: Statistics, other: Statistics) -> None:
    names = [{m.name for m in s.modules} for s in (one, other)]
    if names[0] != names[1]:
        raise Wrong(f"other modules: {sorted(names[0] ^ names[1])[:3]}")


def check_adapted(adapted: Adapted, plan: RankPlan, logits: torch.Tensor) -> None:
    """Exactly the planned modules, ranks, scales and parameters, and the base's logits."""
    planned = {n: (r, float(plan.scale)) for n, r in plan.ranks.items() if r}
    if extra := sorted(set(adapted.settings) - set(planned)):
        raise Wrong(f"PEFT adapts {len(extra)} modules that are not planned, as {extra[0]}")
    if lacking := sorted(set(planned) - set(adapted.settings)):
        raise Wrong(f"PEFT leaves out {len(lacking)} planned modules, as {lacking[0]}")
    for name, wanted in planned.items():
        if adapted.settings[name] != wanted:
            raise Wrong(f"{name} has (r, scale) {adapted.settings[name]}, planned {wanted}")
    if adapted.n_parameters != plan.spent.parameters:
        raise Wrong(f"{adapted.n_parameters} parameters, planned {plan.spent.parameters}")
    if adapted.missing:
        raise Wrong(f"PEFT misses keys: {adapted.missing[0][:200]}")
    scale = logits.abs().max().item()
    if not (off := (adapted.logits - logits).abs().max().item() / scale) <= LOGITS:
        raise Wrong(f"logits differ by {off:.1e}")


def _left_out(base: Any, product: Product) -> list[str]:
    targeted = {m.name for m in product.plan.modules}
    outside = [n for n in linear_maps(base) if n not in targeted]
    return [*outside, *product.statistics.not_targeted]


def _endings(plan: RankPlan) -> list[str]:
    return sorted({m.name.rpartition(".")[2] for m in plan.modules})
