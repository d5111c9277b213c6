"""How many jobs may be open at once: of all tenants, and of one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpenLimits:
    """The most jobs that have not ended; 0 is no limit.

    Attributes:
        total: Of all tenants together.
        per_owner: Of one tenant.
    """

    total: int = 0
    per_owner: int = 0


NO_LIMITS = OpenLimits()


class TooManyOpen(RuntimeError):
    """A limit is reached: one more job was not put on record.

    Attributes:
        limit: That limit.
        is_owners: Whether it is the one of a tenant, and not that of all.
    """

    def __init__(self, *, limit: int, is_owners: bool) -> None:
        super().__init__(f"{limit} jobs have not ended")
        self.limit = limit
        self.is_owners = is_owners
