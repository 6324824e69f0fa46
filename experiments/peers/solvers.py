"""Solves of (I - alpha S) F = (1 - alpha) Y, from the same normalized float32 graph to the same residual."""

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, eye_array
from scipy.sparse.linalg import cg

Solve = Callable[[int], dict[str, Any]]
CHECK_EVERY = 20


def matrix_of(arrays: dict[str, np.ndarray]) -> csr_array:
    """Return S; `arrays` hold its `data`, `indices` and `indptr`."""
    size = len(arrays["indptr"]) - 1
    return csr_array((arrays["data"], arrays["indices"], arrays["indptr"]), shape=(size, size))


def lspread(arrays: dict[str, np.ndarray], *, alpha: float, rtol: float, solver: str) -> Solve:
    import lspread.solve
    from lspread import Graph, spread_labels

    graph = Graph.from_scipy(matrix_of(arrays))
    graph = replace(graph, is_symmetric=True, normalization="symmetric")
    targets = torch.from_numpy(arrays["targets"])
    if solver == "AutoSolver":
        chosen = lspread.solve.AutoSolver(iterative=lspread.solve.ConjugateGradient(rtol=rtol))
    else:
        chosen = getattr(lspread.solve, solver)(rtol=rtol)

    def run(turn: int) -> dict[str, Any]:
        solution = spread_labels(graph, targets, alpha=alpha, solver=chosen, on_failure="ignore")
        return {"scores": solution.value.numpy(), "steps": solution.num_steps, "status": solution.status.value}

    return run


def scipy_cg(
    arrays: dict[str, np.ndarray], *, alpha: float, rtol: float, num_threads: int = 1, max_steps: int = 2000
) -> Solve:
    """Conjugate gradient class by class, as LP-DeepSSL does; or classes side by side on threads (0: all there are)."""
    num_threads = num_threads or torch.get_num_threads()
    s, targets = matrix_of(arrays), arrays["targets"]

    def run(turn: int) -> dict[str, Any]:
        a = (eye_array(s.shape[0], dtype=s.dtype, format="csr") - s.dtype.type(alpha) * s).tocsr()
        steps = [0] * targets.shape[1]

        def one(column: int) -> np.ndarray:
            def count(_: np.ndarray) -> None:
                steps[column] += 1

            rhs = np.ascontiguousarray((1 - alpha) * targets[:, column]).astype(s.dtype)
            return cg(a, rhs, rtol=rtol, maxiter=max_steps, callback=count)[0]

        if num_threads == 1:
            columns = [one(column) for column in range(targets.shape[1])]
        else:
            with ThreadPoolExecutor(num_threads) as pool:
                columns = list(pool.map(one, range(targets.shape[1])))
        return {"scores": np.stack(columns, 1), "steps": max(steps)}

    return run


def torch_power(arrays: dict[str, np.ndarray], *, alpha: float, rtol: float, max_steps: int = 5000) -> Solve:
    """F <- alpha S F + (1 - alpha) Y with torch's CSR product, looking at the residual every 20 steps."""
    size = len(arrays["indptr"]) - 1
    targets = torch.from_numpy(arrays["targets"])

    def run(turn: int) -> dict[str, Any]:
        s = torch.sparse_csr_tensor(
            torch.from_numpy(arrays["indptr"]),
            torch.from_numpy(arrays["indices"]),
            torch.from_numpy(arrays["data"]),
            (size, size),
            check_invariants=False,
        )
        rhs = (1 - alpha) * targets
        goal = rtol * rhs.norm(dim=0)
        scores, steps = rhs.clone(), 0
        while steps < max_steps:
            following = torch.addmm(rhs, s, scores, alpha=alpha)
            # What one step changes is the residual of what it started from.
            if steps % CHECK_EVERY == 0 and bool(((following - scores).norm(dim=0) <= goal).all()):
                break
            scores, steps = following, steps + 1
        return {"scores": scores.numpy(), "steps": steps}

    return run


def graphlearning_cg(arrays: dict[str, np.ndarray], *, alpha: float, rtol: float) -> Solve:
    """graphlearning's conjugate gradient on all classes; its tolerance is the residual of the whole block."""
    from graphlearning import utils

    s, targets = matrix_of(arrays), arrays["targets"]

    def run(turn: int) -> dict[str, Any]:
        a = (eye_array(s.shape[0], dtype=s.dtype, format="csr") - s.dtype.type(alpha) * s).tocsr()
        rhs = ((1 - alpha) * targets).astype(s.dtype)
        # No class may be worse than asked, so the block must be as good as its smallest class needs.
        return {"scores": utils.conjgrad(a, rhs, tol=float(rtol * np.linalg.norm(rhs, axis=0).min()), max_iter=2000)}

    return run


def pyg_propagation(arrays: dict[str, np.ndarray], *, alpha: float, rtol: float) -> Solve:
    """PyG's LabelPropagation, told before how many steps the residual needs: it cannot look."""
    from torch_geometric.nn import LabelPropagation

    targets = torch.from_numpy(arrays["targets"])
    rows = torch.repeat_interleave(torch.from_numpy(np.diff(arrays["indptr"])).long(), output_size=len(arrays["data"]))
    edge_index = torch.stack([torch.from_numpy(arrays["indices"]).long(), rows])
    weight = torch.from_numpy(arrays["data"])
    num_steps = int(torch_power(arrays, alpha=alpha, rtol=rtol)(0)["steps"])
    model = LabelPropagation(num_layers=num_steps, alpha=alpha)

    def run(turn: int) -> dict[str, Any]:
        # Scores lie in [0, 1], so its clamp changes nothing.
        return {"scores": model(targets, edge_index, edge_weight=weight).numpy(), "steps": num_steps}

    return run


def prepare(arrays: dict[str, np.ndarray], *, solve: str, **options: Any) -> Solve:
    """Return the timed call, from graph and targets to scores."""
    make: dict[str, Callable[..., Solve]] = {
        "lspread": lspread,
        "scipy_cg": scipy_cg,
        "torch_power": torch_power,
        "graphlearning": graphlearning_cg,
        "pyg": pyg_propagation,
    }
    unknown = set(options) - set(inspect.signature(make[solve]).parameters)
    assert not unknown, f"{solve} knows no {unknown}"
    return make[solve](arrays, **options)
