"""No number in a document is typed by hand: tables are what the results say."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "tables.py"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_tables", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_in_a_document_is_up_to_date(tables: ModuleType) -> None:
    for path in tables.documents():
        text = path.read_text(encoding="utf-8")
        assert tables.filled(text) == text, f"{path} is old; run `make docs`"


def test_a_place_is_filled_once_and_again(tables: ModuleType, tmp_path: Path) -> None:
    table = {"columns": ["cut", "bytes"], "rows": [["b4", "12"]], "align": "lr", "caption": "Note."}
    (tmp_path / "some.json").write_text(json.dumps({"table": table}))
    text = "before\n<!-- table: some -->\n<!-- end table -->\nafter\n"
    once = tables.filled(text, tmp_path)
    assert "| cut | bytes |\n| --- | ---: |\n| b4 | 12 |\n\nNote.\n" in once
    assert once.startswith("before\n<!-- table: some -->\n")
    assert once.endswith("<!-- end table -->\nafter\n")
    assert tables.filled(once, tmp_path) == once


def test_results_may_hold_several_tables(tables: ModuleType, tmp_path: Path) -> None:
    table = {"columns": ["cut"], "rows": [["b4"]]}
    (tmp_path / "some.json").write_text(json.dumps({"tables": {"brief": table}}))
    text = "<!-- table: some:brief -->\n<!-- end table -->"
    once = tables.filled(text, tmp_path)
    assert once.startswith("<!-- table: some:brief -->\n")
    assert "| b4 |" in once
    assert tables.filled(once, tmp_path) == once


def test_places_without_results_stay(tables: ModuleType, tmp_path: Path) -> None:
    text = "<!-- table: none -->\nold\n<!-- end table -->"
    assert tables.filled(text, tmp_path) == text


def test_rows_of_the_wrong_length_are_refused(tables: ModuleType) -> None:
    with pytest.raises(ValueError, match="2 cells"):
        tables.markdown({"columns": ["a", "b"], "rows": [["1"]]})
