"""What is not supported is refused in every presentation context, and is not taken apart."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, MRImageStorage
from pynetdicom import AE, StoragePresentationContexts
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_items import PresentationContextItemRQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, MaximumLengthNotification
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made when the module is loaded

from services.ingest.proposed_contexts import with_refusals, without_unsupported
from tests.services.ingest.peers import Receiving, ct_series

_SUPPORTED = {str(CTImageStorage).encode(), str(Verification).encode()}


def _request(*contexts: PresentationContext) -> bytes:
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    return A_ASSOCIATE_RQ(_association(A_ASSOCIATE(), list(contexts))).encode()


def _association(primitive: A_ASSOCIATE, contexts: list[PresentationContext]) -> A_ASSOCIATE:
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "PACS", "EMBOLENS"
    primitive.user_information = [MaximumLengthNotification()]
    primitive.presentation_context_definition_list = contexts
    return primitive


def _proposed(request: bytes) -> list[tuple[int | None, object]]:
    decoded = A_ASSOCIATE_RQ()
    decoded.decode(request)
    return [(one.context_id, one.abstract_syntax) for one in decoded.presentation_context]


def test_an_association_with_a_hundred_contexts_accepts_and_refuses_each(
    receiving: Receiving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As storescu opens it. pynetdicom takes apart only what can be accepted."""
    taken_apart: list[object] = []
    take_apart = PresentationContextItemRQ.decode

    def counting(self: PresentationContextItemRQ, content: bytes) -> None:
        taken_apart.append(content)
        take_apart(self, content)

    monkeypatch.setattr(PresentationContextItemRQ, "decode", counting)
    ae = AE()
    ae.requested_contexts = [
        *StoragePresentationContexts[:100], build_context(CTImageStorage, JPEGLSLossless), build_context(Verification)
    ]  # fmt: skip
    association = ae.associate("127.0.0.1", receiving.port)
    assert association.is_established
    answered = [*association.accepted_contexts, *association.rejected_contexts]
    assert sorted(one.context_id or 0 for one in answered) == [
        2 * number + 1 for number in range(len(ae.requested_contexts))
    ]
    assert {str(one.abstract_syntax) for one in association.accepted_contexts} >= {CTImageStorage, Verification}
    assert {one.result for one in association.rejected_contexts} == {0x03}
    assert association.send_c_store(ct_series(1, size=8)[0]).Status == 0x0000
    association.release()
    assert len(taken_apart) == len(association.accepted_contexts)


def test_a_context_that_is_left_out_is_refused_with_its_number() -> None:
    mr, ct = build_context(MRImageStorage, ExplicitVRLittleEndian), build_context(CTImageStorage)
    request, refusals = without_unsupported(_request(mr, ct), _SUPPORTED)
    assert _proposed(request) == [(3, CTImageStorage)]
    accept = A_ASSOCIATE()
    ct.result = 0x00
    _association(accept, [])
    accept.presentation_context_definition_results_list = [ct]
    accept.result, accept.result_source = 0x00, 0x01
    answer = A_ASSOCIATE_AC()
    answer.decode(with_refusals(A_ASSOCIATE_AC(accept).encode(), refusals))
    assert [(one.context_id, one.result) for one in answer.presentation_context] == [(3, 0x00), (1, 0x03)]
    assert answer.presentation_context[1].transfer_syntax == ExplicitVRLittleEndian
    assert answer.user_information is not None


def test_a_request_of_which_nothing_would_be_left_stays_whole() -> None:
    request = _request(build_context(MRImageStorage))
    assert without_unsupported(request, _SUPPORTED) == (request, b"")


_SOUND = _request(build_context(MRImageStorage), build_context(CTImageStorage), build_context(Verification))


@given(st.integers(0, len(_SOUND)), st.binary(max_size=3), st.integers(0, len(_SOUND)))
@settings(deadline=None)
def test_a_damaged_request_is_left_to_pynetdicom_or_shortened(at: int, change: bytes, cut: int) -> None:
    damaged = (_SOUND[:at] + change + _SOUND[at + len(change) :])[: max(cut, at)]
    request, refusals = without_unsupported(damaged, _SUPPORTED)
    assert request == damaged or len(request) < len(damaged)
    assert len(request) + len(refusals) <= len(damaged)
