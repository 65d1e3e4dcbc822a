"""A local name says what it holds: ``row``, not ``found``; a participle alone says only how it was come by."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("inferencegym_jax", "server", "training")
PARTICIPLES = {"found", "given", "chosen"}


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, public: bool) -> list[ast.arg]:
    """A function's parameters; of a public one those that no caller names."""
    arguments = function.args
    unnamed = [*arguments.posonlyargs, *(a for a in (arguments.vararg, arguments.kwarg) if a)]
    return unnamed if public else [*unnamed, *arguments.args, *arguments.kwonlyargs]


def assigned(node: ast.AST, public: bool = True) -> Iterator[tuple[int, str]]:
    """(line, name) of every variable and parameter below a node, but for fields of a class and public keywords.

    Args:
        node: of a parsed module.
        public: whether functions right below it can be called from elsewhere.
    """
    for child in ast.iter_child_nodes(node):
        inside = public
        match child:
            case ast.AnnAssign() | ast.Assign() if isinstance(node, ast.ClassDef):
                if child.value is not None:  # the targets are the class's fields
                    yield from assigned(ast.Expr(child.value))
                continue
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                callable_elsewhere = public and (not name.startswith("_") or name.endswith("__"))
                yield from ((arg.lineno, arg.arg) for arg in _parameters(child, callable_elsewhere))
                inside = False
            case ast.Lambda():
                yield from ((arg.lineno, arg.arg) for arg in _parameters(child, False))
                inside = False
            case ast.ClassDef(name=name):
                inside = public and not name.startswith("_")
            case ast.Name(id=name, ctx=ast.Store()):
                yield child.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield child.lineno, name
            case _:
                pass
        yield from assigned(child, inside)


def participles(text: str) -> list[tuple[int, str]]:
    """(line, name) of every variable of a module's text that is a participle alone."""
    return sorted((line, name) for line, name in assigned(ast.parse(text)) if name in PARTICIPLES)


def test_no_variable_is_a_participle_alone():
    lines = [
        f"{path.relative_to(ROOT).as_posix()}:{line}: {name}"
        for top in TOPS
        for path in sorted((ROOT / top).rglob("*.py"))
        for line, name in participles(path.read_text(encoding="utf-8"))
    ]
    assert not lines, "name what these hold:\n" + "\n".join(lines)


def test_a_participle_is_seen_wherever_a_name_is_bound():
    bound = """
def of(rows):
    found = 1
    found: int = 1
    for given in rows: pass
    with rows as chosen: pass
    if (found := rows): pass
    a, (found, *given) = rows
    return [chosen for chosen in rows], lambda found: found
def _private(found, *, given): pass
def public(*found, **given):
    def local(chosen): pass
class _Private:
    def method(self, found): pass
class Public:
    parse = lambda found: found
"""
    assert [line for line, _ in participles(bound)] == [3, 4, 5, 6, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 14, 16]


def test_a_public_keyword_and_a_field_keep_their_names():
    kept = """
def public(found, *, given=1): return found + given
class Public:
    found: int
    chosen = 1
    parse = lambda body: body
    def __init__(self, given): self.found = given
"""
    assert not participles(kept)
