"""The house keeps its order: files import downwards only, functions stay short, the README's tree is the real one."""

import ast

from conftest import ROOT

# From the top down: a module may import those before it.
ORDER = ["kd", "errors", "strategies", "settings", "config", "losses", "inside", "plan", "ranks", "runtime", "checkpoint",
         "metrics", "data", "data.index", "data.table", "data.mura", "data.folder", "data.grades", "data.retinopathy",
         "data.synthetic", "data.splits", "data.fundus", "data.store", "data.audit", "data.feed", "data.views", "data.shifts",
         "data.dataset", "data.pool", "weights", "models", "trained", "teachers", "objectives", "stored", "state", "loop",
         "folder", "panel", "lesson", "results", "results.report", "results.evidence", "results.figures", "results.events",
         "results.outcome", "results.evaluation", "results.study", "results.cells", "results.overview", "results.tables",
         "results.arms", "results.card", "results.robustness", "results.shift", "results.commands", "experiment", "session",
         "recruit", "run"]


def name_of(path):
    parts = path.relative_to(ROOT / "kd").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "kd"


def imports_of(path):
    """Names of the package's modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kd":
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "kd"]
        yield from (name.removeprefix("kd.") for name in names if name.removeprefix("kd.") in ORDER)


def files():
    return sorted((ROOT / "kd").rglob("*.py"))


def test_every_file_has_its_place_in_the_order():
    assert sorted(map(name_of, files())) == sorted(ORDER)


def test_files_import_only_from_those_above():
    wrong = [f"{name_of(path)} imports {name}" for path in files() for name in imports_of(path)
             if name != "kd" and ORDER.index(name) >= ORDER.index(name_of(path))]
    assert not wrong


def test_functions_and_files_stay_short():
    long = []
    for path in [*files(), *ROOT.glob("*.py")]:
        tree = ast.parse(path.read_text())
        long += [f"{path.name}:{node.name}" for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
                 and node.end_lineno - node.lineno >= 50]
        long += [path.name] if len(path.read_text().splitlines()) > 260 else []
    assert not long


def test_public_functions_have_docstrings():
    bare = [f"{path.name}:{node.name}" for path in files() for node in ast.parse(path.read_text()).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            and not ast.get_docstring(node)]
    assert not bare


def test_the_readme_tree_names_every_file():
    readme = (ROOT / "README.md").read_text()
    missing = [path.name for path in [*files(), *ROOT.glob("*.py"), *ROOT.glob("configs/*.toml")]
               if path.name != "__init__.py" and path.name not in readme]
    assert not missing
