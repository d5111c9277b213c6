"""What each part of the run may take, in the order in which they run: what matters most first."""

# Seconds; the first part of all also waits for what is imported to come from the disk.
SECONDS: dict[str, dict[str, float]] = {
    "gpu": {
        "machine": 60, "resident": 170, "streamed": 160, "mixture": 80, "per-example": 80,
        "tests": 80,
    },
    "cpu": dict.fromkeys(
        ("machine", "resident", "streamed", "mixture", "per-example", "tests"), 300.0
    ),
}  # fmt: skip
NAMES = tuple(SECONDS["gpu"])
