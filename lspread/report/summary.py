"""The run in plain sentences: how good it is, on what, and whether something simpler is better."""

from dataclasses import dataclass, replace

from .results import GivenCheck, Results, Score

__all__ = ["Summary", "format_percent", "headline_scores", "recommend", "summarize"]

_PHRASES = {
    "classifier": "the trained classifier",
    "graph": "label spreading on the graph",
    "knn": "the k-nearest-neighbor vote",
    "logistic_regression": "logistic regression on the same embeddings",
}
_NOISE = 0.05
"""From this chance on, a lead may be nothing but chance."""
_SETS = {"unlabeled": "unlabeled", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Summary:
    """The headline, the sentences below it, and `tone`: "good", "beaten" (a baseline is better) or "unknown"."""

    headline: str
    notes: tuple[str, ...]
    tone: str


def format_percent(fraction: float) -> str:
    """Return a fraction in [0, 1] as text with one decimal, such as "91.2 %"."""
    return f"{100 * fraction:.1f} %"


def set_name(on: str, results: Results) -> str:
    """Return what a set of items is called, such as "unlabeled images"."""
    return f"{_SETS.get(on, on)} {results.noun}"


def headline_scores(results: Results) -> list[Score]:
    """Return the scores on the set that the headline speaks of, in the file's order.

    It is the first of unlabeled, test and validation items on which one of our own methods was scored; without any,
    the first set that was scored at all.
    """
    order = [*_SETS, *(score.on for score in results.scores)]
    order.sort(key=lambda on: {"unlabeled": 0, "test": 1, "val": 2}.get(on, 3))
    for only_ours in (True, False):
        for on in order:
            scores = [score for score in results.scores if score.on == on]
            if any(score.is_ours for score in scores) or (scores and not only_ours):
                return scores
    return []


def headline_score(scores: list[Score]) -> Score | None:
    """Return the score that a run is known by: the trained classifier's, else the graph's, else none."""
    for key in ("classifier", "graph"):
        for score in scores:
            if score.key == key:
                return score
    return None


def summarize(results: Results) -> Summary:
    """Say in plain words what came out of a run.

    Args:
        results: What `read_results` returned.

    Returns:
        One sentence with labels, accuracy and the best baseline where truth is known, and short notes. A baseline
        that is better is named as better; accuracy that is not known is called unknown.
    """
    summary = _summarize(results)
    if not results.num_unlearned:
        return summary
    note = (
        f"The trained classifier has not learned {results.num_unlearned:,} of these labels: they were added or changed "
        "after training had ended."
    )
    return replace(summary, notes=(note, *summary.notes))


def _summarize(results: Results) -> Summary:
    scores = headline_scores(results)
    ours = headline_score(scores)
    labels = _labels(results)
    if not scores:
        return _summarize_unknown(results, labels)
    baselines = sorted((score for score in scores if not score.is_ours), key=lambda score: -score.accuracy)
    if ours is None:
        best = baselines[0]
        text = f"With {labels}, {_phrase(best)} gets {_right(best, results)} right; no classifier of ours was scored."
        return Summary(text, (), "unknown")
    start = f"With {labels}, {_phrase(ours)} gets {_right(ours, results)} right"
    notes = _notes(results, scores, ours)
    if not baselines:
        return Summary(f"{start}.", notes, "good")
    best = baselines[0]
    # What is shown decides: nobody is better with the same percentage.
    shown = format_percent(ours.accuracy)
    is_tied = format_percent(best.accuracy) == shown
    better = [one for one in baselines if one.accuracy > ours.accuracy and format_percent(one.accuracy) != shown]
    if better:
        if len(better) > 1:
            others = ", ".join(f"{_phrase(score)} ({format_percent(score.accuracy)})" for score in better[1:])
            notes = (f"Better, too: {others}.", *notes)
        text = f"{start}, but {_phrase(best)} is better here, with {format_percent(best.accuracy)}"
        return Summary(f"{text}{_chance(ours, best)}.", notes, "beaten")
    if is_tied:
        return Summary(f"{start}; {_phrase(best)} does just as well.", notes, "good")
    text = f"{start}; the best baseline, {_phrase(best)}, gets {format_percent(best.accuracy)}"
    return Summary(f"{text}{_chance(ours, best)}.", notes, "good")


def recommend(results: Results) -> str:
    """Say which method to go by here, and why: by known truth, else by given labels that were hidden in turn."""
    scores = headline_scores(results)
    checks = results.given_checks
    ranked: list[Score | GivenCheck]
    # Among equals ours comes first: it is what the run's predictions.csv holds.
    if len(scores) > 1:
        ranked = sorted(scores, key=_by_accuracy)
        why = f"where the truth is known, on {scores[0].num_items:,} {set_name(scores[0].on, results)}"
    elif len(checks) > 1:
        ranked = sorted(checks, key=_by_accuracy)
        why = f"of the {checks[0].num_items:,} given labels, each hidden in turn and predicted from the others"
    else:
        return (
            "Nothing tells yet which method is best here: with two labels of every class or more"
            f"{_singles(results)}, each could be hidden in turn to see who finds it again."
        )
    best, *others = ranked
    rest = ", ".join(f"{_phrase(one)} {format_percent(one.accuracy)}" for one in others)
    text = f"Go by {_phrase(best)}: it is right most often {why} ({format_percent(best.accuracy)}; {rest})"
    if best.accuracy == others[0].accuracy:
        text = f"Go by {_phrase(best)}: nothing is right more often {why} ({format_percent(best.accuracy)}; {rest})"
    return f"{text}{_duel(best, others)}."


def _singles(results: Results) -> str:
    """Name the classes of which nothing can be hidden, where they are few."""
    counts = results.given_count or []
    single = [f"'{name}'" for name, count in zip(results.class_names, counts, strict=False) if count == 1]
    return f" ({', '.join(single)} {'has' if len(single) == 1 else 'have'} one)" if 1 <= len(single) <= 3 else ""


def _duel(best: Score | GivenCheck, others: list[Score | GivenCheck]) -> str:
    """Return how sure the choice is; on the same hidden labels, pairs say more than two intervals that overlap."""
    duels = [(one, one.against_best) for one in others if isinstance(one, GivenCheck) and one.against_best is not None]
    if len(duels) < len(others):
        return _chance(best, others[0])
    rivals = [_phrase(one) for one, duel in duels if duel.p >= _NOISE]
    if rivals:
        names = " and ".join([", ".join(rivals[:-1]), rivals[-1]] if len(rivals) > 1 else rivals)
        return f", but the difference to {names} is within noise"
    one, duel = duels[0]
    chance = "under 0.001" if duel.p < 0.001 else f"{duel.p:.2g}"
    return (
        f", and by more than chance explains: beside {_phrase(one)}, it alone was right about {duel.lost:,} labels "
        f"and it alone wrong about {duel.won:,} (sign test, p = {chance})"
    )


def _by_accuracy(one: Score | GivenCheck) -> tuple[float, bool]:
    return -one.accuracy, one.key not in ("classifier", "graph")


def _summarize_unknown(results: Results, labels: str) -> Summary:
    some = f"{results.num_sure:,} of " if results.num_sure < results.num_unlabeled else ""
    rest = "; the others are not sure enough. The" if some else "; their"
    text = (
        f"With {labels}, {some}{results.num_unlabeled:,} unlabeled {results.noun} got a label{rest} true labels are "
        "not known, so nobody can say yet how many are right."
    )
    checks = sorted(results.given_checks, key=lambda check: -check.accuracy)
    if not checks:
        return Summary(
            text, ("A few labels set aside for validation would tell how far to trust this run.",), "unknown"
        )
    parts = [f"{_PHRASES.get(check.key, check.method)} {format_percent(check.accuracy)}" for check in checks]
    note = f"Each given label hidden in turn and predicted from the others: {', '.join(parts)} right."
    notes = [note]
    ours = next((check for check in checks if check.key in ("classifier", "graph")), None)
    if ours is not None and checks[0].accuracy > ours.accuracy:
        is_open = ours.against_best is not None and ours.against_best.p >= _NOISE
        lead = "ahead, though by no more than chance explains" if is_open else "better here"
        notes.append(f"By that measure {_phrase(checks[0])} is {lead}.")
    return Summary(text, tuple(notes), "unknown")


def _notes(results: Results, scores: list[Score], ours: Score) -> tuple[str, ...]:
    notes = []
    graph = next((score for score in scores if score.key == "graph" and score is not ours), None)
    if graph is not None and graph.accuracy > ours.accuracy:
        notes.append(
            f"Label spreading on the graph alone reaches {format_percent(graph.accuracy)}: "
            "training a classifier on its pseudo-labels did not add to it."
        )
    for score in results.scores:
        if score.key == ours.key and score.on != ours.on:
            notes.append(f"On {score.num_items:,} {set_name(score.on, results)}: {format_percent(score.accuracy)}.")
    return tuple(notes)


def _labels(results: Results) -> str:
    counts = results.given_count
    text = "1 label" if results.num_labeled == 1 else f"{results.num_labeled:,} labels"
    if not counts or sum(counts) != results.num_labeled:
        return text
    low, high = min(counts), max(counts)
    return f"{text} ({low:,} per class)" if low == high else f"{text} ({low:,} to {high:,} per class)"


def _right(score: Score, results: Results) -> str:
    return f"{format_percent(score.accuracy)} of {score.num_items:,} {set_name(score.on, results)}"


def _phrase(score: Score | GivenCheck) -> str:
    return _PHRASES.get(score.key, score.method)


def _chance(a: Score | GivenCheck, b: Score | GivenCheck) -> str:
    """Return the caveat for two accuracies that the number of items cannot tell apart."""
    if a.interval is None or b.interval is None:
        return ""
    overlap = a.interval[0] <= b.interval[1] and b.interval[0] <= a.interval[1]
    return " (the 95 % intervals overlap, so the difference may be chance)" if overlap else ""
