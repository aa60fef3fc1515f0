"""The version of this software: what the API, the results and the page say."""

from __future__ import annotations

VERSION = "0.1.0"
