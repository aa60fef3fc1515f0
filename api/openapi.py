"""Writes the API's description: `python -m api.openapi`."""

from __future__ import annotations

import json
from pathlib import Path

from api.app import create_app
from services.settings import Settings

OPENAPI_FILE = Path(__file__).resolve().parents[1] / "openapi" / "openapi.json"


def openapi_text() -> str:
    return json.dumps(create_app(Settings()).openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    OPENAPI_FILE.write_text(openapi_text(), encoding="utf-8")
