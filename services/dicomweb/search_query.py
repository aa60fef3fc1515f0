"""What a QIDO-RS query asks for (PS3.18 section 8.3.4), checked before anything is looked up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from pydicom.datadict import keyword_for_tag, tag_for_keyword

from imaging.errors import InputError

BAD_QUERY = "dicomweb.bad_request"
MOST_RESULTS = 1000  # of one answer; a client pages through more by `offset`


class Level(IntEnum):
    STUDY = 0
    SERIES = 1
    INSTANCE = 2


class Matching(Enum):
    """How a value is compared (PS3.4 C.2.2.2)."""

    UID_LIST = "list of UIDs"
    TEXT = "single value or wildcard"
    PERSON_NAME = "single value or wildcard, upper and lower case alike"
    DATE = "single value or range of dates"
    TIME = "single value or range of times"
    INTEGER = "single value"
    ANY_SERIES = "a series of the study has it"


@dataclass(frozen=True, slots=True)
class MatchedAttribute:
    """An attribute that can be searched for; `column` is the one of the index."""

    level: Level
    column: str
    matching: Matching


MATCHED = {
    "StudyInstanceUID": MatchedAttribute(Level.STUDY, "study_instance_uid", Matching.UID_LIST),
    "PatientID": MatchedAttribute(Level.STUDY, "patient_id", Matching.TEXT),
    "PatientName": MatchedAttribute(Level.STUDY, "patient_name", Matching.PERSON_NAME),
    "AccessionNumber": MatchedAttribute(Level.STUDY, "accession_number", Matching.TEXT),
    "StudyID": MatchedAttribute(Level.STUDY, "study_id", Matching.TEXT),
    "StudyDate": MatchedAttribute(Level.STUDY, "study_date", Matching.DATE),
    "StudyTime": MatchedAttribute(Level.STUDY, "study_time", Matching.TIME),
    "StudyDescription": MatchedAttribute(Level.STUDY, "study_description", Matching.TEXT),
    "ReferringPhysicianName": MatchedAttribute(Level.STUDY, "referring_physician_name", Matching.PERSON_NAME),
    "ModalitiesInStudy": MatchedAttribute(Level.STUDY, "modality", Matching.ANY_SERIES),
    "SeriesInstanceUID": MatchedAttribute(Level.SERIES, "series_instance_uid", Matching.UID_LIST),
    "Modality": MatchedAttribute(Level.SERIES, "modality", Matching.TEXT),
    "SeriesNumber": MatchedAttribute(Level.SERIES, "series_number", Matching.INTEGER),
    "SeriesDescription": MatchedAttribute(Level.SERIES, "series_description", Matching.TEXT),
    "SOPInstanceUID": MatchedAttribute(Level.INSTANCE, "sop_instance_uid", Matching.UID_LIST),
    "SOPClassUID": MatchedAttribute(Level.INSTANCE, "sop_class_uid", Matching.UID_LIST),
    "InstanceNumber": MatchedAttribute(Level.INSTANCE, "instance_number", Matching.INTEGER),
}
_PARAMETERS = ("limit", "offset", "fuzzymatching", "includefield", "accept")
_LISTS = (Matching.UID_LIST, Matching.ANY_SERIES)
_LONGEST_VALUE, _MOST_WILDCARDS = 256, 8  # what a database compares in no time
_DATE = re.compile(r"\d{8}")
_TIME = re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?")


@dataclass(frozen=True, slots=True)
class Match:
    """One condition; several `values` are alternatives, of a range they are its ends (an empty one is open)."""

    attribute: MatchedAttribute
    values: tuple[str, ...]
    is_range: bool = False


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A query that can be answered.

    Attributes:
        include: tags (eight digits) that are to be returned beside the usual ones.
        include_all: everything that is known.
        fuzzy: fuzzy matching of names was asked for; it is not done.
    """

    level: Level
    matches: tuple[Match, ...] = ()
    include: frozenset[str] = frozenset()
    include_all: bool = False
    limit: int = MOST_RESULTS
    offset: int = 0
    fuzzy: bool = False


