"""What goes over the wire between client, service and worker: requests, answers, events, errors.

Needs pydantic and the standard library only.
"""

__version__ = "0.1.0"
