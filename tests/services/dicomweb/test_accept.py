"""Accept headers as clients write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dicomweb.accept import NotAcceptable, check_takes, media_ranges


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", [("*/*", True, True, None)]),
        ("*/*", [("*/*", True, True, None)]),
        ("application/dicom+json", [("application/dicom+json", True, False, None)]),
        ('multipart/related; type="application/dicom"', [("application/dicom", False, True, None)]),
        (
            "Multipart/Related;Type=application/octet-stream;transfer-syntax=1.2.840.10008.1.2.4.90",
            [("application/octet-stream", False, True, "1.2.840.10008.1.2.4.90")],
        ),
        ('multipart/related; type="image/jls"; transfer-syntax=*', [("image/jls", False, True, "*")]),
        ("multipart/related", [("*/*", False, True, None)]),
        ("text/html;q=0.5, image/png", [("image/png", True, False, None), ("text/html", True, False, None)]),
        ("image/png;q=0, image/jpeg;q=x", []),
        ('image/png;note="a,b;q=0.1"', [("image/png", True, False, None)]),
        ("nonsense, /, a/b/c", []),
    ],
)
def test_media_ranges(accept: str, expected: list[tuple[str, bool, bool, str | None]]) -> None:
    found = [(one.media_type, one.single, one.multipart, one.transfer_syntax_uid) for one in media_ranges(accept)]
    assert found == expected


def test_the_clients_order_decides_then_ours() -> None:
    assert check_takes("image/png;q=0.9, image/jpeg", "image/png", "image/jpeg") == "image/jpeg"
    assert check_takes("image/*", "image/png", "image/jpeg") == "image/png"
    with pytest.raises(NotAcceptable, match="nothing of what is accepted"):
        check_takes('multipart/related; type="image/png"', "image/png")


@given(st.text(alphabet='ab*/;,="\\ q01.', max_size=40))
def test_any_header_is_read(accept: str) -> None:
    assert all("/" in one.media_type or one.multipart for one in media_ranges(accept))
