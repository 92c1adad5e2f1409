"""nDCG and recall: values worked out by hand, and what holds for every ranking."""

from math import log2
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.ranking import ndcg, recall

DEPTH = 10
DOCUMENTS = [f"d{number}" for number in range(30)]

judgements = st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(0, 5)).filter(lambda grades: any(grades.values()))
rankings = st.lists(st.sampled_from(DOCUMENTS), unique=True)


def test_ndcg_of_a_small_ranking_is_what_paper_and_pencil_say() -> None:
    grades = {"a": 3, "b": 2, "c": 1, "z": 0}
    found = ndcg(["b", "x", "a", "z"], grades, DEPTH)
    gained = 3 / log2(2) + 7 / log2(4)
    best = 7 / log2(2) + 3 / log2(3) + 1 / log2(4)
    assert found == pytest.approx(gained / best)
    assert found == pytest.approx(0.69202, abs=1e-5)  # 6.5 / 9.39279


def test_ndcg_looks_no_deeper_than_told() -> None:
    assert ndcg(["x", "a"], {"a": 1}, 1) == 0.0
    assert ndcg(["a", "b"], {"a": 1, "b": 1, "c": 1}, 2) == 1.0


def test_recall_counts_relevant_documents_only() -> None:
    grades = {"a": 3, "b": 1, "c": 1, "z": 0}
    assert recall(["z", "a", "x", "b"], grades, DEPTH) == pytest.approx(2 / 3)
    assert recall(["z", "a", "x", "b"], grades, 2) == pytest.approx(1 / 3)


def test_a_query_without_any_relevant_document_has_no_figure() -> None:
    with pytest.raises(ValueError, match="no document is relevant"):
        ndcg(["a"], {"a": 0}, DEPTH)
    with pytest.raises(ValueError, match="no document is relevant"):
        recall(["a"], {}, DEPTH)


@given(rankings, judgements)
def test_figures_lie_between_nothing_and_all(ranking: list[str], grades: dict[str, int]) -> None:
    assert 0.0 <= ndcg(ranking, grades, DEPTH) <= 1.0
    assert 0.0 <= recall(ranking, grades, DEPTH) <= 1.0


@given(judgements)
def test_the_best_order_has_ndcg_one_and_all_that_fits(grades: dict[str, int]) -> None:
    best = sorted(grades, key=lambda document: -grades[document])
    relevant = sum(grade > 0 for grade in grades.values())
    assert ndcg(best, grades, DEPTH) == 1.0
    assert recall(best, grades, DEPTH) == min(DEPTH, relevant) / relevant


@given(rankings, judgements, st.randoms(use_true_random=False))
def test_what_lies_below_the_depth_does_not_matter(ranking: list[str], grades: dict[str, int], draw: Random) -> None:
    tail = ranking[DEPTH:]
    draw.shuffle(tail)
    changed = ranking[:DEPTH] + tail
    assert ndcg(changed, grades, DEPTH) == ndcg(ranking, grades, DEPTH)
    assert recall(changed, grades, DEPTH) == recall(ranking, grades, DEPTH)


@given(rankings, judgements)
def test_names_do_not_matter(ranking: list[str], grades: dict[str, int]) -> None:
    renamed = {f"other {document}": grade for document, grade in reversed(grades.items())}
    other = [f"other {document}" for document in ranking]
    assert ndcg(other, renamed, DEPTH) == ndcg(ranking, grades, DEPTH)
    assert recall(other, renamed, DEPTH) == recall(ranking, grades, DEPTH)


@given(rankings, judgements)
def test_a_better_document_further_up_is_never_worse(ranking: list[str], grades: dict[str, int]) -> None:
    gains = [grades.get(document, 0) for document in ranking]
    for place in range(1, len(ranking)):
        if gains[place] > gains[place - 1]:
            swapped = ranking.copy()
            swapped[place - 1], swapped[place] = swapped[place], swapped[place - 1]
            assert ndcg(swapped, grades, DEPTH) >= ndcg(ranking, grades, DEPTH)
