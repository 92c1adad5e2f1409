"""The model that needs no model: answers with the best sentences of the passages, and cites them.

Guarantee: every sentence of an answer stands in the passage that it cites. Deterministic, no network. It does not
reason and does not rephrase; it says so when the passages hold no answer.
"""

import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np

from connectors.embedder.port import Embedder
from connectors.llm.port import LLM, Completion, Delta, Passage, Prompt

MODEL = "extractive-1"
NO_ANSWER = "The documents do not answer this question."

MAX_SENTENCES = 3
MIN_COSINE = 0.35  # below it, MiniLM's sentences are about something else; unrelated ones lie around 0.1
NEAR_BEST = 0.85  # a further sentence is worth saying if it scores nearly as high as the best
LEXICAL_WEIGHT = 0.5  # names and numbers, which embeddings blur, count for half as much as meaning
MIN_WORDS = 3  # shorter ones say nothing by themselves
HEADING_WORDS = 10  # a block of fewer words that ends without a mark is a heading

_BREAK = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
_ABBREVIATED = re.compile(r"(?:\b(?:[A-Z]|e\.g|i\.e|cf|etc|vs|approx|no|Nos?|Mr|Mrs|Ms|Dr|St|Fig|pp?))\.$")
_BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*+•|#]|\d+[.)]\s))|(?<=\|)\n|\n(?=[^\n]*\|)")
_MARK = re.compile(r"^\s*(?:[-*+•]|\d+[.)]|#+)\s+")
_WORD = re.compile(r"\w+")


def sentences(text: str) -> list[str]:
    """What a text states; list items and table rows stand alone, wrapped lines are joined, questions are left out."""
    found: list[str] = []
    for block in _BLOCK.split(text):
        line = " ".join(_MARK.sub("", block).split())
        if _is_heading(block):
            continue
        begin = 0
        for at in _BREAK.finditer(line):
            if _ABBREVIATED.search(line[begin : at.start()]):
                continue
            found.append(line[begin : at.start()])
            begin = at.end()
        found.append(line[begin:])
    return [each for each in found if len(_WORD.findall(each)) >= MIN_WORDS and not each.endswith("?")]


def _is_heading(block: str) -> bool:
    """Marked as one, or a short block that is neither a list item nor a table row and ends without a mark."""
    line = block.strip()
    if line.startswith("#"):
        return True
    short = len(line.split()) < HEADING_WORDS and line[-1:] not in {".", "!", "?", ":", ";", ")"}
    return short and "|" not in line and _MARK.match(line) is None


def _stems(text: str) -> set[str]:
    """Words by their first five letters: enough to match `grease`, `greased` and `greases`."""
    return {word[:5] for word in _WORD.findall(text.lower())}


def lexical_scores(question: str, candidates: Sequence[str]) -> list[float]:
    """Share of the question's words, weighted by how rare they are, that each candidate holds; 0 to 1.

    Weights are inverse document frequencies in the smoothed form of BM25 (Robertson and Zaragoza, "The Probabilistic
    Relevance Framework", 2009, section 3.1), over the candidates themselves.
    """
    wanted = _stems(question)
    held = [_stems(candidate) & wanted for candidate in candidates]
    frequency = Counter(word for words in held for word in words)
    count = len(candidates)
    weight = {word: math.log(1 + (count - frequency[word] + 0.5) / (frequency[word] + 0.5)) for word in wanted}
    total = sum(weight.values()) or 1.0
    return [sum(weight[word] for word in words) / total for words in held]


@dataclass(frozen=True)
class _Candidate:
    passage: int
    place: int  # within the passage
    text: str


class ExtractiveLLM(LLM):
    """Chooses sentences by meaning (cosine of embeddings) and by shared words. Tokens are the embedder's."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    async def stream(self, prompt: Prompt) -> AsyncIterator[Delta | Completion]:
        """Yield the answer sentence by sentence, then the completion."""
        question = prompt.messages[-1].content
        chosen = await self._choose(question, prompt.passages, prompt.max_tokens)
        parts = [f"{candidate.text} [{candidate.passage + 1}]" for candidate in chosen] or [NO_ANSWER]
        text = " ".join(parts)
        for number, part in enumerate(parts):
            yield Delta(part if number == 0 else f" {part}")
        read = [message.content for message in prompt.messages] + [passage.text for passage in prompt.passages]
        yield Completion(
            text=text,
            model=MODEL,
            prompt_tokens=sum(map(self._tokens, read)),
            completion_tokens=self._tokens(text),
            cited=tuple(dict.fromkeys(candidate.passage for candidate in chosen)),
            finish_reason="stop",
        )

    async def _choose(self, question: str, passages: Sequence[Passage], max_tokens: int) -> list[_Candidate]:
        """The best sentences in reading order; none if nothing is about the question."""
        found: dict[str, _Candidate] = {}  # by text: overlapping passages repeat sentences
        for number, passage in enumerate(passages):
            for place, text in enumerate(sentences(passage.text)):
                found.setdefault(text, _Candidate(number, place, text))
        candidates = list(found.values())
        if not candidates:
            return []
        vectors = await self._embedder.embed([question, *found])
        cosines = vectors[1:] @ vectors[0]
        scores = cosines + LEXICAL_WEIGHT * np.asarray(lexical_scores(question, list(found)), dtype=np.float32)
        order = [int(index) for index in np.argsort(-scores, kind="stable")]
        best = order[0]
        if cosines[best] < MIN_COSINE:
            return []
        chosen: list[_Candidate] = []
        left = max_tokens
        for index in order:
            cost = self._tokens(candidates[index].text) + 3  # its mark: "[", a number, "]"
            if len(chosen) == MAX_SENTENCES or scores[index] < NEAR_BEST * scores[best]:
                break
            if cost <= left:
                chosen.append(candidates[index])
                left -= cost
        return sorted(chosen, key=lambda candidate: (candidate.passage, candidate.place))

    def _tokens(self, text: str) -> int:
        return len(self._embedder.tokenizer.offsets(text))

    async def close(self) -> None:
        """The embedder is its owner's to close."""
