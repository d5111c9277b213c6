"""The embedded stack: Valkey, the API and workers as children of one command.

Only ``fimlora up`` uses it. It starts processes and never imports what they run.
"""
