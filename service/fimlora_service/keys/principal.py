"""Who asks, and what a route needs of him: each route states one scope, by `needs`."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Security

from fimlora_contract.keys import Scope

OPERATOR = ""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        tenant: Whose jobs and data he reaches; empty for the operator's.
        scopes: What he may do.
        key_id: The key that he came with; empty without one.
    """

    tenant: str
    scopes: frozenset[Scope]
    key_id: str

    def may(self, scope: Scope) -> bool:
        """Whether he may do what needs a scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def is_operator(self) -> bool:
        """Whether he reaches what belongs to any tenant."""
        return self.tenant == OPERATOR and Scope.ADMIN in self.scopes

    def sees(self, owner: str) -> bool:
        """Whether what belongs to a tenant is there for him."""
        return self.is_operator or owner == self.tenant


# Who asks while no key has been made.
EVERYBODY = Principal(OPERATOR, frozenset(Scope), "")


async def _current(request: Request) -> Principal:
    found: Principal = request.state.principal
    return found


async def _stated() -> None:
    """Nothing: the route has read the scope, and let nobody in without it."""


async def _may_be_first() -> None:
    """Nothing: the route has read it."""


PrincipalDep = Annotated[Principal, Depends(_current)]


def needs(scope: Scope) -> Any:
    """What a route names among its dependencies: the scope without which it refuses."""
    return Security(_stated, scopes=[scope])


# On the route that makes keys: see `Gate.admit`.
MAKES_FIRST_KEY: Any = Depends(_may_be_first)
READS, SUBMITS, CANCELS, ADMINISTERS = map(
    needs, (Scope.READ, Scope.SUBMIT, Scope.CANCEL, Scope.ADMIN)
)
