"""The Python client of fimlora and the `fimlora` command."""
