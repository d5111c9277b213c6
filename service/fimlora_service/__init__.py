"""The HTTP service: accepts calibration requests, reports on jobs, hands out results.

Never imports torch or the worker: a job is handed over by the dotted name of its task.
"""
