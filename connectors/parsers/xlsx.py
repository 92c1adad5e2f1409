"""Excel workbooks (XLSX) to text: each sheet is a section 'sheet "Prices"', each row a line "a | b | c".

Only cells that are there are written, wherever they stand: a sheet costs what its file costs, not what its corners
span. Values are those that the program that saved it has computed; dates are written as 2024-03-01 or
2024-03-01 14:30, times as 14:30, durations in days; other number formats are left out, and so are charts, comments and
pictures.
"""

import re
from datetime import datetime, timedelta

from connectors.parsers import ooxml
from connectors.parsers.archive import Archive
from connectors.parsers.bounded_text import BoundedText
from connectors.parsers.headings import shorten
from connectors.parsers.limits import Limits
from connectors.parsers.port import ParsedDocument, Section
from schemas.errors import Poison

MEDIA_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"

_DATE_FORMATS = frozenset({*range(14, 23), *range(27, 37), 45, 47, *range(50, 59)})  # built in
_NO_DATE = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]|_.|\*.')  # parts of a format that are literal text, colours, spacing
_DURATION = re.compile(r"\[[hms]+\]", re.IGNORECASE)  # hours beyond a day, for which there is no clock
_DATE_LETTERS = re.compile(r"[ymdhs]", re.IGNORECASE)
_MAX_FORMAT_CHARS = 255  # Excel's own limit
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")  # characters that XML cannot hold
_EPOCHS = {False: datetime(1899, 12, 30), True: datetime(1904, 1, 1)}  # noqa: DTZ001 - cells have no time zone
_MAX_SERIAL = 2_958_465  # 9999-12-31
_EXACT_DIGITS = 15  # Excel stores 17 and shows at most these
_BOOLEANS = {"0": "FALSE", "1": "TRUE"}


def parse(data: bytes, limits: Limits) -> ParsedDocument:
    """The text of all sheets, in the order of their tabs, hidden ones too.

    Raises:
        Poison: damaged, a sheet is missing, or beyond a limit.
    """
    archive = Archive(data, limits)
    found = ooxml.kind(archive)
    main = found[1] if found else "xl/workbook.xml"
    sheets, since_1904 = _sheets(archive, main)
    if len(sheets) > limits.max_pages:
        raise Poison(f"a workbook of {len(sheets)} sheets; the limit is {limits.max_pages}")
    strings = ooxml.related(archive, main, "sharedStrings")
    styles = ooxml.related(archive, main, "styles")
    cells = _Cells(
        _shared_strings(archive, strings, limits) if strings else [],
        _date_styles(archive, styles) if styles else frozenset(),
        _EPOCHS[since_1904],
    )
    text = BoundedText(limits)
    sections = []
    for name, part in sheets:
        start = cells.read(archive, part, " ".join(name.split()), text)
        if start is not None:
            sections.append(Section(start, shorten(f'sheet "{name}"')))
    return ParsedDocument(str(text), MEDIA_TYPE, ooxml.title(archive), tuple(sections))


def _sheets(archive: Archive, main: str) -> tuple[list[tuple[str, str]], bool]:
    """Names and parts of the sheets, and whether days count from 1904."""
    targets = ooxml.relationships(archive, main)
    sheets = []
    since_1904 = False
    for _, element in ooxml.elements(archive, main):
        match ooxml.local(element):
            case "sheet":
                name, sheet_id = element.get("name") or "", ooxml.relationship_id(element)
                if sheet_id not in targets:
                    raise Poison(f"a damaged workbook: it has no sheet {sheet_id}")
                sheets.append((name, targets[sheet_id].target))
            case "workbookPr":
                since_1904 = element.get("date1904") in {"1", "true"}
    return sheets, since_1904


