"""The built-in answerer says only what stands in the passages, and says so when nothing does."""

import asyncio
import re

import pytest

from connectors.embedder.port import Embedder
from connectors.llm.extractive import NO_ANSWER, ExtractiveLLM, lexical_scores, sentences
from connectors.llm.port import Completion, Delta, Message, Passage, Prompt

PASSAGES = (
    Passage("# Bearings\n\nThe bearing gets 35 g of grease every 400 hours. Clean the nipple first.", "manual.md"),
    Passage("The mill was built in 1788. Its wheel had forty buckets made of oak.", "history.html"),
    Passage("Visitors may bring dogs. The café opens at ten o'clock.", "faq.html"),
)


def ask(
    embedder: Embedder, question: str, passages: tuple[Passage, ...] = PASSAGES, max_tokens: int = 200
) -> Completion:
    async def run() -> list[Delta | Completion]:
        prompt = Prompt("j", (Message("user", question),), passages, max_tokens)
        return [part async for part in ExtractiveLLM(embedder).stream(prompt)]

    *deltas, completion = asyncio.run(run())
    assert isinstance(completion, Completion)
    assert completion.text == "".join(delta.text for delta in deltas if isinstance(delta, Delta))
    return completion


@pytest.mark.parametrize(
    ("question", "answer", "cited"),
    [
        ("How much grease does the bearing need?", "35 g of grease", 0),
        ("Of what wood were the wheel's buckets?", "forty buckets made of oak", 1),
        ("When does the café open?", "opens at ten", 2),
    ],
)
def test_the_sentence_that_answers_is_quoted_and_cited(
    embedder: Embedder, question: str, answer: str, cited: int
) -> None:
    completion = ask(embedder, question)
    assert answer in completion.text
    assert cited in completion.cited
    assert f"[{cited + 1}]" in completion.text


def test_every_sentence_of_an_answer_stands_in_the_passage_that_it_cites(embedder: Embedder) -> None:
    completion = ask(embedder, "What do I have to know about the bearing, its grease and the nipple?")
    said = re.findall(r"(.+?) \[(\d)\] ?", completion.text)
    assert said
    for sentence, number in said:
        assert sentence in PASSAGES[int(number) - 1].text


@pytest.mark.parametrize("passages", [PASSAGES, ()])
def test_it_says_so_when_the_passages_hold_no_answer(embedder: Embedder, passages: tuple[Passage, ...]) -> None:
    completion = ask(embedder, "Who won the chess world championship in 1972?", passages)
    assert (completion.text, completion.cited) == (NO_ANSWER, ())


def test_an_answer_keeps_to_the_limit_of_tokens(embedder: Embedder) -> None:
    completion = ask(embedder, "What do I have to know about the bearing and its grease?", max_tokens=24)
    assert 0 < completion.completion_tokens <= 24


def test_the_same_question_gets_the_same_answer(embedder: Embedder) -> None:
    assert ask(embedder, "How old is the mill?") == ask(embedder, "How old is the mill?")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 2.5 m deep. Dr. Smith measured it.", ["It is 2.5 m deep.", "Dr. Smith measured it."]),
        ("A line that was\nwrapped by hand.", ["A line that was wrapped by hand."]),
        ("- one item here\n- and another item", ["one item here", "and another item"]),
        (
            "Night | from one to five | 12 p\nDay | from five | 21 p",
            ["Night | from one to five | 12 p", "Day | from five | 21 p"],
        ),
        ("# A heading of words\n\nA sentence of words.", ["A sentence of words."]),
        ("A Plain Heading\n\nIs this a question? It was one.", ["It was one."]),
        ("", []),
    ],
)
def test_a_text_states_sentences_items_and_rows_but_no_headings_or_questions(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_rare_words_count_for_more_than_common_ones() -> None:
    common, rare, _ = lexical_scores("the grease", ["the wheel turns", "grease it well", "the mill stands"])
    assert rare > common
