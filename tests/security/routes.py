"""Every route as the OpenAPI document has it, with what it takes to call it."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fimlora_jobs.record import new_job_id

DOCUMENT = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())
JSON = "application/json"
NOW_MS = int(time.time() * 1000)  # an id tells when its job was made
# A well-formed value of each parameter in a path, of something that is not there.
ABSENT = {
    "jobs": new_job_id(NOW_MS),
    "evaluations": new_job_id(NOW_MS),
    "datasets": "ds_" + "0" * 32,
    "adapters": "ad_" + "0" * 32,
    "keys": "0" * 16,
    "digest": "sha256:" + "0" * 64,
    "other": new_job_id(NOW_MS),
}
BODIES = {
    "PUT /rank-patterns/{name}/{tag}": {"job_id": ABSENT["jobs"]},
}


@dataclass(frozen=True)
class Route:
    """One operation.

    Attributes:
        method: In capitals.
        path: As the document has it.
        operation: What the document says of it.
    """

    method: str
    path: str
    operation: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def noun(self) -> str:
        """What it is about."""
        return self.path.split("/")[1]

    @property
    def parameters(self) -> list[str]:
        """Names of what its path leaves open."""
        return re.findall(r"{(\w+)}", self.path)

    @property
    def media_types(self) -> dict[str, Any]:
        """Types of the body that it takes."""
        return self.operation.get("requestBody", {}).get("content", {})

    @property
    def body(self) -> Any:
        """A body that is well-formed; ``None`` if it takes no JSON."""
        if JSON not in self.media_types:
            return None
        examples = self.media_types[JSON].get("examples", {})
        found = next((example["value"] for example in examples.values()), {})
        return BODIES.get(str(self), found)

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of its JSON body, as the document has them."""
        reference = self.media_types.get(JSON, {}).get("schema", {}).get("$ref", "")
        found = DOCUMENT["components"]["schemas"].get(reference.rpartition("/")[2], {})
        return dict(found.get("properties", {}))

    @property
    def statuses(self) -> set[int]:
        """Statuses that the document has."""
        return {int(status) for status in self.operation["responses"]}

    def url(self, **given: str) -> str:
        """Its path on something that is not there, unless it is given."""
        values = {
            name: given.get(name) or ABSENT.get(self.noun if name == "id" else name) or "x"
            for name in self.parameters
        }
        return self.path.format(**values)


ROUTES = [
    Route(method.upper(), path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
PROBES = {"/healthz", "/readyz", "/version"}


def taking(*media_types: str) -> list[Route]:
    """Routes with a body of one of some types, or of any."""
    return [
        r
        for r in ROUTES
        if r.media_types and (not media_types or {*media_types} & {*r.media_types})
    ]
