"""The worklist page: a few static files, nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from imaging.errors import NotFound

router = APIRouter(include_in_schema=False)

_PAGES = Path(__file__).parent / "pages"
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_MEDIA_TYPES = {
    "worklist.html": "text/html; charset=utf-8",
    "worklist.css": "text/css; charset=utf-8",
    "worklist.js": "text/javascript; charset=utf-8",
    "login.js": "text/javascript; charset=utf-8",
    "job_panel.js": "text/javascript; charset=utf-8",
    "upload.js": "text/javascript; charset=utf-8",
    "wording.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@router.get("/")
async def worklist() -> FileResponse:
    return await page_file("worklist.html")


@router.get("/pages/{name}")
async def page_file(name: str) -> FileResponse:
    if name not in _MEDIA_TYPES:
        raise NotFound(f"no page {name!r}")
    headers = {"Content-Security-Policy": _CONTENT_SECURITY_POLICY, "Cache-Control": "no-cache"}
    return FileResponse(_PAGES / name, media_type=_MEDIA_TYPES[name], headers=headers)
