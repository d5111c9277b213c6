"""How large the text of an adapter may be, known also where the engine is not imported."""

MAX_CONFIG_BYTES = 1 << 20
