"""The rooms: who may import whom, which file is whose door, and how large things may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nbi_plus"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "featurizers").rglob("*.py")])
ROOMS = ["data", "io", "problem", "learn", "infer", "plots", "trust", "survey", "doors", "files",
         "predictor", "engine", "population", "cli"]  # fmt: skip
DOORS = {
    "h5py": {"io/store.py", "io/archive.py", "io/header.py", "io/layout.py", "io/placing.py",
             "io/blocks.py", "io/table_files.py"},
    "nflows": {"learn/flows.py"},
    "emcee": {"infer/ensemble.py"},
    "matplotlib": {"plots/style.py"},
    "dask": {"survey.py", "problem/simulator.py"},
    "distributed": {"survey.py", "problem/simulator.py"},
    "astropy": {"data/units.py", "data/ingest.py", "io/tables.py", "io/table_files.py",
                "infer/export.py"},
    "arviz": {"infer/export.py"},
    "pandas": {"io/tables.py"},
    "pyarrow": {"io/tables.py", "io/table_files.py"},
}  # fmt: skip


# what people hold: the docstrings of these are its manual, and no sign of a file that does too much
PUBLIC_DOORS = ("engine.py", "predictor.py", "problem/observations.py")


def _docstring_lines(tree):
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners)]
    return sum(len(text.splitlines()) for text in texts if text)


def imports(path, *, runtime_only=True):
    """Return (module, line) of every absolute import in a file, type-checking blocks left out."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and runtime_only
        for child in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, node.lineno))
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "nbi_plus" else None


def name_of(path):
    return str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else path.name


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(PACKAGE)], ids=name_of)
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    for module, line in imports(path):
        room = room_of(module)
        if room is None or (own, room) == ("cli", "models"):
            continue
        if own == "models":
            assert room in ("problem", "models"), f"{path.name}:{line} imports {module}"
        elif room != "__version__":
            assert ROOMS.index(room) <= ROOMS.index(own), f"{path.name}:{line} imports {module}"


def test_files_of_a_room_import_in_one_order():
    edges = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        edges[module] = {m for m, _ in imports(path) if m.startswith("nbi_plus.")}
    state = {}

    def visit(module, trail):
        assert state.get(module) != "open", f"circular import: {' -> '.join([*trail, module])}"
        if module in state or module not in edges:
            return
        state[module] = "open"
        for other in sorted(edges[module]):
            visit(other, [*trail, module])
        state[module] = "done"

    for module in edges:
        if not module.endswith("__init__"):
            visit(module, [])


@pytest.mark.parametrize("library", DOORS)
def test_foreign_library_has_one_door(library):
    for path in PACKAGE.rglob("*.py"):
        where = str(path.relative_to(PACKAGE))
        used = [line for module, line in imports(path) if module.split(".")[0] == library]
        allowed = where in DOORS[library] or (library == "astropy" and where.startswith("models/"))
        assert allowed or not used, f"{where}:{used} imports {library}"


def test_featurizers_import_torch_alone():
    standard = set(sys.stdlib_module_names)
    for path in (ROOT / "featurizers").rglob("*.py"):
        tops = {module.split(".")[0] for module, _ in imports(path)}
        assert tops <= standard | {"torch", "featurizers"}, path


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_and_functions_stay_small(path):
    text = path.read_text()
    tree = ast.parse(text)
    manual = _docstring_lines(tree) if name_of(path) in PUBLIC_DOORS else 0
    assert text.count("\n") - manual <= 400
    assert path.name != "utils.py"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = ast.get_docstring(node)
            size = node.end_lineno - node.lineno + 1 - (len(doc.splitlines()) if doc else 0)
            assert size <= 60, f"{path.name}: {node.name} has {size} lines"


def test_import_changes_no_global_state():
    code = (
        # scikit-learn sets two variables for OpenMP when it is first imported, and its metrics
        # import pandas where that is installed, which draws from Python's generator
        "import sys, os, random, logging, numpy as np, torch, sklearn.metrics\n"
        "def state(): return (dict(os.environ), random.getstate(), str(np.random.get_state()),"
        " torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads(),"
        " list(logging.getLogger().handlers), logging.getLogger().level)\n"
        "before = state()\n"
        "import nbi_plus, featurizers\n"
        "assert state() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert 'nflows.flows' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
