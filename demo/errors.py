"""Why the demonstration did not succeed."""


class DemoFailed(RuntimeError):
    """Something that the demonstration promises did not happen."""
