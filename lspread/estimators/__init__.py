"""scikit-learn estimators: label spreading, label propagation and Poisson learning on one sparse engine.

They take the constructor names of `sklearn.semi_supervised` and fit in its pipelines. What differs from there:

- `kernel="knn"` is a symmetric graph whose weights follow the local density; there it is a directed graph of ones with
  self-loops (scikit-learn issue 11784). `kernel="rbf"` joins all pairs up to 4,096 items, beyond that the 100 nearest.
- The fixed point is solved for, to a relative residual of `tol` in at most `max_iter` steps of conjugate gradient;
  there scores are iterated until they change by less than `tol`, or 30 times.
- `predict` lets the nearest fitted items vote: `n_neighbors` of them, or the 100 nearest with "rbf".
- Items that no label reaches take the class of the nearest labeled item with next to no confidence, and a warning says
  how many there are. There they get the first class or NaN (issues 3218, 34351).
- Classes send out alike, however many labels they have (`balance`), and equal rows of X are one item.
- Defaults are those that served best with few labels: `kernel="knn"` and `alpha=0.99`.
"""

from lspread.estimators.classifiers import LabelPropagationClassifier, LabelSpreadingClassifier, PoissonClassifier

__all__ = ["LabelPropagationClassifier", "LabelSpreadingClassifier", "PoissonClassifier"]
