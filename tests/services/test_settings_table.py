from __future__ import annotations

from pathlib import Path

from services.settings_table import with_settings_table

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readme_lists_every_setting() -> None:
    document = README.read_text()
    assert with_settings_table(document) == document, "run: python -m services.settings_table"
