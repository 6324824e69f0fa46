"""The method itself: targets, spreading, priors, pseudo-labels and the losses they feed."""

from lspread.labels.anchors import Anchors, join_anchors
from lspread.labels.calibration import calibration_error, fit_temperature, reliability, sharpen, stratified_folds
from lspread.labels.consistency import (
    align_distribution,
    confident_loss,
    fairness_loss,
    is_confident,
    mean_entropy_loss,
    mean_teacher_loss,
)
from lspread.labels.losses import (
    agreement_loss,
    contrastive_loss,
    graph_contrastive_loss,
    pseudo_label_loss,
    spread_score_loss,
)
from lspread.labels.operators import PropagationOperator, SpreadOperator
from lspread.labels.poisson import PoissonOperator, poisson_labels
from lspread.labels.priors import ClassPrior, class_prior, match_prior, mean_shift, normalize_scores
from lspread.labels.pseudo import PseudoLabels, certainty, pseudo_labels, sharpen_pseudo_labels
from lspread.labels.reinforcement import reinforce_labels
from lspread.labels.sinkhorn import sinkhorn_prior
from lspread.labels.spreading import check_alpha, propagate_labels, spread_labels
from lspread.labels.targets import label_matrix

__all__ = [
    "Anchors",
    "ClassPrior",
    "PoissonOperator",
    "PropagationOperator",
    "PseudoLabels",
    "SpreadOperator",
    "agreement_loss",
    "align_distribution",
    "calibration_error",
    "certainty",
    "check_alpha",
    "class_prior",
    "confident_loss",
    "contrastive_loss",
    "fairness_loss",
    "fit_temperature",
    "graph_contrastive_loss",
    "is_confident",
    "join_anchors",
    "label_matrix",
    "match_prior",
    "mean_entropy_loss",
    "mean_shift",
    "mean_teacher_loss",
    "normalize_scores",
    "poisson_labels",
    "propagate_labels",
    "pseudo_label_loss",
    "pseudo_labels",
    "reinforce_labels",
    "reliability",
    "sharpen",
    "sharpen_pseudo_labels",
    "sinkhorn_prior",
    "spread_labels",
    "spread_score_loss",
    "stratified_folds",
]
