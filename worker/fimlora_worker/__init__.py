"""The GPU worker: takes calibration jobs from the queue and runs the engine on them.

The parent process (`warm_worker`, `leases`) speaks to Redis and never imports torch. Its
long-lived child (`child`, `job.tasks`) holds the device and the models it has loaded.
"""
