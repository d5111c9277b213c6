"""A trained adapter that a job measures at: found unchanged, and put on the loaded model.

It is written anew as plain LoRA first, so that nothing of an uploaded config reaches PEFT but
ranks, scales, targets and the task.
"""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fimlora.adapter.config import WRAPPER_PREFIX
from fimlora.adapter.convert import convert_adapter
from fimlora.adapter.live import live_adapter
from fimlora.adapter.trained.read import TrainedAdapter, read_trained
from fimlora.errors import AdapterMismatch, InvalidAdapter, UnsupportedModule
from fimlora_jobs.datasets.folders import FolderDigests
from fimlora_jobs.trained_adapters import AdapterRooms, adapter_files
from fimlora_worker.errors import AdapterMissing
from fimlora_worker.inputs.base_model import BaseModel


@dataclass(frozen=True)
class TrainedPoint:
    """An adapter to measure at.

    Attributes:
        folder: Its files.
        work: An existing folder for what is made of it meanwhile.
    """

    folder: Path
    work: Path

    @cached_property
    def adapter(self) -> TrainedAdapter:
        """What its files say."""
        return read_trained(self.folder)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by name of the modules that it is on: the targets of the job."""
        return {name: module.rank for name, module in sorted(self.adapter.modules.items())}

    @contextmanager
    def on(self, loaded: nn.Module, model: BaseModel) -> Iterator[nn.Module]:
        """Put it on a loaded model, which is not kept for other jobs afterwards.

        Args:
            loaded: The model.
            model: Where it comes from.

        Yields:
            The model with the adapter acting.

        Raises:
            InvalidAdapter: It is not for this model.
        """
        from peft import PeftModel

        self.check_fits(loaded, drawn=model.drawn)
        try:
            with tempfile.TemporaryDirectory(dir=self.work) as work:
                plain = Path(work) / "adapter"
                convert_adapter(self.folder, plain)
                device = str(model.device)
                adapted = PeftModel.from_pretrained(loaded, plain, torch_device=device).eval()
                _check_acts(adapted, read_trained(plain))
            yield adapted
        finally:
            # PEFT has changed its modules, and a trained head stands in place of its own.
            model.unload()

    def check_measured(self, names: Collection[str], left_out: Mapping[str, str]) -> None:
        """See that all that the adapter is on is measured.

        Args:
            names: Names of the modules that are.
            left_out: Why others are not, by name.

        Raises:
            UnsupportedModule: A module is not.
        """
        for name in self.ranks.keys() - names:
            reason = left_out.get(name, "it is no linear map")
            raise UnsupportedModule(
                f"the adapter is on {name}, which cannot be measured: {reason}"
            )

    def check_fits(self, loaded: nn.Module, *, drawn: frozenset[str]) -> None:
        """See that the adapter is one for a model.

        Args:
            loaded: The model, with weights or without.
            drawn: Names of its modules that the checkpoint lacks.

        Raises:
            InvalidAdapter: A module is not there or has another shape, or the adapter lacks a
                head that the model lacks, too.
        """
        modules = dict(loaded.named_modules())
        for name, module in self.adapter.modules.items():
            weight = getattr(modules.get(name), "weight", None)
            if weight is None:
                raise InvalidAdapter(f"the adapter is on {name}, which the base model has not")
            sides = (module.target.d_out, module.target.d_in)
            if tuple(weight.shape) not in {sides, sides[::-1]}:
                raise InvalidAdapter(
                    f"the adapter is for a {name} of {sides[0]} x {sides[1]}, and that of the "
                    f"base model is {' x '.join(map(str, weight.shape))}"
                )
        carried = {
            key.removeprefix(WRAPPER_PREFIX): entry.shape
            for key, entry in self.adapter.carried.items()
        }
        parameters = dict(loaded.named_parameters())
        for name, shape in carried.items():
            if name in parameters and tuple(parameters[name].shape) != shape:
                raise InvalidAdapter(
                    f"the adapter's {name} has shape {list(shape)}, and these labels need "
                    f"{list(parameters[name].shape)}"
                )
        lacking = sorted(n for n in drawn if f"{n}.weight" in parameters)
        if missing := [name for name in lacking if f"{name}.weight" not in carried]:
            raise InvalidAdapter(
                f"the checkpoint lacks {missing[0]} and the adapter does not have it either, so "
                "it would be drawn anew; save it with modules_to_save"
            )


def find_point(
    reference: Mapping[str, Any], *, data_dir: Path, digests: FolderDigests, work: Path
) -> TrainedPoint:
    """Find the adapter that a job was accepted with.

    Args:
        reference: What it resolved to.
        data_dir: The data folder.
        digests: Digests of files that are known.
        work: An existing folder for what is made of it.

    Returns:
        The adapter.

    Raises:
        AdapterMissing: It is not there any more, or has changed since.
    """
    name = str(reference["name"])
    folder = AdapterRooms.of(data_dir).folder_of(name)
    try:
        digest = digests.of_files(adapter_files(folder))
    except OSError as error:
        raise AdapterMissing(f"adapter {name!r} is not there any more") from error
    if digest != reference["digest"]:
        raise AdapterMissing(
            f"adapter {name!r} has changed since the job was accepted; submit it again"
        )
    return TrainedPoint(folder, work)


def _check_acts(adapted: nn.Module, written: TrainedAdapter) -> None:
    """See that the model has the adapter that is in the files, number by number.

    Raises:
        AdapterMismatch: PEFT has made something else of it.
    """
    live = live_adapter(adapted)
    ranks = {name: module.rank for name, module in written.modules.items()}
    if live.ranks != ranks:
        raise AdapterMismatch(
            "PEFT puts other modules or ranks on the model than the adapter has"
        )
    for name in ranks:
        matrices = zip(live.matrices(name), written.matrices(name), strict=True)
        for linear, array in matrices:
            found = linear.weight.detach()
            if not torch.equal(found.cpu(), torch.from_numpy(array).to(found.dtype)):
                raise AdapterMismatch(f"{name}: PEFT has not loaded the numbers of the adapter")
