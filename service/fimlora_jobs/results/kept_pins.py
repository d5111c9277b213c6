"""Pins, kept beside the results that they stand for."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import Field, ValidationError

from fimlora_contract.base import AnswerModel
from fimlora_contract.digests import digest_of
from fimlora_jobs.catalogue import MAX_HISTORY, Catalogue, Pinned
from fimlora_jobs.results.notes import Notes, each

ROOM = "pins"


class KeptEntry(AnswerModel):
    """What a pin stood for since when."""

    digest: str = Field(pattern=r"^sha256:[0-9a-f]{1,64}$")
    pinned_at_ms: int = Field(ge=0, lt=10**15)
    by: str = ""


class KeptPin(AnswerModel):
    """A note about a pin.

    Attributes:
        format: Of the note.
        owner: The tenant whose it is; empty for one that all share.
        name: The name.
        tag: The tag.
        history: What it stands for and stood for, the newest first.
    """

    format: Literal["fimlora.pin/1"] = "fimlora.pin/1"
    owner: str = Field(pattern=r"^[^:]*$")
    name: str = Field(pattern=r"^[^:]+$")
    tag: str = Field(pattern=r"^[^:]+$")
    history: list[KeptEntry] = Field(max_length=MAX_HISTORY)

    @property
    def note(self) -> str:
        """The name of its note, which no name of a pin can leave the room by."""
        return digest_of([self.owner, self.name, self.tag]).partition(":")[2]


@dataclass(frozen=True, slots=True)
class KeptPins:
    """Notes about pins.

    Attributes:
        notes: What keeps them.
        catalogue: Where pins are.
    """

    notes: Notes
    catalogue: Catalogue

    def keep(self, name: str, tag: str, *, owner: str) -> None:
        """Keep what a pin says, until the note says what the pin does.

        Two may pin at once; whoever writes an older history sees so afterwards.
        """
        written: list[Pinned] = []
        while (history := self.catalogue.pinned(name, tag, owner=owner)) != written:
            entries = [KeptEntry(**asdict(entry)) for entry in history]
            pin = KeptPin(owner=owner, name=name, tag=tag, history=entries)
            self.notes.put(ROOM, pin.note, pin.model_dump_json().encode())
            written = history

    def all(self) -> list[KeptPin]:
        """All that are kept and whole."""
        found = (_parsed(name, content) for name, content in each(self.notes, ROOM))
        return [pin for pin in found if pin]


def _parsed(name: str, content: bytes) -> KeptPin | None:
    try:
        pin = KeptPin.model_validate_json(content)
    except (ValidationError, json.JSONDecodeError):
        return None
    return pin if pin.note == name and pin.history else None
