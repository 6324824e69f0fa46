"""Hypothesis draws the same examples on every machine, and slow machines are no failure."""

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40, database=None)
settings.load_profile("fixed")
