"""The day that every chat template is told it is, so that equal requests give equal tokens."""

from datetime import date

# What Llama's templates write where there is no clock.
TEMPLATE_DATE = date(2024, 7, 26)
