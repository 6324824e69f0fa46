import pytest
import torch

from lspread.graph import difference
from lspread.graph.difference import squared_distance
from tests.reference import seeded


def make(n=7, k=3, d=4, dtype=torch.float64):
    """Return points and their neighbors; one node names itself, more than once."""
    generator = seeded(0)
    index = torch.randint(n, (n, k), generator=generator)
    index[0] = 0
    return torch.randn(n, d, generator=generator, dtype=dtype), index


def plain(z, index):
    return (z[:, None] - z[index]).square().sum(-1)


@pytest.mark.parametrize("num_held", [1, 30, 1 << 24])
def test_value_and_gradient(monkeypatch, num_held):
    monkeypatch.setattr(difference, "NUM_HELD", num_held)
    monkeypatch.setattr(difference, "NUM_HELD_IN_CACHE", num_held)
    z, index = make()
    grad = torch.randn(7, 3, generator=seeded(1), dtype=torch.float64)
    answers = []
    for distance in (squared_distance, plain):
        x = z.clone().requires_grad_()
        value = distance(x, index)
        answers.append((value, *torch.autograd.grad(value, x, grad)))
    torch.testing.assert_close(*answers)


def test_all_derivatives():
    z, index = make(5, 2, 2)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: squared_distance(z, index), z, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda z: squared_distance(z, index), z)


def test_function_transforms():
    z, index = make()
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(squared_distance)(z, index), transform(plain)(z, index))

    def cube(distance):
        return lambda z: distance(z, index).pow(3).sum()

    torch.testing.assert_close(torch.func.hessian(cube(squared_distance))(z), torch.func.hessian(cube(plain))(z))


def test_no_digits_are_lost_far_from_the_origin():
    z, index = make(dtype=torch.float32)
    z = (z * 1e-3 + 1000).requires_grad_()
    wanted = z.detach().double().requires_grad_()
    for x, distance in ((z, squared_distance), (wanted, plain)):
        distance(x, index).sum().backward()
    torch.testing.assert_close(z.grad, wanted.grad.float(), rtol=1e-6, atol=0)
