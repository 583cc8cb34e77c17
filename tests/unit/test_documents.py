"""What the documents name exists: commands, options, modules, scripts, files."""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "saved_models/README.md", "kresnet/zoo/README.md")),
        *(ROOT / ".github").glob("*.md"),
        *(ROOT / "recipes").rglob("*.md"),
    ]
)
SCRIPTS = sorted((ROOT / "recipes").rglob("*.py"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4,}(\S.*)$", re.MULTILINE)
MODULE = re.compile(r"python -m (kresnet\.[\w.]*\w)")
INLINE = re.compile(r"`([^`]+)`")
OTHERS = {  # options of other programs that are named without them
    "--minutes", "--shuffle",  # of our tests
    "--beam_pipeline_options",  # of `tfds build`
    "--address", "--head",  # of `ray start`
}  # fmt: skip


def commands_of(group, words=()):
    """Every command, by its words, with its options."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, (*words, name))
        else:
            options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
            yield (*words, name), {o for o in options if o.startswith("-")} | {"--help"}


@pytest.fixture(scope="module")
def known():
    """Every command of the command line; nothing heavy is imported for it."""
    import typer

    from kresnet.cli import app

    return dict(commands_of(typer.main.get_command(app)))


def text_of(path):
    text = path.read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(text)) or "" if path.suffix == ".py" else text


def lines_of(text):
    """Lines that are meant to be typed: of code blocks without Python, and of inline code."""
    joined = re.sub(r"\\\n\s*", "", text)
    for language, block in FENCED.findall(joined):
        if language not in ("python", "yaml", "json"):
            yield from block.splitlines()
    rest = FENCED.sub("", joined)
    yield from INDENTED.findall(rest)
    # Inline code may go over the end of a line.
    for code in INLINE.findall(INDENTED.sub("", rest)):
        yield " ".join(code.split())


def invocations(text):
    """The words of each command in a text, without what is before it, as `VARIABLE=1`."""
    for line in lines_of(text):
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:  # prose with an apostrophe
            continue
        command = []
        for word in [*words, "&&"]:
            if word in ("&&", "|", "||", ";"):
                if command:
                    yield command
                command = []
            elif command or not re.fullmatch(r"[A-Z_]+=.*|nice|-n|\d+|time", word):
                command.append(word)


def options_in(words):
    return [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]


def check_kresnet(words, known):
    """Return what is wrong with the words after `kresnet`; "" if nothing is."""
    groups = {command[:1] for command in known if len(command) == 2}
    if not words or words[0].startswith("-"):
        return "" if set(words) <= {"--help", "--version"} else f"no such option: {words}"
    length = 2 if tuple(words[:1]) in groups else 1
    if length == 2 and len(words) == 1:
        return ""  # a group, as in "kresnet bench"
    command = tuple(words[:length])
    if command not in known:
        return f"no such command: {' '.join(command)}"
    # What is behind `--` is another command's, as in `kresnet launch --workers 2 -- train photos`.
    end = words.index("--") if "--" in words else len(words)
    wrong = set(options_in(words[length:end])) - known[command]
    if wrong:
        return f"{' '.join(command)} has no {', '.join(sorted(wrong))}"
    return check_kresnet(words[end + 1 :], known)


def module_file(name):
    path = ROOT / Path(*name.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__main__.py") if p.is_file()), None)


def check_script(path, words):
    """Return what is wrong with the options of a script or a module; "" if nothing is."""
    if path is None or not path.is_file():
        return "no such file"
    sources = [path, *(path.parent.glob("*.py") if path.name == "__main__.py" else ())]
    source = "".join(p.read_text(encoding="utf-8") for p in sources)
    wrong = [o for o in options_in(words) if f'"{o}"' not in source]
    return f"{path.name} has no {', '.join(wrong)}" if wrong else ""


def check(words, known):
    """Return what is wrong with a command that is ours; "" if nothing is."""
    program = Path(words[0]).name
    if program == "kresnet":
        return check_kresnet(words[1:], known)
    if not re.fullmatch(r"python3?", program) or len(words) < 2:
        return ""
    if words[1] == "-m" and words[2:3] == ["kresnet"]:
        return check_kresnet(words[3:], known)
    if words[1] == "-m" and words[2].startswith("kresnet."):
        return check_script(module_file(words[2]), words[3:])
    if words[1].startswith("recipes/"):
        return check_script(ROOT / words[1], words[2:])
    return ""


def is_placeholder(word):
    return word.strip("[]") in ("...", "…")


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_and_options_exist(path, known):
    wrong = []
    for words in invocations(text_of(path)):
        words = [w.strip("[]") for w in words if not is_placeholder(w)]
        if words and (reason := check(words, known)):
            wrong.append(f"{' '.join(words)}: {reason}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_options_that_are_named_alone_exist(path, known):
    text = text_of(path)
    options = set.union(*known.values()) | OTHERS
    named = [module_file(name) for name in MODULE.findall(text)]
    for script in [*SCRIPTS, *filter(None, named)]:
        options |= set(re.findall(r'"(--[a-z-]+)"', script.read_text(encoding="utf-8")))
    alone = [words[0] for words in invocations(text) if words[0].startswith("--")]
    assert not set(options_in(alone)) - options


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_modules_that_are_named_exist(path):
    for name in MODULE.findall(path.read_text(encoding="utf-8")):
        assert module_file(name), name


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text)):
        file, _, heading = target.partition("#")
        if "://" in file:
            continue
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {
                re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles
            }, target


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_names_in_python_blocks_exist(path):
    """Each is resolved as far as it goes without loading Keras: the rest is the recipes' tests'."""
    import kresnet

    for language, block in FENCED.findall(text_of(path)):
        if language == "python":
            tree = ast.parse(block)
            names = {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "kresnet"
            }
            assert names <= set(dir(kresnet)), path


def test_files_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b((?:recipes|tests|kresnet)/[\w./-]*\w)", text))
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_readme_lists_every_command(known):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.search(r"All commands: (.*?);", text, re.DOTALL)[1]
    hidden = {("variants",)}
    assert {tuple(code.split()) for code in INLINE.findall(listed)} == set(known) - hidden


def test_the_newest_change_is_of_this_version():
    import kresnet

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    changes = text.partition("\n## Changes\n")[2]
    assert re.search(r"^\*\*(\S+)\*\*", changes, re.MULTILINE)[1] == kresnet.__version__


def test_the_command_and_the_package_say_the_same_version():
    import kresnet
    from kresnet.cli import app

    said = CliRunner().invoke(app, ["--version"])
    assert (said.exit_code, said.output) == (0, f"kresnet {kresnet.__version__}\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == kresnet.__version__


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("kresnet trian photos/", "no such command"),
        ("kresnet data pock photos/", "no such command"),
        ("$ kresnet train photos/ --epocs 3  # a comment", "train has no --epocs"),
        ("KRESNET_HOME=x .venv/bin/kresnet demo --fast", "demo has no --fast"),
        ("bash .ci/setup && kresnet train photos --epochs=3 --bogus=3", "train has no --bogus"),
        ("python -m kresnet.bench.nothing DATA", "no such file"),
        ("python -m kresnet.bench.step --normz frozen", "step.py has no --normz"),
        ("python recipes/finetune_folder.py FOLDER --weight x", "has no --weight"),
        ("python recipes/nothing.py", "no such file"),
    ],
)
def test_what_does_not_exist_is_found(line, reason, known):
    for text in (f"see `{line}`", f"so:\n\n    {line}\n", f"```\n{line}\n```\n"):
        if "#" in line and text.startswith("see"):
            continue
        found = [check(words, known) for words in invocations(text)]
        assert any(reason in what for what in found), (text, found)
