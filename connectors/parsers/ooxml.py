"""What Word, Excel and PowerPoint files have in common (ECMA-376, part 2): parts of XML in a zip container.

Parts are read as streams of elements, each dropped as soon as it was seen: memory does not grow with a part. Entities
are refused with the DTD that would declare them (the standard forbids both); nothing is ever fetched. libxml2's own
limits (depth, 10 MB per value) stay on.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import lxml.etree

from connectors.parsers.archive import Archive
from connectors.parsers.headings import shorten
from schemas.errors import Poison

Kind = Literal["word", "xl", "ppt"]
Element = lxml.etree._Element  # noqa: SLF001 - lxml has no public name for it

_MAIN_PARTS: tuple[tuple[Kind, str], ...] = (
    ("word", "word/document.xml"),
    ("xl", "xl/workbook.xml"),
    ("ppt", "ppt/presentation.xml"),
)
_PROPERTIES = "docProps/core.xml"
_RELATIONSHIP_ID = (
    "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id",
    "{http://purl.oclc.org/ooxml/officeDocument/relationships}id",
)


@dataclass(frozen=True)
class Relationship:
    """From one part to another of the same container."""

    type: str  # the last word of its URI: "slide", "sharedStrings"
    target: str  # name of the member


def local(element: Element) -> str:
    """An element's name without its namespace: the transitional and the strict variant have different ones."""
    return str(element.tag).rpartition("}")[2]


def attribute(element: Element, name: str) -> str | None:
    """An attribute by its local name, whatever its namespace."""
    found = element.get(name)
    if found is not None:
        return found
    return next((str(value) for key, value in element.attrib.items() if str(key).rpartition("}")[2] == name), None)


def relationship_id(element: Element) -> str:
    """The r:id of an element, or an empty string."""
    return next((found for name in _RELATIONSHIP_ID if (found := element.get(name))), "")


def elements(archive: Archive, part: str, *, starts: bool = False) -> Iterator[tuple[str, Element]]:
    """("end", element) for each element of a part in document order, with `starts` also ("start", element).

    An element is empty after its end was seen: its children are gone by then, but for their own ends.

    Raises:
        Poison: missing, malformed, with a DTD, or beyond a limit.
    """
    with archive.open(part) as content:
        events = lxml.etree.iterparse(
            content,
            events=("start", "end") if starts else ("end",),
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            huge_tree=False,
            remove_comments=True,
            remove_pis=True,
        )
        first = True
        try:
            for event, element in events:
                if first:
                    first = False
                    if element.getroottree().docinfo.internalDTD is not None:
                        raise Poison(f"{part} declares a DTD, which no Office file may")
                yield event, element
                if event == "end":
                    element.clear()
                    parent = element.getparent()
                    if parent is not None:
                        while parent[0] is not element:
                            del parent[0]
        except lxml.etree.XMLSyntaxError as error:
            if error.code == lxml.etree.ErrorTypes.ERR_NO_MEMORY:
                raise MemoryError from error
            raise Poison(f"malformed XML in {part}: {_reason(error)}") from error


def _reason(error: lxml.etree.XMLSyntaxError) -> str:
    """The kind of error: libxml2's message would quote the document."""
    names = {code: name for name, code in vars(lxml.etree.ErrorTypes).items() if isinstance(code, int)}
    return names.get(error.code, str(error.code))


def kind(archive: Archive) -> tuple[Kind, str] | None:
    """Which of the three a container is, and the name of its main part; None if it is neither."""
    if "_rels/.rels" in archive:
        for relationship in relationships(archive, "").values():
            folder = relationship.target.partition("/")[0]
            if relationship.type == "officeDocument":
                return next(((kind, relationship.target) for kind, _ in _MAIN_PARTS if kind == folder), None)
    return next(((kind, name) for kind, name in _MAIN_PARTS if name in archive), None)


def relationships(archive: Archive, part: str) -> dict[str, Relationship]:
    """What a part refers to inside its container, by id; the empty name stands for the container."""
    folder, name = posixpath.split(part)
    member = posixpath.join(folder, "_rels", f"{name}.rels")
    found = {}
    if member in archive:
        for _, element in elements(archive, member):
            if local(element) == "Relationship" and element.get("TargetMode") != "External":
                target = element.get("Target") or ""
                # An absolute target begins at the container's root.
                path = posixpath.normpath(posixpath.join("/", folder, target)).lstrip("/")
                found[element.get("Id") or ""] = Relationship((element.get("Type") or "").rpartition("/")[2], path)
    return found


def related(archive: Archive, part: str, kind: str) -> str | None:
    """The one part of a type that another refers to, if it is there: "styles", "sharedStrings"."""
    for relationship in relationships(archive, part).values():
        if relationship.type == kind and relationship.target in archive:
            return relationship.target
    return None


def title(archive: Archive) -> str | None:
    """The title in the document's properties."""
    if _PROPERTIES not in archive:
        return None
    for _, element in elements(archive, _PROPERTIES):
        if local(element) == "title":
            return shorten(" ".join((element.text or "").split())) or None
    return None
