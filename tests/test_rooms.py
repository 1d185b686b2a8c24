"""The import directions of the design, read from the syntax trees: also imports inside functions count."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bundle", "data_gen", "scripts")


def imported(path: Path, root: Path = ROOT) -> set[str]:
    """Every module that a file names in an import, and every name taken from one: 'a.b' and 'a.b.c'."""
    package = path.relative_to(root).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                names.add(node.args[0].value)
    return names


def files(*rooms: str) -> list[Path]:
    return sorted(p for room in rooms for p in (ROOT / room).rglob("*.py"))


def within(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_reader_sees_every_way_to_import(tmp_path):
    (tmp_path / "bundle").mkdir()
    path = tmp_path / "bundle" / "a.py"
    path.write_text(
        "import x.y as z\nfrom bundle import volume_io\nfrom . import b\nfrom ..data_gen import c\n"
        "def f():\n    import astra\n    __import__('d')\n    importlib.import_module('e.f')\n"
    )
    assert {"x.y", "bundle.volume_io", "bundle.b", "data_gen.c", "astra", "d", "e.f"} <= imported(path, tmp_path)


@pytest.mark.parametrize("path", files("bundle"), ids=ids)
def test_bundle_stands_alone(path):
    assert not [name for name in imported(path) if within(name, "data_gen", "scripts", "tests")]


@pytest.mark.parametrize("path", files("data_gen"), ids=ids)
def test_data_gen_takes_volume_io_and_quantify_from_bundle_only(path):
    taken = {name for name in imported(path) if within(name, "bundle")} - {"bundle"}
    assert not [name for name in taken if not within(name, "bundle.volume_io", "bundle.quantify")]
    assert not [name for name in imported(path) if within(name, "scripts", "tests")]


@pytest.mark.parametrize("path", files(*ROOMS), ids=ids)
def test_astra_has_one_home(path):
    if ids(path) == "data_gen/projection.py":
        assert "astra" in imported(path)
    else:
        assert not [name for name in imported(path) if within(name, "astra")]


@pytest.mark.parametrize("path", files(*ROOMS), ids=ids)
def test_scripts_are_imported_by_nobody(path):
    assert not [name for name in imported(path) if within(name, "scripts")]


def test_scripts_are_plain_files():
    assert not list((ROOT / "scripts").rglob("__init__.py"))


def test_every_room_has_files():
    assert all(files(room) for room in ("bundle", "data_gen"))
