"""Which base models and datasets an operator allows, by patterns of their names.

A model or dataset of the hub goes by ``namespace/name``, a registered one by ``local:name``;
uploaded rows go by ``upload`` and those in a request by ``inline``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Self

from fimlora_contract.field_errors import clip

# Where a request may name a dataset.
DATASET_ROLES = ("dataset", "retain", "eval_dataset")
ROWS = frozenset({"upload", "inline"})
_PATTERN = re.compile(
    r"[A-Za-z0-9*][A-Za-z0-9*._-]*/[A-Za-z0-9*._-]+|local:[A-Za-z0-9*._-]+|\*"
)


class NotAllowed(Exception):
    """A request uses what the operator does not allow; the message says what is allowed."""

    code: ClassVar[str]


class ModelNotAllowed(NotAllowed):
    code = "model_not_allowed"


class SourceNotAllowed(NotAllowed):
    code = "source_not_allowed"


@dataclass(frozen=True, slots=True)
class AllowList:
    """Patterns of names; without any everything is allowed."""

    patterns: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str, *, setting: str) -> Self:
        """Read patterns that are separated by commas.

        Args:
            text: The patterns.
            setting: The setting's name, ``allowed_models`` or ``allowed_datasets``.

        Raises:
            ValueError: One of them matches nothing that there can be.
        """
        patterns = tuple(filter(None, (part.strip() for part in text.split(","))))
        rows = ROWS if setting == "allowed_datasets" else frozenset()
        for pattern in patterns:
            if pattern not in rows and not _PATTERN.fullmatch(pattern):
                known = "".join(f", {name}" for name in sorted(rows))
                raise ValueError(
                    f"FIMLORA_{setting.upper()} has {pattern!r}; allowed are patterns such as "
                    f"org/*, org/name, local:*{known} and *, separated by commas"
                )
        return cls(patterns)

    def allows(self, name: str) -> bool:
        """Whether something of that name may be used."""
        return not self.patterns or any(fnmatchcase(name, each) for each in self.patterns)

    def __str__(self) -> str:
        return ", ".join(self.patterns)


ANYTHING = AllowList()


@dataclass(frozen=True, slots=True)
class Allowed:
    """The operator's lists.

    Attributes:
        models: Base models.
        datasets: Datasets, whatever they are used for.
    """

    models: AllowList = ANYTHING
    datasets: AllowList = ANYTHING

    @classmethod
    def of(cls, *, models: str, datasets: str) -> Self:
        """The lists of two settings."""
        return cls(
            AllowList.of(models, setting="allowed_models"),
            AllowList.of(datasets, setting="allowed_datasets"),
        )

    def check_request(self, request: Mapping[str, Any]) -> None:
        """Refuse a request on record that uses what is not allowed.

        Raises:
            NotAllowed: It does.
        """
        if request.get("base_model"):
            self.check_model(request["base_model"])
        for role in DATASET_ROLES:
            if request.get(role):
                self.check_dataset(request[role])

    def check_model(self, reference: Mapping[str, Any]) -> None:
        """Refuse a base model that is not allowed.

        Raises:
            ModelNotAllowed: It is not.
        """
        name = name_of(reference)
        if not self.models.allows(name):
            raise ModelNotAllowed(f"base model {clip(name)!r}; allowed are {self.models}")

    def check_dataset(self, reference: Mapping[str, Any]) -> None:
        """Refuse a dataset that is not allowed.

        Raises:
            SourceNotAllowed: It is not.
        """
        name = name_of(reference)
        if not self.datasets.allows(name):
            raise SourceNotAllowed(f"dataset {clip(name)!r}; allowed are {self.datasets}")


EVERYTHING = Allowed()


def name_of(reference: Mapping[str, Any]) -> str:
    """The name that a reference to a model or dataset goes by.

    Args:
        reference: It, as a request has it: with its source, and id or name.
    """
    match reference["source"]:
        case "hub":
            return str(reference["id"])
        case "local":
            return f"local:{reference['name']}"
        case source:
            return str(source)
