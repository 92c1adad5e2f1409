"""Documents that are the same on every machine with this Python: real prose, as Markdown, HTML, plain text and PDF.

The sample documents of `examples/`, then what ships with every CPython: the reference manual's topics and the standard
library's docstrings, one document per module, longer ones cut into parts at paragraphs. Formats take turns. Nothing is
drawn at random, so that the same number of documents is the same documents.
"""

import ast
import html
import pydoc_data.topics
import shutil
import sysconfig
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from tests.connectors.parsers.conftest import make_pdf

SAMPLES = Path(__file__).parents[3] / "examples" / "documents"
LEAST_CHARS = 1_000
MOST_CHARS = 4_000  # of a document: two pages

_PAGE_LINES = 50
_LINE_CHARS = 90


def write(directory: Path, count: int) -> list[Path]:
    """Write so many documents. Raises ValueError if this Python's documentation has fewer."""
    directory.mkdir(parents=True)
    paths = [directory / each.name for each in sorted(SAMPLES.iterdir())[:count]]
    for path in paths:
        shutil.copyfile(SAMPLES / path.name, path)
    texts = _texts()
    for suffix in cycle((".md", ".html", ".txt", ".pdf")):
        if len(paths) == count:
            return paths
        text = next(texts, None)
        if text is None:
            raise ValueError(f"{count} documents are wanted, this Python's documentation makes {len(paths)}")
        path = directory / f"{len(paths):04d}{suffix}"
        path.write_bytes(_encoded(text, suffix))
        paths.append(path)
    raise AssertionError("unreachable: a cycle has no end")


def write_corrupt(directory: Path, count: int) -> list[Path]:
    """Write so many files that no parser can read: cut off, overwritten, of bytes that are no text, empty."""
    whole = (SAMPLES / "emergency-plan.pdf").read_bytes()
    noise = bytes((number * 193 + number // 7 * 59) % 256 for number in range(4_000))
    kinds = cycle(
        [
            ("cut.pdf", whole[: len(whole) // 3]),
            ("noise.pdf", b"%PDF-1.7\n" + noise),
            ("noise.txt", noise),
            ("empty.pdf", b""),
            ("zeros.html", b"\x00" * 4_000),
        ]
    )
    paths = []
    for number, (name, content) in zip(range(count), kinds, strict=False):
        paths.append(directory / f"corrupt-{number:02d}-{name}")
        paths[-1].write_bytes(content)
    return paths


def write_warm_up(directory: Path, count: int) -> list[Path]:
    """Write so many documents that are none of the others'."""
    directory.mkdir(parents=True)
    paths = [directory / f"warm-up-{number}.md" for number in range(count)]
    for path in paths:
        path.write_text(f"# {path.stem}\n\nThe first pass of a process is slow, and so is its first document.\n")
    return paths


def _texts() -> Iterator[str]:
    for text in _whole_texts():
        for part in _parts(text):
            if len(part) >= LEAST_CHARS:
                yield part


def _whole_texts() -> Iterator[str]:
    yield from pydoc_data.topics.topics.values()
    stdlib = Path(sysconfig.get_path("stdlib"))
    for path in sorted(stdlib.rglob("*.py")):
        if {"site-packages", "test", "tests", "idle_test"} & set(path.relative_to(stdlib).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # samples of bad code, for lib2to3
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, nodes)]
        yield "\n\n".join(each for each in found if each)


def _parts(text: str) -> Iterator[str]:
    part = ""
    for paragraph in text.split("\n\n"):
        if part and len(part) + len(paragraph) > MOST_CHARS:
            yield part
            part = ""
        part += f"{paragraph[:MOST_CHARS]}\n\n"
    yield part


def _encoded(text: str, suffix: str) -> bytes:
    if suffix == ".html":
        paragraphs = "".join(f"<p>{html.escape(part)}</p>\n" for part in text.split("\n\n"))
        return f"<!doctype html><html><body>\n{paragraphs}</body></html>".encode()
    if suffix == ".pdf":
        return make_pdf(pages=list(_pages(text)))
    return text.encode()


def _pages(text: str) -> Iterator[str]:
    plain = text.encode("ascii", errors="ignore").decode().translate(str.maketrans("()\\", "[]/"))
    lines = [
        line[start : start + _LINE_CHARS]
        for line in plain.splitlines()
        for start in range(0, len(line) or 1, _LINE_CHARS)
    ]
    for start in range(0, len(lines), _PAGE_LINES):
        yield "\n".join(lines[start : start + _PAGE_LINES])
