"""What all tests share: Hypothesis draws the same examples on every machine, and nobody's cache is touched."""

import os

import pytest
import torch
from hypothesis import settings
from torch._subclasses.fake_tensor import FakeTensorMode

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40, database=None)
settings.load_profile("fixed")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("fake_cuda")]
    if marked and not fake_tensors_can_be_sliced():
        for item in marked:
            item.add_marker(
                pytest.mark.skip(reason=f"torch {torch.__version__} wants a GPU to slice fake CUDA tensors")
            )


def fake_tensors_can_be_sliced():
    try:
        with FakeTensorMode():
            torch.empty(2, device="cuda")[:1]
    except RuntimeError:
        return False
    return True


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory):
    """Let fixtures that tests share keep warm-ups outside the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def own_cache(shared_cache, tmp_path_factory, monkeypatch):
    """Let no test start from the warm-up of another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
