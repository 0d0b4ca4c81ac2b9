"""docs/families.md: its table says what the families are."""

from __future__ import annotations

from pathlib import Path

from trustbench.sae.families import FAMILIES, family

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN = "<!-- families: made from trustbench.sae.families; a test holds the page to it -->"
END = "<!-- end of the families -->"


def table() -> str:
    """A row a family: its name, what it is, its own fields of SAEConfig, its fused step."""
    rows = [
        "| family | what it is | fields of its own | fused |",
        "| --- | --- | --- | --- |",
    ]
    for name in FAMILIES:
        found = family(name)
        fields = ", ".join(f"`{field}`" for field in sorted(found.uses))
        fused = "yes" if found.terms else "no"
        rows.append(f"| `{found.name}` | {found.about} | {fields} | {fused} |")
    return "\n".join(rows)


def test_the_table_is_that_of_the_families():
    text = PAGE.read_text(encoding="utf-8")
    shown = text.split(BEGIN)[1].split(END)[0].strip()
    assert shown == table(), f"docs/families.md, between its markers:\n\n{table()}"
