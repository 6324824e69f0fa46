"""Hypothesis draws the same examples on every machine, slow machines are no failure, and nobody's cache is touched."""

import os

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40, database=None)
settings.load_profile("fixed")


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory):
    """Let fixtures that tests share keep warm-ups outside the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def own_cache(shared_cache, tmp_path_factory, monkeypatch):
    """Let no test start from the warm-up of another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
