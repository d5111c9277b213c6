"""What client, service and worker agree on: requests, jobs, events, errors, records.

Needs pydantic and the standard library only. ``store`` and ``reaper`` describe the job
record in Redis; they take a connected client as an argument and import none.
"""

__version__ = "0.1.0"
