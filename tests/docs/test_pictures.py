"""Pictures and tables that scripts write are what the scripts write now."""

import re
from html import unescape
from pathlib import Path

import pytest

from docs import engine_picture, rooms, tables
from tests.test_rooms import ROOMS


@pytest.mark.ci
def test_the_picture_of_the_rooms_is_up_to_date():
    drawn = rooms.svg(rooms.imported_rooms())
    assert drawn == rooms.OUT.read_text(encoding="utf-8"), "the imports changed: run python docs/rooms.py"


def test_an_arrow_is_an_import_that_no_other_path_implies():
    graph = {"a": set(), "b": {"a"}, "c": {"a", "b"}}
    assert rooms.direct(graph) == {"a": set(), "b": {"a"}, "c": {"b"}}
    assert [rooms.row_of(graph, room) for room in graph] == [0, 1, 2]


def test_the_picture_of_the_engine_is_up_to_date():
    drawn = engine_picture.svg()
    assert drawn == engine_picture.OUT.read_text(encoding="utf-8"), "run python docs/engine_picture.py"


def test_no_text_of_the_engine_is_wider_than_its_box():
    pytest.importorskip("matplotlib", reason="measures the letters")
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    boxes = r'<rect [^>]*\bwidth="([\d.]+)"[^>]*/><text [^>]*font-size="(\d+)"[^>]*>(.*?)</text>'
    lines = [
        (float(width), float(size), unescape(line))
        for width, size, spans in re.findall(boxes, engine_picture.svg())
        for line in re.findall(r"<tspan[^>]*>(.*?)</tspan>", spans)
    ]
    assert len(lines) > 10
    for width, size, line in lines:
        path = TextPath((0, 0), line, size=size, prop=FontProperties(family="DejaVu Sans"))
        assert path.get_extents().width < width - 6, line


@pytest.mark.slow
def test_the_figures_are_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figures = pytest.importorskip("docs.figures", reason="matplotlib is not installed")
    committed = figures.OUT
    monkeypatch.setattr(figures, "OUT", tmp_path)
    figures.main()
    drawn = sorted(tmp_path.glob("*.svg"))
    stale = [new.name for new in drawn if new.read_bytes() != (committed / new.name).read_bytes()]
    assert len(drawn) >= 7 and not stale, "run python docs/figures.py"


@pytest.mark.parametrize("page", tables.TABLES)
def test_the_tables_of_a_page_are_up_to_date(page: str):
    assert tables.filled(page) == (tables.ROOT / page).read_text(encoding="utf-8"), "run python docs/tables.py"


def test_a_place_for_a_table_must_be_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(tables.TABLES["ENVIRONMENT.md"], "nothing", tables.knobs)
    with pytest.raises(ValueError, match="0 places for the table nothing"):
        tables.filled("ENVIRONMENT.md")


def test_every_room_is_on_one_page_of_the_api():
    pages = [page.read_text(encoding="utf-8") for page in (tables.ROOT / "docs" / "api").glob("*.md")]
    rooms_shown = sorted(room for page in pages for room in re.findall(r"<!-- modules of (\w+) -->", page))
    assert rooms_shown == sorted(set(ROOMS) - {"cli"})
