"""QIDO-RS over the index (PS3.18 section 10.6): studies, series and instances as the DICOM JSON Model has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from sqlalchemy import ColumnElement, Select, and_, false, func, select, tuple_
from sqlalchemy.orm import Session

from services.dicomweb.indexed_headers import (
    OF_INSTANCE,
    OF_SERIES,
    OF_STUDY,
    USUAL_OF_INSTANCE,
    USUAL_OF_SERIES,
    USUAL_OF_STUDY,
)
from services.dicomweb.json_model import JsonModel
from services.dicomweb.resource_urls import ResourceUrls
from services.dicomweb.search_query import Level, Match, Matching, SearchQuery, folded_name, like_pattern
from services.store.database import Database
from services.store.rows import HeldInstanceRow, HeldSeriesRow

_AFTER_DIGITS = ":"  # the character behind 9: "10:" comes after every time that begins with 10
_ORDER_OF_SERIES = (
    HeldSeriesRow.study_instance_uid,
    func.coalesce(HeldSeriesRow.series_number, 0),
    HeldSeriesRow.series_instance_uid,
)


@dataclass(frozen=True, slots=True)
class SearchResults:
    """`remaining`: how many more there are behind these."""

    results: Sequence[JsonModel]
    remaining: int


def search(
    database: Database,
    query: SearchQuery,
    urls: ResourceUrls,
    *,
    study_instance_uid: str | None = None,
    series_instance_uid: str | None = None,
    tenant: str | None = None,
) -> SearchResults:
    """What is held and matches, of studies the newest first; within a study and a series where they are given.

    Without a tenant it is what all of them hold; a series that two of them hold is found twice, its instances too.
    """
    conditions = [_condition(match, tenant) for match in query.matches]
    if tenant is not None:
        conditions.append(HeldSeriesRow.tenant == tenant)
    if study_instance_uid is not None:
        conditions.append(HeldSeriesRow.study_instance_uid == study_instance_uid)
    if series_instance_uid is not None:
        conditions.append(HeldSeriesRow.series_instance_uid == series_instance_uid)
    with_study = study_instance_uid is None
    with database.read() as session:
        if query.level is Level.STUDY:
            return _studies(session, query, urls, conditions, tenant)
        if query.level is Level.SERIES:
            return _series(session, query, urls, conditions, tenant, with_study=with_study)
        return _instances(session, query, urls, conditions, with_study=with_study)


def _studies(
    session: Session,
    query: SearchQuery,
    urls: ResourceUrls,
    conditions: Sequence[ColumnElement[bool]],
    tenant: str | None,
) -> SearchResults:
    study_instance_uid = HeldSeriesRow.study_instance_uid
    matching = select(study_instance_uid).where(*conditions).group_by(study_instance_uid)
    newest_first = func.max(HeldSeriesRow.study_date).desc()
    uids, remaining = _page(session, matching.order_by(newest_first, study_instance_uid), query)
    studies = [uid for (uid,) in uids]
    of_study: dict[str, list[HeldSeriesRow]] = {uid: [] for uid in studies}
    every_series = (
        select(HeldSeriesRow).where(HeldSeriesRow.study_instance_uid.in_(studies)).order_by(*_ORDER_OF_SERIES)
    )
    if tenant is not None:
        every_series = every_series.where(HeldSeriesRow.tenant == tenant)
    for row in session.scalars(every_series):
        of_study[row.study_instance_uid].append(row)
    counts = _instance_counts(session, HeldInstanceRow.study_instance_uid, studies, tenant)
    results = []
    for uid, rows in of_study.items():
        model = _chosen(rows[0].attributes, USUAL_OF_STUDY, OF_STUDY, query)
        model |= _element("ModalitiesInStudy", *sorted({row.modality for row in rows if row.modality}))
        model |= _element("NumberOfStudyRelatedSeries", len({row.series_instance_uid for row in rows}))
        model |= _element("NumberOfStudyRelatedInstances", counts.get(uid, 0))
        results.append(model | _found_at(urls.study(uid)))
    return SearchResults(results, remaining)


def _series(
    session: Session,
    query: SearchQuery,
    urls: ResourceUrls,
    conditions: Sequence[ColumnElement[bool]],
    tenant: str | None,
    *,
    with_study: bool,
) -> SearchResults:
    rows, remaining = _page(session, select(HeldSeriesRow).where(*conditions).order_by(*_ORDER_OF_SERIES), query)
    uids = [row.series_instance_uid for (row,) in rows]
    counts = _instance_counts(session, HeldInstanceRow.series_instance_uid, uids, tenant)
    results = []
    for (row,) in rows:
        model = _series_attributes(row, query, with_study=with_study)
        model |= _element("NumberOfSeriesRelatedInstances", counts.get(row.series_instance_uid, 0))
        results.append(model | _found_at(urls.series(row.study_instance_uid, row.series_instance_uid)))
    return SearchResults(results, remaining)


def _instances(
    session: Session,
    query: SearchQuery,
    urls: ResourceUrls,
    conditions: Sequence[ColumnElement[bool]],
    *,
    with_study: bool,
) -> SearchResults:
    of_series = and_(
        HeldInstanceRow.tenant == HeldSeriesRow.tenant,
        HeldInstanceRow.study_instance_uid == HeldSeriesRow.study_instance_uid,
        HeldInstanceRow.series_instance_uid == HeldSeriesRow.series_instance_uid,
    )
    matching = select(HeldInstanceRow).join(HeldSeriesRow, of_series).where(*conditions)
    number = func.coalesce(HeldInstanceRow.instance_number, 0)
    rows, remaining = _page(
        session, matching.order_by(*_ORDER_OF_SERIES, number, HeldInstanceRow.sop_instance_uid), query
    )
    keys = {(row.tenant, row.study_instance_uid, row.series_instance_uid) for (row,) in rows}
    key = tuple_(HeldSeriesRow.tenant, HeldSeriesRow.study_instance_uid, HeldSeriesRow.series_instance_uid)
    series = {
        (one.tenant, one.study_instance_uid, one.series_instance_uid): _series_attributes(
            one, query, with_study=with_study
        )
        for one in session.scalars(select(HeldSeriesRow).where(key.in_(keys)))
    }
    results = []
    for (row,) in rows:
        model = dict(series[row.tenant, row.study_instance_uid, row.series_instance_uid])
        model |= _chosen(row.attributes, USUAL_OF_INSTANCE, OF_INSTANCE, query)
        model |= _element("AvailableTransferSyntaxUID", row.transfer_syntax_uid)
        url = urls.instance(row.study_instance_uid, row.series_instance_uid, row.sop_instance_uid)
        results.append(model | _found_at(url))
    return SearchResults(results, remaining)


def _page(session: Session, ordered: Select[Any], query: SearchQuery) -> tuple[Sequence[Any], int]:
    """The rows of this page, and how many there are behind it: counted only where there are any."""
    rows = session.execute(ordered.offset(query.offset).limit(query.limit + 1)).all()
    if len(rows) <= query.limit:
        return rows, 0
    whole = session.scalar(select(func.count()).select_from(ordered.order_by(None).subquery())) or 0
    return rows[: query.limit], max(1, whole - query.offset - query.limit)


def _instance_counts(session: Session, column: Any, uids: Sequence[str], tenant: str | None) -> dict[str, int]:
    distinct = func.count(HeldInstanceRow.sop_instance_uid.distinct())
    query = select(column, distinct).where(column.in_(uids)).group_by(column)
    if tenant is not None:
        query = query.where(HeldInstanceRow.tenant == tenant)
    return dict(session.execute(query).tuples().all())


def _condition(match: Match, tenant: str | None) -> ColumnElement[bool]:
    name = match.attribute.column
    column: ColumnElement[Any] = getattr(
        HeldInstanceRow if match.attribute.level is Level.INSTANCE else HeldSeriesRow, name
    )
    kind = match.attribute.matching
    if match.is_range:
        begin, end = match.values
        return and_(column != "", column >= begin, column < end + _AFTER_DIGITS if end else column >= "")
    if kind is Matching.UID_LIST:
        return column.in_(match.values) if match.values else false()
    if kind is Matching.ANY_SERIES:
        with_it = select(HeldSeriesRow.study_instance_uid).where(HeldSeriesRow.modality.in_(match.values))
        if tenant is not None:
            with_it = with_it.where(HeldSeriesRow.tenant == tenant)
        return HeldSeriesRow.study_instance_uid.in_(with_it)
    (value,) = match.values
    if kind is Matching.INTEGER:
        return column == int(value)
    if kind is Matching.PERSON_NAME:
        return column.like(f"%{like_pattern(folded_name(value))}%", escape="\\")
    if "*" in value or "?" in value:
        return column.like(like_pattern(value), escape="\\")
    return column == value


def _series_attributes(row: HeldSeriesRow, query: SearchQuery, *, with_study: bool) -> JsonModel:
    usual = USUAL_OF_SERIES | USUAL_OF_STUDY if with_study else USUAL_OF_SERIES
    model = _chosen(row.attributes, usual, OF_SERIES | OF_STUDY, query)
    return model | _element("StudyInstanceUID", row.study_instance_uid)


def _chosen(
    attributes: Mapping[str, Any], usual: frozenset[str], known: frozenset[str], query: SearchQuery
) -> JsonModel:
    wanted = known if query.include_all else (usual | query.include) & known
    return {tag: value for tag, value in attributes.items() if tag in wanted}


def _found_at(url: str) -> JsonModel:
    return _element("InstanceAvailability", "ONLINE") | _element("RetrieveURL", url)


def _element(keyword: str, *values: str | int) -> JsonModel:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return {f"{tag:08X}": {"vr": dictionary_VR(tag), "Value": list(values)} if values else {"vr": dictionary_VR(tag)}}
