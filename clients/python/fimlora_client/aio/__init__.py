"""The asynchronous client, and the only definition of what both clients do.

Files are read and written in the loop's own thread, in pieces.

`fimlora_client.blocking` is made from these files by `make docs`: without ``async`` and
``await``, and with every ``AsyncX`` named ``X``. Change a route here, nowhere else.
"""
