"""Rules of the package's layout.

Subpackages import only from lower ones, functions stay short, and the READMEs name every file.
"""

import ast
import subprocess
import sys

from conftest import ROOT

# From bottom to top. A subpackage, or a module at the top of kd/, imports only from itself and from
# those before it. `kd` is the package's own __init__, which imports none of them.
SUBPACKAGES = ["kd", "system", "losses", "feature_losses", "knowledge", "methods", "config", "data", "models", "reports", "teachers", "training", "loop", "runs",
         "studies"]
WIDTH, PARAMETERS, FUNCTION, FILE = 100, 7, 50, 500  # columns, parameters, lines, lines


def files():
    return sorted((ROOT / "kd").rglob("*.py"))


def subpackage_of(path):
    """Return the top-level name of a file.

    It is `data` for kd/data/store.py, and `losses` for kd/losses.py.
    """
    first = path.relative_to(ROOT / "kd").with_suffix("").parts[0]
    return "kd" if first == "__init__" else first


def imports_of(path):
    """Yield the names of the package's modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kd":
            yield from [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "kd")


def test_every_file_is_in_a_known_subpackage():
    assert {subpackage_of(path) for path in files()} == set(SUBPACKAGES)


def test_subpackages_import_only_from_lower_ones():
    wrong = []
    for path in files():
        for name in imports_of(path):
            own, other = subpackage_of(path), name.split(".")[1] if "." in name else "kd"
            if own != other and SUBPACKAGES.index(other) > SUBPACKAGES.index(own):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_files_do_not_import_each_other_in_a_circle():
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
                 and node.end_lineno - node.lineno >= FUNCTION]
        long += [path.name] if len(path.read_text().splitlines()) > FILE else []
    assert not long, f"functions have at most {FUNCTION} lines and files at most {FILE}"


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
    readme = (ROOT / "configs/README.md").read_text() + (ROOT / "kd/README.md").read_text()
    missing = [path.name for path in [*files(), *ROOT.glob("*.py"), *ROOT.glob("configs/*.toml")]
               if path.name != "__init__.py" and path.name not in readme]
    assert not missing, "add a line for each of these files to kd/README.md or configs/README.md"
