"""How metrics of an evaluation are read, wherever one reads them."""

# Shares of the held-out rows: read in percent, and their differences in points.
SHARES = ("accuracy", "macro_f1")
