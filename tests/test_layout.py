"""The house keeps its order: rooms import downwards only, functions stay short, the READMEs' tree is the real one."""

import ast
import subprocess
import sys

from conftest import ROOT

# From the ground up: a room, or a file at the top of kd/, imports from those before it and from itself. `kd` is the package's own
# __init__, which imports none of them.
ROOMS = ["kd", "system", "losses", "methods", "config", "data", "models", "reports", "teachers", "training", "loop", "runs",
         "studies"]
WIDTH, PARAMETERS = 100, 7


def files():
    return sorted((ROOT / "kd").rglob("*.py"))


def room_of(path):
    """`data` of kd/data/store.py, `losses` of kd/losses.py."""
    first = path.relative_to(ROOT / "kd").with_suffix("").parts[0]
    return "kd" if first == "__init__" else first


def imports_of(path):
    """Names of the package's modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kd":
            yield from [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "kd")


def test_every_file_is_in_a_room():
    assert {room_of(path) for path in files()} == set(ROOMS)


def test_rooms_import_only_from_those_below():
    wrong = []
    for path in files():
        for name in imports_of(path):
            own, other = room_of(path), name.split(".")[1] if "." in name else "kd"
            if own != other and ROOMS.index(other) > ROOMS.index(own):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_files_of_a_room_do_not_import_each_other_in_a_circle():
    below = {path: {ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in imports_of(path)} for path in files()}
    left = {path: {other for other in others if other in below and other != path} for path, others in below.items()}
    while ready := [path for path, others in left.items() if not others]:
        left = {path: others - set(ready) for path, others in left.items() if path not in ready}
    assert not left


def test_functions_and_files_stay_short():
    long = []
    for path in [*files(), *ROOT.glob("*.py")]:
        tree = ast.parse(path.read_text())
        long += [f"{path.name}:{node.name}" for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
                 and node.end_lineno - node.lineno >= 50]
        long += [path.name] if len(path.read_text().splitlines()) > 400 else []
    assert not long


def test_lines_and_lists_of_parameters_stay_short():
    long = []
    for path in [*files(), *ROOT.glob("*.py")]:
        text = path.read_text()
        long += [f"{path.name}:{number}" for number, line in enumerate(text.splitlines(), 1) if len(line) > WIDTH]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                named = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                long += [f"{path.name}:{node.name}"] if len([name for name in named if name not in ("self", "cls")]) > PARAMETERS else []
    assert not long


def test_settings_become_a_plan_without_torch():
    code = ("import sys; from kd.config import listing, parsing; from kd.config.resolve import resolve; "
            "from kd.config.settings import DistillSettings; resolve(DistillSettings()); listing.list_modes(); "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_public_functions_have_docstrings():
    bare = [f"{path.name}:{node.name}" for path in files() for node in ast.parse(path.read_text()).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            and not ast.get_docstring(node)]
    assert not bare


def test_the_readmes_name_every_file():
    readme = (ROOT / "README.md").read_text() + (ROOT / "kd" / "README.md").read_text()
    missing = [path.name for path in [*files(), *ROOT.glob("*.py"), *ROOT.glob("configs/*.toml")]
               if path.name != "__init__.py" and path.name not in readme]
    assert not missing
