"""Modules of the user's own: search order, references, sources and messages."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from rpo_io.user_modules import (
    add_module_folder,
    import_user_module,
    is_reference,
    load_object,
    printing_to_stderr,
    source_text,
)


@pytest.fixture
def module_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [*sys.path])
    importlib.invalidate_caches()
    return tmp_path


def test_property_a_folder_adds_modules_and_replaces_none(module_folder: Path) -> None:
    (module_folder / "module_of_a_user.py").write_text("value = 7\n")
    (module_folder / "this.py").write_text("raise SystemExit\n")
    sys.modules.pop("this", None)
    add_module_folder(module_folder)
    add_module_folder(module_folder)
    assert sys.path.count(str(module_folder)) == 1
    assert import_user_module("module_of_a_user").value == 7
    assert hasattr(import_user_module("this"), "d")  # that of the standard library


def test_property_what_a_module_prints_goes_to_stderr(
    module_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (module_folder / "printing_module.py").write_text("print('loaded')\n")
    add_module_folder(module_folder)
    import_user_module("printing_module")
    with printing_to_stderr():
        print("called")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "loaded\ncalled\n")


def test_closed_form_references() -> None:
    assert is_reference("a.b:c")
    assert not any(map(is_reference, ("rpo", "a:", ":a", "a:b.c", "named:two words", "v:f.csv")))
    assert load_object("os.path:join", "function")("a", "b") == "a/b"


def test_property_the_source_changes_with_the_file(module_folder: Path) -> None:
    path = module_folder / "source_module.py"
    path.write_text("def f():\n    return 1\n")
    add_module_folder(module_folder)
    function = load_object("source_module:f", "function")
    assert source_text(function) == path.read_text()
    path.write_text("def f():\n    return 2.0\n")  # another size, for the cache of byte code
    with pytest.raises(ValueError, match=r"source_module.py has changed since this process imp"):
        source_text(function)
    importlib.reload(sys.modules["source_module"])
    assert source_text(load_object("source_module:f", "function")) == path.read_text()
    assert source_text(abs) == "builtins:abs"


def test_raises_if_two_configurations_name_different_modules_alike(module_folder: Path) -> None:
    folders = [module_folder / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        (folder / "module_of_two_folders.py").write_text(f"name = {folder.name!r}\n")
    add_module_folder(folders[0])
    assert import_user_module("module_of_two_folders").name == "a"
    add_module_folder(folders[1])
    with pytest.raises(ImportError, match=r"this process has imported .*a/module_of_two_fold"):
        import_user_module("module_of_two_folders")
    add_module_folder(folders[0])
    assert import_user_module("module_of_two_folders").name == "a"
    del sys.modules["module_of_two_folders"]
    add_module_folder(folders[1])
    assert import_user_module("module_of_two_folders").name == "b"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("math", "must be of the form module:Class, got 'math'"),
        ("no_such_module:A", "cannot import no_such_module: ModuleNotFoundError"),
        ("exiting_module:A", "cannot import exiting_module: SystemExit: 3"),
        ("math:Sqrt", "the module math has no class Sqrt"),
    ],
)
def test_raises_in_one_line(module_folder: Path, reference: str, message: str) -> None:
    (module_folder / "exiting_module.py").write_text("raise SystemExit(3)\n")
    add_module_folder(module_folder)
    with pytest.raises(ValueError) as raised:
        load_object(reference, "class")
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
