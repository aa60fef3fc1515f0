"""The README's table of settings, made from the settings themselves so that it cannot drift."""

from __future__ import annotations

from pathlib import Path

from services.settings import Settings

_BEGIN, _END = "<!-- settings -->", "<!-- /settings -->"


def settings_table() -> str:
    """Markdown: variable, default, meaning."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = (
            field.default.name if isinstance(field.default, Path) and field.default.is_absolute() else field.default
        )
        shown = "" if default in (None, "") else f"`{default}`"
        lines.append(f"| `EMBOLENS_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(lines)


def with_settings_table(document: str) -> str:
    """The document with the table between its two markers."""
    before, rest = document.split(_BEGIN, 1)
    _, after = rest.split(_END, 1)
    return f"{before}{_BEGIN}\n{settings_table()}\n{_END}{after}"


if __name__ == "__main__":
    readme = Path("README.md")
    readme.write_text(with_settings_table(readme.read_text()))
