# Made from aio/adapters.py by `make docs`; edit that file.
"""Trained adapters: kept by the service, cut to budgets, held against plans."""

from pathlib import Path
from typing import Unpack

from fimlora_client.adapter_archive import packed
from fimlora_client.blocking.sender import Sender
from fimlora_client.bodies import TruncationFields, as_json, checked
from fimlora_client.calls import JSON, Call, given, route
from fimlora_client.files import Download, OnFile
from fimlora_contract.adapters import (
    Adapter,
    AdapterPage,
    Audit,
    AuditRequest,
    Conversion,
    ConversionRequest,
    Layout,
    Truncation,
    TruncationRequest,
)


class Adapters:
    """Trained adapters."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def upload(self, folder: str | Path) -> Adapter:
        """Upload the two files of an adapter's folder; equal content gives the same adapter.

        ``POST /adapters``
        """
        with packed(folder) as (headers, archive):
            call = Call("POST", "/adapters", headers=headers, content=archive)
            return self._sender.ask(call, Adapter)

    def list(self, *, tenant: str | None = None) -> AdapterPage:
        """All adapters the service knows: uploaded, made of others, registered.

        With an admin key, kept ones of all tenants, or of ``tenant``.

        ``GET /adapters``
        """
        return self._sender.ask(
            Call("GET", "/adapters", params=given(tenant=tenant)), AdapterPage
        )

    def retrieve(self, adapter_id: str) -> Adapter:
        """One adapter, by its id or registered name.

        ``GET /adapters/{id}``
        """
        return self._sender.ask(Call("GET", route("adapters", adapter_id)), Adapter)

    def delete(self, adapter_id: str) -> None:
        """Delete an adapter that no open job needs; what was made of it stays.

        ``DELETE /adapters/{id}``
        """
        self._sender.do(Call("DELETE", route("adapters", adapter_id)))

    def truncate(self, adapter_id: str, **fields: Unpack[TruncationFields]) -> Truncation:
        """Cut an adapter to a budget, or to what keeps a share of its energy.

        ``POST /adapters/{id}/truncate``; `download` fetches what was made.
        """
        body = as_json(checked(TruncationRequest, fields))
        path = route("adapters", adapter_id, "truncate")
        return self._sender.ask(Call("POST", path, headers=JSON, content=body), Truncation)

    def audit(self, adapter_id: str, *, job_id: str | None = None) -> Audit:
        """What an adapter uses of its ranks; with a job also where it is not as planned.

        ``POST /adapters/{id}/audit``
        """
        body = as_json(checked(AuditRequest, {"job_id": job_id}))
        path = route("adapters", adapter_id, "audit")
        return self._sender.ask(Call("POST", path, headers=JSON, content=body), Audit)

    def convert(self, adapter_id: str, *, layout: Layout = "B") -> Conversion:
        """Write an adapter in another layout, with the same function.

        ``POST /adapters/{id}/convert``; `download` fetches what was made.
        """
        body = as_json(checked(ConversionRequest, {"layout": layout}))
        path = route("adapters", adapter_id, "convert")
        return self._sender.ask(Call("POST", path, headers=JSON, content=body), Conversion)

    def download(
        self, adapter_id: str, folder: str | Path, *, on_file: OnFile | None = None
    ) -> dict[str, Path]:
        """Fetch the files of an adapter into a folder, all of them or none.

        ``GET /adapters/{id}/files/{name}`` for each file that is not there already;
        ``on_file`` is told of every file that was fetched.

        Raises:
            DigestMismatch: A file is not what the service said; nothing was written.
        """
        download = Download((self.retrieve(adapter_id)).files, folder)
        if download.missing:
            with download:
                for file in download.missing:
                    path = route("adapters", adapter_id, "files", file.name)
                    self._sender.do(Call("GET", path, save_to=download.part(file)))
                    download.check(file)
                    if on_file:
                        on_file(file)
        return download.paths
