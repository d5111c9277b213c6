"""The `fimlora` command: one file per group of commands."""

from fimlora_client.cli.app import app, main

__all__ = ["app", "main"]
