from connectors.parsers.headings import MAX_LABEL_CHARS, MAX_SECTIONS, Heading, outline


def labels(*headings: tuple[int, str]) -> list[str]:
    found = outline([Heading(start, level, text) for start, (level, text) in enumerate(headings)])
    return [section.label for section in found]


def test_label_is_the_way_to_the_heading() -> None:
    assert labels((1, "Installation"), (2, "Linux"), (3, "Debian"), (2, "macOS"), (1, "Use")) == [
        "Installation",
        "Installation > Linux",
        "Installation > Linux > Debian",
        "Installation > macOS",
        "Use",
    ]


def test_title_is_left_out_of_the_labels_below_it() -> None:
    assert labels((1, "Guide"), (2, "Installation"), (3, "Linux")) == ["Guide", "Installation", "Installation > Linux"]


def test_skipped_levels_and_a_deep_beginning_do_no_harm() -> None:
    assert labels((3, "Preface"), (1, "A"), (4, "B"), (2, "C")) == ["Preface", "A", "A > B", "A > C"]


def test_long_label_is_shortened_visibly() -> None:
    (label,) = labels((1, "x" * 1000))
    assert len(label) == MAX_LABEL_CHARS
    assert label.endswith("…")


def test_too_many_headings_lose_their_deepest_level_first() -> None:
    chapters = [(1, f"chapter {number}") for number in range(10)]
    found = labels(*(heading for chapter in chapters for heading in (chapter, *[(2, "detail")] * MAX_SECTIONS)))
    assert found == [text for _, text in chapters]


def test_too_many_headings_of_one_level_give_no_sections_rather_than_wrong_ones() -> None:
    assert labels(*[(1, "x")] * (MAX_SECTIONS + 1)) == []


def test_heading_without_text_is_no_section() -> None:
    assert labels((1, "A"), (2, ""), (2, "B")) == ["A", "B"]
