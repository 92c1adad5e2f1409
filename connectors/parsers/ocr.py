"""Pictures of text to text, through the command `tesseract` (Apache 2.0), in a process that dies with this one.

The command is optional: without it, images and scanned PDFs are refused with a message that says what to install. It
inherits the worker's limit of memory, reads from a pipe, and gets one core. It reads English unless its own
configuration says otherwise.
"""

import os
import shutil
import signal
import subprocess
import time

from connectors.parsers import image_size
from connectors.parsers.bounded_text import BoundedText
from connectors.parsers.lifeline import die_with_parent
from connectors.parsers.limits import Limits
from connectors.parsers.port import ParsedDocument, Section
from schemas.errors import Poison

DPI = 300
"""What tesseract is trained for; at 150 it misreads small print."""

MISSING = "it takes OCR, and the command tesseract is not installed where it is parsed: install tesseract-ocr there"

_COMMAND = "tesseract"


def parse(data: bytes, media_type: str, limits: Limits) -> ParsedDocument:
    """The text of an image; if it has several pages (TIFF), each is a section.

    Raises:
        Poison: no tesseract, damaged, too many pixels, took too long, or no text in it.
    """
    width, height = image_size.largest(data, media_type)
    if width * height > limits.max_pixels:
        raise Poison(f"an image of {width} x {height} pixels; the limit is {limits.max_pixels} in all: scale it down")
    if not installed():
        raise Poison(f"an image: {MISSING}")
    pages = Recognizer(limits).read(data).split("\f")
    text = BoundedText(limits)
    sections = [
        Section(text.add(page.strip()), f"page {number}") for number, page in enumerate(pages, start=1) if page.strip()
    ]
    if not sections:
        raise Poison("an image in which no text was found")
    several = len([page for page in pages if page.strip()]) > 1
    return ParsedDocument(str(text), media_type, None, tuple(sections) if several else ())


def installed() -> bool:
    """Whether there is a tesseract to run."""
    return shutil.which(_COMMAND) is not None


class Recognizer:
    """Reads the pages of one document, in as much time as the document has for all of them."""

    def __init__(self, limits: Limits) -> None:
        self._limit_s = limits.ocr_timeout_s
        self._deadline = time.monotonic() + limits.ocr_timeout_s

    def read(self, image: bytes, *, dpi: int | None = None) -> str:
        """The text of an image in any format that tesseract reads; its pages end with form feeds.

        Raises:
            Poison: damaged, or the time is up.
        """
        command = [_COMMAND, "stdin", "stdout", *(("--dpi", str(dpi)) if dpi else ())]
        try:
            done = subprocess.run(  # noqa: S603 - found on the PATH; the document is its input only
                command,
                input=image,
                capture_output=True,
                timeout=max(0.0, self._deadline - time.monotonic()),
                env=os.environ | {"OMP_THREAD_LIMIT": "1"},  # more threads make it slower, and take memory
                preexec_fn=die_with_parent,  # safe here: a worker has one thread
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Poison(f"OCR of it takes longer than {self._limit_s:g} s; split the document") from error
        if done.returncode < 0:
            how = signal.Signals(-done.returncode).name
            raise Poison(f"tesseract was killed by {how} while it read an image; is it damaged, or too large?")
        if done.returncode:
            raise Poison("an image that tesseract cannot read; is it damaged, or too large?")
        return done.stdout.decode("utf-8", errors="replace")
