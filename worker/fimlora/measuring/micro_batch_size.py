"""How many examples go through the model at once: as asked for, less when memory runs out."""


class MicroBatches:
    """The size of micro-batches over a run.

    What did not fit once is not tried again, so a size stays halved for later batches.

    Args:
        size: Examples at once; ``None`` for a whole batch.

    Attributes:
        size: The most that may run at once; ``None`` for a whole batch.
        largest: The most that went through at once since the size was last halved.
    """

    def __init__(self, size: int | None) -> None:
        self.largest = 0
        self.size = size

    def of(self, n_left: int) -> int:
        """Say how many examples to run next.

        Args:
            n_left: Examples of the batch that have not run yet.

        Returns:
            That many, or as many as may run at once.
        """
        return min(n_left, self.size or n_left)

    def succeed(self, n: int) -> None:
        """Take note that examples went through.

        Args:
            n: How many.
        """
        self.largest = max(self.largest, n)

    def halve(self, n: int) -> bool:
        """Run fewer from now on.

        Args:
            n: How many did not fit.

        Returns:
            Whether there is anything to halve.
        """
        if n == 1:
            return False
        self.size, self.largest = n // 2, 0
        return True
