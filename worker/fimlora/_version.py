"""The version of the engine, which goes on record with what it measured."""

__version__ = "0.1.0"
