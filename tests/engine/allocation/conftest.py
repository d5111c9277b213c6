"""Two test processes share two cores: time is no sign of a wrong result."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
