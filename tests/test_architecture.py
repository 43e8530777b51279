"""The shape of the course: each file builds on the ones before it, on four packages, and on nothing hidden."""
import ast
import re
import subprocess
import sys

import pytest

import small

MODULES = sorted(small.ROOT.glob("0[1-9]_*.py"))
PACKAGES = {"torch", "numpy", "PIL", "matplotlib"}
TOP = {path.name for path in MODULES} | {"tests", "lessons", "README.md", "LICENSE", "requirements.txt",
                                         "pyproject.toml", ".gitignore", ".ci"}
NAMES = "01_tokenizer 02_transformer 03_unet 04_diffusion 05_guidance 06_inpaint 07_upsample 08_train 09_sample"
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def calls(path, name):
    """The calls of a function or method of this name, whatever it is called on."""
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)
            and name == getattr(node.func, "attr", getattr(node.func, "id", None))]


def repository():
    """The files that belong to the repository, added or about to be."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=small.ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [small.ROOT / name for name in listed.stdout.decode().split("\0") if name and (small.ROOT / name).is_file()]


def test_there_are_nine_files():
    assert [path.stem for path in MODULES] == NAMES.split()


@each_module
def test_a_file_builds_only_on_the_ones_before_it(path):
    for call in calls(path, "import_module") + calls(path, "__import__"):
        assert call.args and isinstance(call.args[0], ast.Constant), f"line {call.lineno}: name what is imported"
        name = call.args[0].value
        assert (small.ROOT / f"{name}.py") in MODULES and name < path.stem, f"line {call.lineno} imports {name}"


@each_module
def test_a_file_imports_four_packages_at_most(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: these files are no package"
            names = [node.module]
        else:
            continue
        odd = {name.split(".")[0] for name in names} - PACKAGES - set(sys.stdlib_module_names)
        assert not odd, f"line {node.lineno} imports {odd}; torch, numpy, pillow and matplotlib must do"


@each_module
def test_no_device_is_built_in(path):
    lines = [call.lineno for call in calls(path, "cuda")]
    assert not lines, f"lines {lines}: .cuda() ties the code to one kind of machine; use .to(device)"


@pytest.mark.parametrize("path", MODULES + sorted((small.ROOT / "tests").glob("*.py")), ids=lambda path: path.name)
def test_weight_files_cannot_run_code(path):
    for call in calls(path, "load"):
        if getattr(getattr(call.func, "value", None), "id", None) == "torch":
            safe = {k.arg: getattr(k.value, "value", None) for k in call.keywords}.get("weights_only")
            assert safe is True, f"line {call.lineno}: torch.load without weights_only=True runs what a file says"


@each_module
def test_a_file_opens_with_its_thesis(path):
    text = ast.get_docstring(tree(path)) or ""
    assert text.startswith(f"{path.stem[:2]} · "), "the first line: the file's number and its one sentence"
    assert f"python {path.name}" in text, "the docstring holds the command"
    assert re.search(r"arXiv \d{4}\.\d{4,5}", text), "… and the papers"


@each_module
def test_a_file_is_also_a_script(path):
    assert any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree(path).body)


def test_the_top_level_holds_what_the_card_names():
    top = {path.relative_to(small.ROOT).parts[0] for path in repository()}
    assert top <= TOP, f"{sorted(top - TOP)}: nothing else belongs there"
    assert TOP - top == set(), f"{sorted(TOP - top)} missing"


def test_no_file_is_large():
    large = {path.name: path.stat().st_size for path in repository() if path.stat().st_size > 10_000_000}
    assert not large, f"over 10 MB, which every clone would pay for: {large}"


def test_no_path_of_one_machine_is_mentioned():
    forbidden = ["/wo" + "rk/", "sha" + "red/"]                              # taken apart, or this file would hold them
    for path in repository():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:                                           # a picture, weights
            continue
        if path.name == "test_01_tokenizer.py":                              # where the published vocabularies may lie
            text = text.replace("../" + forbidden[1] + "vocab", "")
        found = [word for word in forbidden if word in text]
        assert not found, f"{path.relative_to(small.ROOT)} mentions {found}: no reader has that"
