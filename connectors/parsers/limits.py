"""How much of a document the parsers take on. What is beyond is refused with Poison, never cut off silently."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Guards against documents that would keep every later step busy for hours."""

    max_characters: int = 10_000_000  # about 3,000 dense pages, 40,000 chunks; the Bible has 4.4 million
    max_pages: int = 5_000  # of a PDF, slides, sheets; the longest manuals have about 3,000
    max_members: int = 20_000  # of a zip container, parts of a mail; a deck full of pictures has about 3,000
    max_member_bytes: int = 300_000_000  # unpacked; a sheet of 5 million cells, ten seconds of parsing
    max_unpacked_bytes: int = 500_000_000  # of all members that are read; ten times the largest upload
    max_ratio: int = 200  # unpacked to packed; sheets reach 60, deflate's bombs 1,000
    max_attachments: int = 100  # of one mail; mailboxes limit a mail to some 35 MB long before
    max_attachment_bytes: int = 50_000_000  # of one mail, together; the largest upload
    max_pixels: int = 50_000_000  # of an image; A3 at 400 dpi has 31 million, and OCR takes some 10 bytes for each
    ocr_timeout_s: float = 60.0  # of one document, two seconds a page; less than the 90 s that a worker gets
    max_nesting: int = 20  # parts within parts of one mail; mailing lists and forwarders add three or four
