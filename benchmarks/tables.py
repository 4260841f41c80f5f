"""Write the tables of README and docs from `benchmarks/results/*.json`.

A document holds the place of a table as

    <!-- table: NAME -->
    <!-- end table -->

and everything between the two lines is replaced by the table of `results/NAME.json`, which holds it
as `{"table": {"columns": [...], "rows": [[...]], "align": "lr", "caption": "..."}}` (all cells are
texts; `align` and `caption` may be left out). `NAME:PART` is another table of the same results,
`{"tables": {"PART": {...}}}`. Results without a `table` need a function in
`TABLES`. `--check` writes nothing and exits with 1 where a document is old.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs", "models")

_PLACE = re.compile(
    r"(?P<begin><!-- table: (?P<name>[a-z0-9_-]+)(?::(?P<part>[a-z0-9_-]+))? -->\n)"
    r".*?(?P<end><!-- end table -->)",
    re.DOTALL,
)
_ALIGNED = {"l": "---", "r": "---:", "c": ":---:"}


def tale_table(results: dict[str, Any]) -> str:
    """Quality of the demo model on held-out texts, beside the 5-gram where that was measured."""
    ngram = results.get("ngram")
    rows = [
        [
            f"`{name}`, bits per byte",
            f"{measured['bits_per_byte']:.3f}",
            f"{ngram['heldout'][name]['bits_per_byte']:.3f}" if ngram else "",
        ]
        for name, measured in results["heldout"].items()
    ]
    blimp = f"{ngram['blimp']['mean']:.1%}" if ngram else ""
    rows.append(["BLiMP, accuracy", f"{results['blimp']['mean']:.1%}", blimp])
    columns = ["held out", f"`{results['model']['name']}`", "5-gram Kneser-Ney"]
    return markdown({"columns": columns, "align": "lrr", "rows": rows})


#: Results whose table is made here rather than stored.
TABLES: dict[str, Callable[[Any], str]] = {"tale": tale_table}


def markdown(table: dict[str, Any]) -> str:
    """A stored table as Markdown, its caption below."""
    columns = table["columns"]
    align = table.get("align", "l" * len(columns))
    lines = [columns, [_ALIGNED[letter] for letter in align], *table["rows"]]
    if {len(line) for line in lines} != {len(columns)}:
        raise ValueError(f"Every row needs {len(columns)} cells and a letter of alignment each.")
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return text + (f"\n{table['caption']}\n" if table.get("caption") else "")


def filled(text: str, results: Path = RESULTS) -> str:
    """A document with every table whose results exist; other places stay as they are."""

    def fill(place: re.Match[str]) -> str:
        path = results / f"{place['name']}.json"
        if not path.exists():
            return place[0]
        measured = json.loads(path.read_text(encoding="utf-8"))
        make = TABLES.get(place["name"])
        if place["part"]:
            table = markdown(measured["tables"][place["part"]])
        else:
            table = make(measured) if make else markdown(measured["table"])
        return f"{place['begin']}\n{table}\n{place['end']}"

    return _PLACE.sub(fill, text)


def documents() -> list[Path]:
    """Every Markdown file that may hold a table."""
    roots = [ROOT / name for name in DOCUMENTS]
    return sorted(
        path
        for root in roots
        for path in ([root] if root.is_file() else root.rglob("*.md"))
        if path.is_file()
    )


def main() -> int:
    old = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        fresh = filled(text)
        if fresh != text:
            old.append(path)
            if "--check" not in sys.argv:
                path.write_text(fresh, encoding="utf-8")
    for path in old:
        print(path.relative_to(ROOT), "is old" if "--check" in sys.argv else "written")
    return 1 if old and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
