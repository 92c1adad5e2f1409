r"""A corpus with judgements: documents, queries, and which document answers which query how well.

A directory with three UTF-8 files. Fields are divided by tabs, and the first line names them:

    documents.tsv   document_id, title, text
    queries.tsv     query_id, text
    relevance.tsv   query_id, document_id, grade

A title may be empty, a text may not. In titles and texts a tab is written \t, a line feed \n, a carriage return \r, and
a backslash \\; nothing else is escaped or quoted. Grades are integers from 0 to 30, 0 for irrelevant; a pair that is
not listed has grade 0. Every query has a document of grade 1 or more.

Whatever breaks these rules ends the command with one line that names file, line and value.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
from pydantic import TypeAdapter, ValidationError

from schemas.event import Identifier
from schemas.requests import PROMPT_MAX_CHARS

DOCUMENTS, QUERIES, RELEVANCE = "documents.tsv", "queries.tsv", "relevance.tsv"
MAX_GRADE = 30  # its gain is 2^30 - 1; a larger number is a slip

_IDENTIFIER: TypeAdapter[str] = TypeAdapter(Identifier)
_ESCAPE = re.compile(r"\\(.?)", re.DOTALL)
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
_SHOWN_CHARS = 60


class CorpusError(click.ClickException):
    """The corpus is not as it has to be; one line, without the command's usage."""

    exit_code = 2


@dataclass(frozen=True)
class JudgedCorpus:
    """What was read, in the order of the files."""

    documents: Mapping[str, str]  # text by id, the title above it
    queries: Mapping[str, str]  # text by id
    grades: Mapping[str, Mapping[str, int]]  # by query, then by document


@dataclass(frozen=True)
class _Line:
    """One line of a file."""

    path: Path
    number: int  # from 1
    fields: tuple[str, ...]

    def fault(self, what: str) -> CorpusError:
        return CorpusError(f"{self.path}, line {self.number}: {what}")

    def identifier(self, position: int) -> str:
        """A field that has to be an id as events carry it."""
        value = self.fields[position]
        try:
            return _IDENTIFIER.validate_python(value)
        except ValidationError as error:
            raise self.fault(f"{_shown(value)} is no id: 1 to 256 characters, none of them a control") from error

    def text(self, position: int) -> str:
        """A field with its escapes resolved."""

        def resolved(escape: re.Match[str]) -> str:
            if escape[1] not in _ESCAPED:
                raise self.fault(rf"{escape[0]!r} is no escape: write \t, \n, \r, or \\ for a backslash")
            return _ESCAPED[escape[1]]

        return _ESCAPE.sub(resolved, self.fields[position])


def read_corpus(directory: Path) -> JudgedCorpus:
    """Read and check the three files."""
    documents: dict[str, str] = {}
    for line in _lines(directory / DOCUMENTS, ("document_id", "title", "text")):
        title, text = line.text(1), line.text(2)
        _add(documents, line, f"{title}\n\n{text}" if title.strip() else text, blank=not text.strip())
    queries: dict[str, str] = {}
    for line in _lines(directory / QUERIES, ("query_id", "text")):
        text = line.text(1)
        if len(text) > PROMPT_MAX_CHARS:
            raise line.fault(f"the text has {len(text)} characters; a request has at most {PROMPT_MAX_CHARS}")
        _add(queries, line, text, blank=not text.strip())
    grades = _grades(directory / RELEVANCE, documents, queries)
    for query_id, graded in grades.items():
        if not any(graded.values()):
            raise CorpusError(
                f"{directory / RELEVANCE}: no document has grade 1 or more for query {query_id!r}: "
                f"grade one, or take the query out of {QUERIES}"
            )
    return JudgedCorpus(documents, queries, grades)


def _add(texts: dict[str, str], line: _Line, text: str, *, blank: bool) -> None:
    identifier = line.identifier(0)
    if identifier in texts:
        raise line.fault(f"{_shown(identifier)} is there already: an id is used once")
    if blank:
        raise line.fault(f"{_shown(identifier)} has no text")
    texts[identifier] = text


def _grades(path: Path, documents: Mapping[str, str], queries: Mapping[str, str]) -> dict[str, dict[str, int]]:
    grades: dict[str, dict[str, int]] = {query_id: {} for query_id in queries}
    for line in _lines(path, ("query_id", "document_id", "grade")):
        query_id, document_id, grade = line.fields
        if query_id not in queries:
            raise line.fault(f"query {_shown(query_id)} is not in {QUERIES}")
        if document_id not in documents:
            raise line.fault(f"document {_shown(document_id)} is not in {DOCUMENTS}")
        if document_id in grades[query_id]:
            raise line.fault(f"{_shown(query_id)} and {_shown(document_id)} have a grade already")
        if not re.fullmatch(r"[0-9]{1,2}", grade) or int(grade) > MAX_GRADE:
            raise line.fault(f"grade {_shown(grade)} is no integer from 0 to {MAX_GRADE}")
        grades[query_id][document_id] = int(grade)
    return grades


def _lines(path: Path, names: tuple[str, ...]) -> Iterator[_Line]:
    """The lines below the header, at least one, each with as many fields as that."""
    try:
        rows = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror}; a corpus holds {DOCUMENTS}, {QUERIES} and {RELEVANCE}") from error
    if rows[-1] == b"":
        rows.pop()
    for number, row in enumerate(rows, start=1):
        line = _Line(path, number, tuple(_decoded(row, path, number).split("\t")))
        if number == 1 and line.fields != names:
            raise line.fault(f"the header is {_shown(' '.join(line.fields))}, not {' '.join(names)}, divided by tabs")
        if len(line.fields) != len(names):
            raise line.fault(
                f"{len(line.fields)} fields instead of {len(names)} ({', '.join(names)}), "
                f"in {_shown(' '.join(line.fields))}"
            )
        if number > 1:
            yield line
    if len(rows) <= 1:
        raise CorpusError(f"{path}: nothing below the header ({', '.join(names)}, divided by tabs)")


def _decoded(row: bytes, path: Path, number: int) -> str:
    try:
        return row.removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        bad = row[error.start : error.start + 1]
        raise CorpusError(f"{path}, line {number}: byte {bad!r} at {error.start} is no UTF-8: convert it") from error


def _shown(value: str) -> str:
    """A value for a message, cut where it is long."""
    return repr(value if len(value) <= _SHOWN_CHARS else f"{value[:_SHOWN_CHARS]}...")
