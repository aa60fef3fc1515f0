"""The conformance statement says what the code offers, and what the writers really write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from cli.conformance import PRODUCED, STATEMENT, with_tables
from services.dicom.result_files import write_results
from services.dicom.result_kind import ResultKind
from services.dicom.seg_options import SegOptions, SegType
from services.dicom.series_reader import read_series
from services.dicom.storage import ACCEPTED_TRANSFER_SYNTAXES
from services.ingest.store_scp import supported_contexts
from tests.services.dicom.made_series import IDENTITY, made_result, written_series


def test_the_statements_tables_are_those_of_the_code() -> None:
    document = STATEMENT.read_text(encoding="utf-8")
    assert with_tables(document) == document, "run: python -m cli.conformance"


def test_a_transfer_syntax_that_is_no_longer_accepted_changes_the_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    document = STATEMENT.read_text(encoding="utf-8")
    assert tuple(supported_contexts()[-1].transfer_syntax) == ACCEPTED_TRANSFER_SYNTAXES
    monkeypatch.setattr("cli.conformance.ACCEPTED_TRANSFER_SYNTAXES", ACCEPTED_TRANSFER_SYNTAXES[1:])
    assert with_tables(document) != document


@pytest.mark.parametrize("seg_type", SegType)
def test_every_object_is_written_as_the_statement_says(tmp_path: Path, seg_type: SegType) -> None:
    source = read_series(written_series(tmp_path / "series"))
    made = made_result(source.volume)
    result = replace(made, lesion_probability=(made.embolus_labelmap > 0).astype(np.float32))
    written = write_results(source, result, tmp_path / "result", IDENTITY, SegOptions(type=seg_type))
    assert list(written.objects) == list(ResultKind)
    for kind, objects in written.objects.items():
        for one in objects:
            syntax = dcmread(one.path, stop_before_pixels=True).file_meta.TransferSyntaxUID
            assert (one.sop_class_uid, syntax) in PRODUCED[kind]
