"""The demonstration behind ``make demo``: everything real, nothing downloaded."""
