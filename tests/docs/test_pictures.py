"""Pictures that scripts draw are what the scripts draw now."""

from docs import rooms


def test_the_picture_of_the_rooms_is_up_to_date():
    drawn = rooms.svg(rooms.imported_rooms())
    assert drawn == rooms.OUT.read_text(encoding="utf-8"), "the imports changed: run python docs/rooms.py"


def test_an_arrow_is_an_import_that_no_other_path_implies():
    graph = {"a": set(), "b": {"a"}, "c": {"a", "b"}}
    assert rooms.direct(graph) == {"a": set(), "b": {"a"}, "c": {"b"}}
    assert [rooms.row_of(graph, room) for room in graph] == [0, 1, 2]