def read_query(level: Level, parameters: Sequence[tuple[str, str]]) -> SearchQuery:
    """
    Raises:
        InputError: `dicomweb.bad_request`, for an attribute that is not searched at this level, or a value that its
            kind of matching does not know.
    """
    given = {name: [value for other, value in parameters if other == name] for name, _ in parameters}
    include = [name for value in given.get("includefield", []) for name in value.split(",") if name]
    matches, also_included = [], []
    for name, value in parameters:
        if name in _PARAMETERS:
            continue
        keyword = _keyword(name)
        attribute = MATCHED.get(keyword)
        if attribute is None or attribute.level > level:
            known = ", ".join(key for key, one in MATCHED.items() if one.level <= level)
            raise _bad(f"{name!r} is not searched here", remedy=f"search by {known}")
        if value:
            matches.append(_match(keyword, attribute, value))
        else:
            also_included.append(keyword)
    names = [_keyword(name) for name in include if name != "all"]
    return SearchQuery(
        level=level,
        matches=tuple(matches),
        include=frozenset(f"{tag_for_keyword(name) or 0:08X}" for name in [*names, *also_included]),
        include_all="all" in include,
        limit=min(MOST_RESULTS, _count(given, "limit", MOST_RESULTS)),
        offset=_count(given, "offset", 0),
        fuzzy=_flag(given, "fuzzymatching"),
    )


def folded_name(name: str) -> str:
    """A person name as names are compared: its groups between equals signs, without case and empty components."""
    groups = (group.strip().rstrip("^").strip().casefold() for group in name.split("="))
    return f"={'='.join(groups).rstrip('=')}="


def like_pattern(value: str) -> str:
    """A value with DICOM's wildcards as a LIKE pattern, whose escape character is the backslash."""
    literal = re.sub(r"([\\%_])", r"\\\1", value)
    return literal.replace("*", "%").replace("?", "_")


def _match(keyword: str, attribute: MatchedAttribute, value: str) -> Match:
    if "\0" in value:
        raise _bad(f"a value of {keyword} has a null character")
    if attribute.matching not in _LISTS and (len(value) > _LONGEST_VALUE or value.count("*") > _MOST_WILDCARDS):
        raise _bad(f"a value of {keyword} is over {_LONGEST_VALUE} characters or {_MOST_WILDCARDS} wildcards")
    if attribute.matching in _LISTS:
        return Match(attribute, tuple(one for one in re.split(r"[,\\]", value) if one))
    if attribute.matching in (Matching.DATE, Matching.TIME):
        shape = _DATE if attribute.matching is Matching.DATE else _TIME
        begin, dash, end = value.partition("-")
        if not (begin or end) or not all(shape.fullmatch(one) for one in (begin, end) if one):
            example = "20260131 or 20260101-20260131" if shape is _DATE else "0830 or 0800-1200"
            raise _bad(f"{keyword} {value!r} is no {attribute.matching.value}", remedy=f"write it like {example}")
        return Match(attribute, (begin, end if dash else begin), is_range=True)
    if attribute.matching is Matching.INTEGER and not re.fullmatch(r"[+-]?\d{1,12}", value.strip()):
        raise _bad(f"{keyword} {value!r} is no whole number")
    return Match(attribute, (value.strip(),))


def _keyword(name: str) -> str:
    """The keyword of an attribute that is named by its keyword or its tag."""
    keyword = name if tag_for_keyword(name) is not None else ""
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        keyword = keyword_for_tag(int(name, 16))
    if not keyword:
        raise _bad(f"{name!r} is no attribute of the DICOM dictionary")
    return keyword


def _count(given: dict[str, list[str]], name: str, default: int) -> int:
    value = given.get(name, [str(default)])[-1]
    if not re.fullmatch(r"\d{1,9}", value):
        raise _bad(f"{name} {value!r} is no whole number from 0")
    return int(value)


def _flag(given: dict[str, list[str]], name: str) -> bool:
    value = given.get(name, ["false"])[-1].lower()
    if value not in ("true", "false"):
        raise _bad(f"{name} {value!r} is neither true nor false")
    return value == "true"


def _bad(what: str, remedy: str = "") -> InputError:
    return InputError(what, code=BAD_QUERY, remedy=remedy)
