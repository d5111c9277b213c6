"""The dtype that a model is measured in: the service estimates with it, the worker runs in it."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}  # of one number


def choose_dtype(wanted: str, own: object, *, device: str) -> str:
    """What is wanted; ``auto`` is float32 on a CPU, else the model's own or bfloat16.

    Args:
        wanted: As a request has it.
        own: As the model's configuration has it: a name, torch's dtype, or nothing usable.
        device: ``cpu`` or ``cuda``.
    """
    if wanted != "auto":
        return wanted
    if device == "cpu":
        return "float32"
    name = str(own).removeprefix("torch.")
    return name if name in BYTES else "bfloat16"
