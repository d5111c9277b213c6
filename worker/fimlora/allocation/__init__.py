"""Scores and a budget in, a plan of whole ranks out; nothing here imports torch."""

from fimlora.allocation.planning import RULES, allocate
from fimlora.allocation.proportional import allocate_ranks

__all__ = ["RULES", "allocate", "allocate_ranks"]
