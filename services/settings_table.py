"""The README's table of settings, made from the settings themselves so that it cannot drift."""

from __future__ import annotations

from pathlib import Path

from services.settings import Settings


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
    return with_generated(document, "settings", settings_table())


def with_generated(document: str, name: str, text: str) -> str:
    """The document with `text` between `<!-- name -->` and `<!-- /name -->`. Raises ValueError where they are not."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = document.split(begin, 1)
    _, after = rest.split(end, 1)
    return f"{before}{begin}\n{text}\n{end}{after}"


if __name__ == "__main__":
    readme = Path("README.md")
    readme.write_text(with_settings_table(readme.read_text()))