def _shared_strings(archive: Archive, part: str, limits: Limits) -> list[str]:
    strings: list[str] = []
    words: list[str] = []
    characters = 0
    for _, element in ooxml.elements(archive, part):
        match ooxml.local(element):
            case "t" if not _is_reading_aid(element):
                words.append(element.text or "")
            case "si":
                strings.append(_plain("".join(words)))
                words = []
                # One more for each, since an empty one takes memory too.
                characters += len(strings[-1]) + 1
                if characters > limits.max_characters:
                    raise Poison(f"more than {limits.max_characters} characters in its cells; split the workbook")
    return strings


def _is_reading_aid(text: ooxml.Element) -> bool:
    """How a Japanese cell is pronounced stands beside what it says."""
    parent = text.getparent()
    return parent is not None and ooxml.local(parent) == "rPh"


def _plain(text: str) -> str:
    if "_x" in text:
        text = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
    return " ".join(text.split())


def _date_styles(archive: Archive, part: str) -> frozenset[str]:
    """The cell styles, by number, whose format shows a date or a time."""
    formats = set(map(str, _DATE_FORMATS))
    found: list[str] = []
    in_cell_formats = False
    number = 0
    for event, element in ooxml.elements(archive, part, starts=True):
        name = ooxml.local(element)
        if name == "cellXfs":
            in_cell_formats = event == "start"
        elif event == "end" and name == "numFmt":
            code = (element.get("formatCode") or "")[:_MAX_FORMAT_CHARS]
            if _DATE_LETTERS.search(_NO_DATE.sub("", code)) and not _DURATION.search(code):
                formats.add(element.get("numFmtId") or "")
        elif event == "end" and name == "xf" and in_cell_formats:
            if element.get("numFmtId") in formats:
                found.append(str(number))
            number += 1
    return frozenset(found)


class _Cells:
    """Cells to text, with what the sheets of a workbook share."""

    def __init__(self, strings: list[str], date_styles: frozenset[str], epoch: datetime) -> None:
        self._strings = strings
        self._date_styles = date_styles
        self._epoch = epoch

    def read(self, archive: Archive, part: str, name: str, text: BoundedText) -> int | None:
        """Append a sheet, its name above; returns where it begins, or None if all its cells are blank."""
        start = None
        row: list[str] = []
        value = ""
        words: list[str] = []
        for _, element in ooxml.elements(archive, part):
            match ooxml.local(element):
                case "v":
                    value = element.text or ""
                case "t" if not _is_reading_aid(element):
                    words.append(element.text or "")
                case "c":
                    shown = _plain("".join(words)) if words else self._shown(value, element)
                    if shown:
                        row.append(shown)
                    value, words = "", []
                case "row":
                    if row and start is None:
                        start = text.add(name)
                    if row:
                        text.add(" | ".join(row), apart="\n")
                    row = []
        return start

    def _shown(self, value: str, cell: ooxml.Element) -> str:
        match cell.get("t"):
            case "s":
                return self._shared(value)
            case "b":
                return _BOOLEANS.get(value, value)
            case None | "n" if value:
                return self._number(value, is_date=cell.get("s") in self._date_styles)
        return _plain(value)

    def _shared(self, value: str) -> str:
        try:
            number = int(value)
        except ValueError:
            number = -1
        if not 0 <= number < len(self._strings):
            raise Poison(f"a damaged workbook: a cell refers to shared string {shorten(value)} of {len(self._strings)}")
        return self._strings[number]

    def _number(self, value: str, *, is_date: bool) -> str:
        try:
            number = float(value)
        except ValueError:
            return _plain(value)
        if is_date and 0 <= number <= _MAX_SERIAL:
            return self._date(number)
        return f"{number:.{_EXACT_DIGITS}g}" if len(value) > _EXACT_DIGITS else value

    def _date(self, serial: float) -> str:
        moment = self._epoch + timedelta(seconds=round(serial * 86_400))
        if serial < 1:
            return f"{moment:%H:%M}"
        return f"{moment:%Y-%m-%d}" if float(serial).is_integer() else f"{moment:%Y-%m-%d %H:%M}"
