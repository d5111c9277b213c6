"""Fixtures that every test folder may use."""

pytest_plugins = ["support.hub", "support.valkey"]
