"""How good a ranking is: normalised discounted cumulative gain, and recall, of its first results.

Cumulated gain with a logarithmic discount, divided by that of the ideal ranking, is from Järvelin and Kekäläinen,
"Cumulated gain-based evaluation of IR techniques", ACM TOIS 20(4), 2002. The gain 2^grade - 1 and the discount
log2(1 + rank), with ranks from 1, are the form of Burges et al., "Learning to rank using gradient descent", ICML 2005.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import log2


def ndcg(ranking: Sequence[str], grades: Mapping[str, int], depth: int) -> float:
    """Discounted gain of the first `depth` results, as a share of what the best possible order has: 0 to 1.

    `ranking` names no document twice; what `grades` does not name is irrelevant. Raises ValueError if nothing is
    relevant, since then no order is better than another.
    """
    ideal = _discounted(sorted(grades.values(), reverse=True), depth)
    if ideal == 0:
        raise ValueError("no document is relevant: there is no best order to compare with")
    return _discounted((grades.get(document, 0) for document in ranking), depth) / ideal


def recall(ranking: Sequence[str], grades: Mapping[str, int], depth: int) -> float:
    """Share of the relevant documents (grade 1 or more) that are among the first `depth` results: 0 to 1.

    With more than `depth` relevant documents it cannot reach 1. Raises ValueError if nothing is relevant.
    """
    relevant = {document for document, grade in grades.items() if grade > 0}
    if not relevant:
        raise ValueError("no document is relevant: there is nothing to find")
    return len(relevant.intersection(ranking[:depth])) / len(relevant)


def _discounted(grades: Iterable[int], depth: int) -> float:
    return sum((2.0**grade - 1) / log2(rank + 1) for rank, grade in enumerate(islice(grades, depth), start=1))
