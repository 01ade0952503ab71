"""Write the script `predict.py` from the source of the modules that prepare images in training.

The script needs numpy, Pillow and onnxruntime only. A second implementation would drift from the
first, so the modules are written into one file, without their imports from this program.
"""

import ast
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

# In this order: a module uses only names of those before it.
MODULES = (
    "kd.system.messages",
    "kd.data.images.decoded",
    "kd.data.images.dicom_head",
    "kd.data.images.fundus",
    "kd.studies.export.stand_ins",
    "kd.data.images.pixels",
    "kd.data.images.common_range",
    "kd.data.files.find",
    "kd.studies.export.predict",
)
_HEAD = '''"""Predict all images of a folder with the network beside this script.

    python -m pip install numpy pillow onnxruntime
    python predict.py FOLDER --out predictions.csv

It needs Python 3.11 or newer, these three packages and the other exported files, and no
connection. It was written by `evaluate.py --export` from the modules that prepared the images in
training, so do not change it. Research software, not for diagnosis.
"""

import sys

try:
    import numpy as np
    from PIL import Image
except ImportError as error:
    sys.exit(f"error: {error.name} is missing. Run: python -m pip install numpy pillow onnxruntime")
'''
_TAIL = """

if __name__ == "__main__":
    sys.exit(main())
"""


@dataclass
class _Script:
    """What was read of the modules so far: imports, text, and the module of each name."""

    imports: set[str] = field(default_factory=set)
    texts: list[str] = field(default_factory=list)
    module_of: dict[str, str] = field(default_factory=dict)


def predict_script() -> str:
    """Return the source of `predict.py`.

    Raises ValueError, for programmers, if two of the modules define the same name, or if one
    imports a name of this program that none of those before it defines.
    """
    script = _Script()
    for module in MODULES:
        _add(script, module)
    imports = "\n".join(sorted(script.imports, key=lambda line: (line.startswith("from"), line)))
    return f"{_HEAD}{imports}\n\n{''.join(script.texts)}{_TAIL}"


def _add(script: _Script, module: str) -> None:
    """Add a module to a script."""
    text = Path(importlib.util.find_spec(module).origin).read_text("utf-8")
    tree = ast.parse(text)
    left_out = set()
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            _check_import(script, module, node)
            left_out |= set(range(node.lineno, node.end_lineno + 1))
        for name in _names(node):
            if name in script.module_of:
                raise ValueError(f"{module} and {script.module_of[name]} both define {name}")
            script.module_of[name] = module
    docstring = tree.body[0]
    left_out |= set(range(docstring.lineno, docstring.end_lineno + 1))
    kept = [line for number, line in enumerate(text.split("\n"), 1) if number not in left_out]
    title = ast.get_docstring(tree).split("\n")[0]
    body = "\n".join(kept).strip("\n")
    script.texts.append(f"\n\n# {module}: {title}\n\n{body}\n")


def _check_import(script: _Script, module: str, node: ast.Import | ast.ImportFrom) -> None:
    """Add an import of another package to the script; check one of this program."""
    if not isinstance(node, ast.ImportFrom) or node.module.split(".")[0] != "kd":
        script.imports.add(ast.unparse(node))
        return
    for alias in node.names:
        name = alias.asname or alias.name
        if name not in script.module_of:
            raise ValueError(f"{module} imports {name} of {node.module}, which is not in MODULES")


def _names(node: ast.stmt) -> list[str]:
    """Return the names that a statement of a module defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.AnnAssign):
        return [ast.unparse(node.target)]
    found = []
    for target in node.targets if isinstance(node, ast.Assign) else ():
        elements = target.elts if isinstance(target, ast.Tuple) else [target]
        found += [ast.unparse(element) for element in elements]
    return found
