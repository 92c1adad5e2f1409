"""Documents to text, per format: how fast, and how much of what is in them comes out.

The reference is the words of the sample documents, repeated as often as asked; the benchmark writes them into a file of
each format, twelve to a line, and parses it on one core of this process. `mb_s` is megabytes of reference text per
second (files of one text differ in size by format), the best of the rounds. `recall` is the share of the reference's
words that are found in the parsed text, as a multiset: order and punctuation do not count, repetitions do. `scan` is a
scanned PDF through OCR, of the first words only; it is there where tesseract is.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from benchmarks.report import Aim, emit
from connectors.parsers import ocr
from connectors.parsers.document import parse
from connectors.parsers.limits import Limits
from tests.connectors.parsers.building import docx, mail, multipart, pptx, text_part, xlsx
from tests.connectors.parsers.conftest import make_pdf
from tests.connectors.parsers.pictures import picture, scanned_pdf

SAMPLES = Path(__file__).parents[1] / "examples" / "documents"
RECALL_AIM = 0.99
SCAN_RECALL_AIM = 0.95
SCANNED_WORDS = 600

_WORD = re.compile(r"[A-Za-z0-9]+")
_LINE_WORDS = 12
_PAGE_LINES = 40

Lines = Sequence[str]


def words(text: str) -> list[str]:
    """What a reader would call words, without their punctuation."""
    return _WORD.findall(text)


def reference(count: int) -> list[str]:
    """So many words of the sample documents that are text already, from the start again when they are used up."""
    texts = (path.read_text() for path in sorted(SAMPLES.iterdir()) if path.suffix in {".md", ".txt"})
    known = [word for text in texts for word in words(text)]
    return [known[number % len(known)] for number in range(count)]


def recall(wanted: Sequence[str], text: str) -> float:
    """The share of the wanted words that a text holds, each as often as wanted."""
    missing = Counter(wanted) - Counter(words(text))
    return 1 - missing.total() / len(wanted)


def _cut(items: Sequence[str], size: int) -> list[Sequence[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _pages(lines: Lines) -> list[str]:
    return ["\n".join(page) for page in _cut(lines, _PAGE_LINES)]


def _html(lines: Lines) -> bytes:
    return f"<!doctype html><title>Words</title>{''.join(f'<p>{line}</p>' for line in lines)}".encode()


def _mail(lines: Lines) -> bytes:
    return mail(subject="Words", body=multipart([text_part("\n".join(lines))]))


def _scan(lines: Lines) -> bytes:
    return scanned_pdf([picture(page) for page in _pages(lines)])


FORMATS: dict[str, Callable[[Lines], bytes]] = {
    "text": lambda lines: "\n".join(lines).encode(),
    "markdown": lambda lines: "\n\n".join(f"## {page}" for page in _pages(lines)).encode(),
    "html": _html,
    "pdf": lambda lines: make_pdf(pages=_pages(lines)),
    "docx": docx,
    "xlsx": lambda lines: xlsx({"Words": [line.split() for line in lines]}),
    "pptx": lambda lines: pptx([page.split("\n") for page in _pages(lines)]),
    "eml": _mail,
}


def _measure(name: str, make: Callable[[Lines], bytes], wanted: Sequence[str], rounds: int) -> tuple[float, float]:
    """Megabytes of reference text per second, and recall."""
    lines = [" ".join(line) for line in _cut(wanted, _LINE_WORDS)]
    data = make(lines)
    file_name = f"words.{'md' if name == 'markdown' else name}"
    best_s = float("inf")
    text = ""
    for _ in range(rounds):
        began = time.perf_counter()
        text = parse(data, name=file_name, limits=Limits()).text
        best_s = min(best_s, time.perf_counter() - began)
    return sum(map(len, lines)) / best_s / 1e6, recall(wanted, text)


@click.command()
@click.option("--words", "count", default=200_000, show_default=True, type=click.IntRange(1), help="Of the reference.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="The best one counts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def extract(count: int, rounds: int, *, as_json: bool) -> None:
    """Write one text into a file of each format, and parse it: megabytes per second, and share of words found."""
    wanted = reference(count)
    figures: dict[str, float] = {"words": count}
    aims = []
    for name, make in (FORMATS | ({"scan": _scan} if ocr.installed() else {})).items():
        is_scan = name == "scan"
        mb_s, found = _measure(name, make, wanted[:SCANNED_WORDS] if is_scan else wanted, 1 if is_scan else rounds)
        figures[f"{name}_mb_s"] = round(mb_s, 4)
        figures[f"{name}_recall"] = round(found, 4)
        aim = SCAN_RECALL_AIM if is_scan else RECALL_AIM
        aims.append(Aim(f"{name}_recall", f"{aim} at least", met=found >= aim))
    emit("extract", figures, aims, as_json=as_json)
