"""Scores and a budget in, a plan of whole ranks out; nothing here imports torch."""

from fimlora.allocation.planning import allocate
from fimlora.allocation.proportional import allocate_ranks
from fimlora.scores import RULES

__all__ = ["RULES", "allocate", "allocate_ranks"]
