"""How schemathesis sends instances: it knows forms, and not the multipart/related of STOW-RS."""

from __future__ import annotations

from typing import Any

import schemathesis

RELATED = "multipart/related"


@schemathesis.serializer(RELATED)
def related_body(context: Any, value: Any) -> bytes:
    content = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    return b"--limit\r\nContent-Type: application/dicom\r\n\r\n%s\r\n--limit--\r\n" % content


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    if str(case.media_type).startswith(RELATED):
        case.headers["Content-Type"] = f'{RELATED}; type="application/dicom"; boundary=limit'
