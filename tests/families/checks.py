"""Check one family: every column of the page, each against something obviously right."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature

from families.comparisons import (
    Wrong,
    as_planned,
    names_of,
    no_worse_in_half,
    same_as_autograd,
    same_but_for_rounding,
    same_statistics,
)
from families.media_rows import media_examples
from families.product import Product, Wanted, run
from families.reference import (
    count_rerouted,
    fused_parameters,
    give_head,
    linear_maps,
    load_adapted,
    load_base,
    logits_of,
    reads_padding,
    runs,
)
from families.registry import Family
from families.rows import (
    BATCH_SIZE,
    Example,
    batches,
    examples,
    padded_examples,
    write_tokenizer,
)
from fimlora.errors import FimloraError, UnsupportedModule
from fimlora_worker.errors import WorkerError
from fimlora_worker.job.failures import code_of

RIGHT = "right"
EXPERTS = "experts"
CHECKS = ("defaults", "autograd", "micro-batches", "peft", "streamed", "bfloat16", EXPERTS)
ALL_LINEAR = "all-linear"


@dataclass
class Found:
    """What became of a family.

    Attributes:
        name: The family.
        model_class: Its class.
        reads_padding: Whether an example's loss depends on the padding beside it.
        reroutes: Whether in bfloat16 a token may get other experts beside other examples, by
            rounding, so that it was judged one example at a time.
        targets: Number of modules of ``all-linear``.
        not_targeted: Linear maps and fused experts that ``all-linear`` leaves out.
        defaults: Endings of the default targets.
        fused: Number of parameters that hold the matrices of experts.
        verdicts: By check: `RIGHT`, ``refused: ...`` or ``wrong: ...``.
    """

    name: str
    model_class: str
    reads_padding: bool = False
    reroutes: bool = False
    targets: int = 0
    not_targeted: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    fused: int = 0
    verdicts: dict[str, str] = field(default_factory=dict)

    def not_right(self) -> list[tuple[str, str]]:
        """Checks that are refused or wrong, and why."""
        return [(name, said) for name, said in self.verdicts.items() if said != RIGHT]

    @property
    def is_right(self) -> bool:
        """Every check is; only mixtures with fused experts have the one of these."""
        made = [check for check in CHECKS if check != EXPERTS or self.fused]
        return not self.not_right() and len(self.verdicts) == len(made)

    @property
    def is_wrong(self) -> bool:
        """Some check is, where it should be right or refused by name."""
        return any(said.startswith("wrong") for _, said in self.not_right())


def check_family(family: Family, room: Path) -> Found:
    """Run all checks in an empty folder, which is empty again afterwards."""
    checkpoint = room / "models" / "family"
    checkpoint.mkdir(parents=True)
    (room / "out").mkdir()
    try:
        family.write(checkpoint)
        if family.kind != "media":
            write_tokenizer(checkpoint)
        return _Checks(family, checkpoint, room / "out").run()
    finally:
        for child in room.iterdir():
            shutil.rmtree(child)


@dataclass
class _Checks:
    family: Family
    checkpoint: Path
    out: Path
    reroutes: bool = False

    def run(self) -> Found:
        """All checks; those after the targets only if some targets can be measured."""
        found = Found(self.family.name, self.family.model_class.__name__)
        found.reads_padding = self.reads_padding
        defaults, found.verdicts["defaults"] = self._measured(None)
        everything, found.verdicts["autograd"] = self._measured(ALL_LINEAR)
        if defaults:
            found.defaults = sorted({n.rpartition(".")[2] for n in names_of(defaults)})
        if everything:
            found.targets = len(names_of(everything))
            found.not_targeted = self._left_out(everything)
        product, targets = (everything, ALL_LINEAR) if everything else (defaults, None)
        for name, check in self._others(product, targets).items() if product else ():
            found.verdicts[name] = _verdict(check)
        found.reroutes = self.reroutes
        found.fused = len(fused_parameters(self._base()))
        if found.fused:
            found.verdicts[EXPERTS] = _verdict(self._experts)
        return found

    @cached_property
    def reads_padding(self) -> bool:
        """Whether the model by itself does."""
        if self.family.kind == "media":  # each is measured by itself, without any
            return False
        alone = examples(self.family)
        return reads_padding(self._base(), alone, padded_examples(alone))

    @cached_property
    def examples(self) -> list[Example]:
        """One by one; where padding is read, each with the padding of the whole batch."""
        if self.family.kind == "media":
            return media_examples(self.family, self.checkpoint)
        alone = examples(self.family)
        return padded_examples(alone) if self.reads_padding else alone

    def _measured(self, targets: str | None) -> tuple[Product | None, str]:
        """Measure a choice of targets: what came out, and what autograd says of it."""
        made: list[Product] = []

        def check() -> None:
            made.append(self._run(targets))
            base = give_head(self._base(), made[0].folder)
            same_as_autograd(made[0], base, self.examples)

        said = _verdict(check)
        return (made[0] if made else None), said

    def _others(self, product: Any, targets: str | None) -> dict[str, Callable[[], None]]:
        again = partial(self._run, targets)
        return {
            "micro-batches": lambda: self._sizes(product, again),
            "peft": lambda: self._peft(product),
            "streamed": lambda: same_statistics(product, again(executor="streamed")),
            "bfloat16": lambda: self._half(product, partial(again, dtype="bfloat16")),
        }

    def _run(self, targets: str | None, **options: Any) -> Product:
        size = len(examples(self.family)) if self.reads_padding else BATCH_SIZE
        wanted = Wanted(target_modules=targets, **{"batch_size": size, **options})
        return run(self.family, self.checkpoint, wanted, self.out)

    def _base(self, *, seed: int = 1, dtype: torch.dtype = torch.float32) -> Any:
        return load_base(self.family, self.checkpoint, seed=seed, dtype=dtype)

    def _left_out(self, product: Product) -> list[str]:
        targeted = set(names_of(product))
        outside = [name for name in linear_maps(self._base()) if name not in targeted]
        return sorted({*outside, *product.statistics.not_targeted})

    def _sizes(self, product: Product, again: Callable[..., Product]) -> None:
        """Micro-batches of one example, and other batches unless their width is read."""
        base = give_head(self._base(), product.folder)
        others = [again(one_at_a_time=True)]
        others += [] if self.reads_padding else [again(batch_size=size) for size in (2, 8)]
        for other in others:
            same_but_for_rounding(product, other, base, self.examples)

    def _peft(self, product: Product) -> None:
        """Two loads under different seeds are what was planned, and the measured model."""
        is_media = self.family.kind == "media"
        batch = self.examples[0] if is_media else batches(examples(self.family))[0]
        wanted = logits_of(give_head(self._base(), product.folder), batch)
        for seed in (2, 3):
            base = self._base(seed=seed)
            as_planned(load_adapted(base, product.folder, batch), product.plan, wanted)

    def _experts(self) -> None:
        """Fused experts beside all linear maps: against autograd, streamed, and in stock PEFT."""
        run = partial(self._run, ALL_LINEAR, target_parameters="all")
        product = run()
        if not any(module.n_experts for module in product.plan.modules):
            reasons = product.statistics.not_targeted
            fused = fused_parameters(self._base())
            raise UnsupportedModule(next(why for n, why in reasons.items() if n in fused))
        base = give_head(self._base(), product.folder)
        same_as_autograd(product, base, self.examples)
        same_statistics(product, run(executor="streamed"))
        self._peft(product)

    def _half(self, single: Product, again: Callable[..., Product]) -> None:
        """In batches; a mixture whose own routing is another in them, one example at a time."""
        half = again()
        base = give_head(self._base(dtype=torch.bfloat16), half.folder)
        examples = self.examples
        if not runs(base, examples[0]):  # media are to be cast, as a processor's output can be
            examples = [dict(BatchFeature(e).to(torch.bfloat16)) for e in examples]
        if not runs(base, examples[0]):  # transformers has left some weights wider
            for parameter in base.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        try:
            no_worse_in_half(half, single, base, examples)
        except Wrong:
            if not self._is_rerouted(base):
                raise
            self.reroutes = True
            no_worse_in_half(again(one_at_a_time=True), single, base, examples)

    def _is_rerouted(self, half: Any) -> bool:
        """Whether rounding alone does that: in float32 no token is."""
        if self.family.kind == "media" or self.reads_padding:
            return False
        pair = self.examples, batches(self.examples)
        return count_rerouted(half, *pair) > 0 and not count_rerouted(self._base(), *pair)


def _verdict(check: Callable[[], None]) -> str:
    try:
        check()
    except Wrong as wrong:
        return f"wrong: {wrong}"
    except (FimloraError, WorkerError) as refusal:
        return f"refused: {code_of(refusal)}: {_one_line(refusal)}"
    except Exception as error:
        return f"wrong: {type(error).__name__}: {_one_line(error)[:300]}"
    return RIGHT


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
