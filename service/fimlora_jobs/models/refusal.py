"""Why a base model cannot be calibrated, as its files tell before anything is loaded."""


class ModelRefused(ValueError):
    """What was found and what is allowed; the model itself is named by whoever asked."""
