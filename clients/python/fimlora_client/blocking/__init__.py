"""The blocking client: made from `fimlora_client.aio` by `make docs`."""
