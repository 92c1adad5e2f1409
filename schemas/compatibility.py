"""Tells whether a changed JSON Schema is safe for those who already produce and consume.

The rule: add optional fields only; anything else is a new version of the event. So every message that the old schema
accepts must still be accepted (producers), and every field that it promised must still be there with the same meaning
(consumers). A wider enum or type on the new side is reported as well: a consumer generated from the old schema would
refuse the new values. A keyword that is not known here counts as breaking if it changes at all.
"""

from collections.abc import Iterator
from typing import cast

Schema = dict[str, object]

_LIMITS = (
    "maxLength",
    "minLength",
    "maximum",
    "minimum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "maxItems",
    "minItems",
)
_STRUCTURE = {"$defs", "$ref", "additionalProperties", "anyOf", "enum", "items", "properties", "required"}
_ANNOTATIONS = {"$comment", "$id", "$schema", "default", "deprecated", "description", "examples", "title"}
_COMPARED_APART = {*_LIMITS, *_STRUCTURE, *_ANNOTATIONS}
_WAY_OUT = "publish it as a new version of the event instead"


def breaking_changes(old: Schema, new: Schema) -> list[str]:
    """One line for each change that breaks a producer or a consumer; empty if the new schema is compatible."""
    return list(_compare(old, new, _Roots(old, new), "message"))


class _Roots:
    """Resolves `#/$defs/...` references on either side, and remembers what is being compared: schemas may recurse."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old = old
        self._new = new
        self.active: set[tuple[str, str]] = set()

    def resolve(self, old: Schema, new: Schema) -> tuple[Schema, Schema]:
        return _resolve(old, self._old), _resolve(new, self._new)


def _resolve(schema: Schema, root: Schema) -> Schema:
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    found: object = root
    for part in reference.removeprefix("#/").split("/"):
        found = cast("Schema", found)[part]
    return cast("Schema", found)


def _compare(old: Schema, new: Schema, roots: _Roots, path: str) -> Iterator[str]:
    pair = (str(old.get("$ref", "")), str(new.get("$ref", "")))
    if all(pair):
        if pair in roots.active:
            return
        roots.active.add(pair)
    old, new = roots.resolve(old, new)
    yield from _compare_values(old, new, path)
    yield from _compare_properties(old, new, roots, path)
    for keyword in ("items", "additionalProperties"):
        before, after = old.get(keyword), new.get(keyword)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _compare(before, after, roots, f"{path}[]")
        elif before != after:
            yield f"{path}: {keyword} changed; {_WAY_OUT}"
    yield from _compare_alternatives(old, new, roots, path)


def _compare_values(old: Schema, new: Schema, path: str) -> Iterator[str]:
    for keyword in sorted((old.keys() | new.keys()) - _COMPARED_APART):
        if old.get(keyword) != new.get(keyword):
            yield f"{path}: {keyword} was {old.get(keyword)}, is {new.get(keyword)}; {_WAY_OUT}"
    for keyword in _LIMITS:
        before, after = old.get(keyword), new.get(keyword)
        if before == after or after is None:
            continue
        tightened = before is None or (
            cast("float", after) < cast("float", before)
            if keyword.lower().find("max") >= 0
            else cast("float", after) > cast("float", before)
        )
        if tightened:
            yield f"{path}: {keyword} was {before}, is {after}: messages accepted so far are refused; {_WAY_OUT}"
    before_values, after_values = old.get("enum"), new.get("enum")
    if before_values != after_values:
        known = cast("list[object]", before_values or [])
        current = cast("list[object]", after_values or [])
        removed = [value for value in known if value not in current]
        added = [value for value in current if value not in known]
        change = ", ".join([*(f"lost {value!r}" for value in removed), *(f"gained {value!r}" for value in added)])
        if change:
            yield f"{path}: the enum {change}; {_WAY_OUT}"


def _compare_properties(old: Schema, new: Schema, roots: _Roots, path: str) -> Iterator[str]:
    before = cast("dict[str, Schema]", old.get("properties", {}))
    after = cast("dict[str, Schema]", new.get("properties", {}))
    for name, schema in before.items():
        if name in after:
            yield from _compare(schema, after[name], roots, f"{path}.{name}")
        else:
            yield f"{path}.{name}: the field is gone; keep it, or {_WAY_OUT}"
    was_required = set(cast("list[str]", old.get("required", [])))
    is_required = set(cast("list[str]", new.get("required", [])))
    for name in sorted(is_required - was_required):
        yield f"{path}.{name}: the field is required now; make it optional, or {_WAY_OUT}"
    for name in sorted((was_required - is_required) & after.keys()):
        yield f"{path}.{name}: the field may be absent now, and consumers rely on it; {_WAY_OUT}"


def _compare_alternatives(old: Schema, new: Schema, roots: _Roots, path: str) -> Iterator[str]:
    before = cast("list[Schema]", old.get("anyOf", []))
    after = cast("list[Schema]", new.get("anyOf", []))
    if len(before) != len(after):
        yield f"{path}: {len(before)} alternatives, now {len(after)}; {_WAY_OUT}"
        return
    for number, (one, two) in enumerate(zip(before, after, strict=True)):
        yield from _compare(one, two, roots, f"{path}|{number}")
