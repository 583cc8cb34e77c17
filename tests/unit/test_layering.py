"""The direction of the house: who may import whom, and what costs time to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "kresnet"

# A package may import itself and what is listed here.
ALLOWED = {
    "errors": set(),
    "machine": set(),
    "files": set(),
    "cluster": {"errors", "machine", "train.signals"},
    "console": {"errors"},
    "zoo": {"errors"},
    "data": {"errors", "machine", "zoo"},
    "train": {"errors", "machine", "files", "console", "zoo", "data", "kresnet"},
    "evaluate": {"errors", "machine", "zoo", "data", "train"},
    "export": {"errors", "zoo", "data.pixels"},
    "serve": {"errors", "machine", "zoo", "data.light", "data.pixels", "export.contract"},
    "batch": {
        "errors", "machine", "files", "cluster", "console", "data", "train.signals", "export",
        "serve", "kresnet",
    },
    "workflow": {
        "errors", "console", "zoo", "data", "train", "evaluate", "export", "serve", "kresnet",
    },
    "tune": {
        "errors", "machine", "files", "cluster", "console", "zoo", "data", "train", "evaluate",
        "workflow", "kresnet",
    },
    "bench": {
        "errors", "machine", "console", "zoo", "data", "train", "evaluate", "export", "serve",
        "workflow", "tune", "kresnet",
    },
    "cli": {
        "errors", "machine", "cluster", "console", "zoo", "data", "evaluate", "export", "serve",
        "batch", "workflow", "bench", "tune", "kresnet",
    },
    "__init__": {"errors", "zoo", "train", "workflow"},
    "__main__": {"cli"},
}  # fmt: skip


def imports(path):
    """Every kresnet module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules():
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = ALLOWED[layer] | {layer}
    for name in imports(path):
        if not name.startswith("kresnet"):
            continue
        below = name.removeprefix("kresnet").lstrip(".") or "kresnet"
        if (
            name.count(".") == 1
            and not (PACKAGE / below).exists()
            and not (PACKAGE / f"{below}.py").exists()
        ):
            below = "kresnet"  # a name of the top package, as kresnet.__version__
        assert any(below == a or below.startswith(f"{a}.") or a.startswith(f"{below}.")
                   for a in allowed), f"{path} imports {name}"  # fmt: skip


def test_the_layering_test_sees_a_wrong_import(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from kresnet.train import stages\n")
    assert "kresnet.train.stages" in set(imports(wrong))


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_the_zoo_imports_tensorflow_only_inside_functions(path):
    if path.relative_to(PACKAGE).parts[0] != "zoo":
        return
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(n.split(".")[0] in ("tensorflow", "torch") for n in names), path


def test_what_replays_an_export_knows_nothing_of_kresnet():
    for name in ("replay.py", "c_api.py"):
        assert not [n for n in imports(PACKAGE / "export" / name) if n.startswith("kresnet")]


def loaded_after(program):
    code = f"import sys\n{program}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "program",
    [
        "import kresnet, kresnet.zoo, kresnet.cli",
        "from kresnet.zoo import VARIANTS",
        "import sys; sys.argv = ['kresnet', '--help']\n"
        "from kresnet.cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
)
def test_heavy_libraries_wait_until_they_are_needed(program):
    assert not loaded_after(program) & {"tensorflow", "keras", "torch", "sklearn", "matplotlib"}


def test_every_command_and_option_has_a_help_text():
    import typer

    from kresnet.cli import app

    group = typer.main.get_command(app)
    for command in group.commands.values():
        assert command.help, command.name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{command.name} {parameter.name}"
    assert {"train", "resume", "predict", "evaluate", "export", "exports", "demo"} <= set(
        group.commands
    )


def test_no_module_is_called_utils():
    assert not [p for p in modules() if "util" in p.stem]
