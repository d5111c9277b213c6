"""A client of the app in this process that comes from this machine and calls it by its name."""

from typing import Any

from starlette import testclient
from starlette.types import ASGIApp

URL = "http://localhost"
PEER = ("127.0.0.1", 50_000)


class TestClient(testclient.TestClient):
    """Starlette's client, which by itself names a host and a peer that there are none of."""

    __test__ = False

    def __init__(
        self,
        app: ASGIApp,
        *,
        base_url: str = URL,
        client: tuple[str, int] = PEER,
        **options: Any,
    ) -> None:
        super().__init__(app, base_url, client=client, **options)
