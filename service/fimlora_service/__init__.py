"""The HTTP service: resolves names, queues jobs, serves results; never imports torch."""
