"""The worker process: the only code that knows the wire and the engine both."""
