"""The rooms: who may import whom, which file is whose door, and how large things may grow."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nbi_plus
from nbi_plus.problem import noise

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nbi_plus"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "featurizers").rglob("*.py")])
MODULES = [
    p for p in SOURCES if p.is_relative_to(PACKAGE) and p.stem not in ("__init__", "__main__")
]
# from the ground up; a name stands for all that begins with it, unless a longer one says otherwise
ORDER = [
    "__version__", "batched", "launch", "torch_state", "arguments", "progress", "markup",
    "printed", "io",
    "data.units", "data.ingest", "data.tables", "data",
    "problem.random", "problem.guard", "problem.prior", "problem.gathered", "problem.noise",
    "problem.simulator",
    "problem.window", "problem.binding", "problem.target", "problem.checks", "problem.setup",
    "learn",
    "infer.weights", "infer.proposals", "infer.samplers", "infer.posterior", "infer.ladder",
    "infer.shared", "infer.sequential",
    "trust", "plots", "survey", "options", "fitted", "files", "engine", "estimators",
    "population", "pymc", "models", "adapters", "report", "inspecting", "demo", "cli",
]  # fmt: skip
MODELS_IMPORT = ("models", "data", "problem")
WIDEST = 16
DOORS = {
    "h5py": {"io/store.py", "io/archive.py", "io/header.py", "io/layout.py", "io/placing.py",
             "io/blocks.py", "io/planned.py", "io/store_files.py", "data/tables/table_files.py",
             "survey/sources.py", "survey/writing.py"},
    "nflows": {"learn/flows.py"},
    "emcee": {"infer/samplers/ensemble.py"},
    "matplotlib": {"plots/style.py"},
    "dask": {"survey", "problem/simulator/simulator.py"},
    "distributed": {"survey", "problem/simulator/simulator.py"},
    "astropy": {"data/units.py", "data/ingest.py", "data/tables/tables.py",
                "data/tables/table_files.py", "infer/posterior/export.py", "models", "printed.py",
                "survey/sources.py", "survey/writing.py",
                "data/surveys/snana.py", "data/surveys/desi.py"},
    "fastavro": {"data/surveys/packets.py"},
    "arviz": {"infer/posterior/export.py"},
    "pandas": {"data/tables/tables.py"},
    "pymc": {"pymc"},
    "pytensor": {"pymc"},
    "pyarrow": {"data/tables/tables.py", "data/tables/table_files.py", "survey"},
}  # fmt: skip


# what people hold: the docstrings of these are its manual, and no sign of a file that does too much
PUBLIC_DOORS = (
    "engine.py", "data/observations.py", "estimators/ratio.py", "estimators/ensemble.py",
)  # fmt: skip


def _docstring_lines(tree):
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners)]
    return sum(len(text.splitlines()) for text in texts if text)


def imports(path, *, runtime_only=False):
    """Return (module, line) of every import in a file, of type-checking blocks too if wanted."""
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


def floor_of(module):
    """Return the place in ORDER of a module without the package's name; None for a whole room."""
    fitting = [name for name in ORDER if f"{module}.".startswith(f"{name}.")]
    return ORDER.index(max(fitting, key=len)) if fitting else None


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def name_of(path):
    return str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else path.name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path):
    own = module_of(path)
    assert floor_of(own) is not None, f"{own} has no place in ORDER"
    for module, line in imports(path):
        if not module.startswith("nbi_plus."):
            continue
        other = module.removeprefix("nbi_plus.")
        floor = floor_of(other)
        if floor is not None and own != "cli":
            assert floor <= floor_of(own), f"{own}:{line} imports {module}"
        if own.startswith("models."):
            assert floor is None or other.startswith(MODELS_IMPORT), f"{own}:{line}: {module}"


def test_no_folder_holds_more_than_a_page():
    for folder in {path.parent for path in MODULES}:
        names = [p.stem for p in folder.glob("*.py") if p.stem not in ("__init__", "__main__")]
        assert len(names) <= WIDEST, f"{folder.name}: {len(names)} modules"


def test_every_module_stands_on_the_page_of_the_design():
    words = set(re.findall(r"[\w]+", (ROOT / "docs" / "design.md").read_text()))
    missing = [module_of(path) for path in MODULES if path.stem not in words]
    assert not missing


def test_class_names_are_unique():
    seen = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                assert node.name not in seen, f"{node.name}: {module_of(path)}, {seen[node.name]}"
                seen[node.name] = module_of(path)


def test_files_of_a_room_import_in_one_order():
    edges = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        edges[module] = {
            m for m, _ in imports(path, runtime_only=True) if m.startswith("nbi_plus.")
        }
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
        used = [
            line
            for module, line in imports(path, runtime_only=True)
            if module.split(".")[0] == library
        ]
        allowed = where in DOORS[library] or where.split("/")[0] in DOORS[library]
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
        "import featurizers\n"
        "from nbi_plus import *\n"
        "assert state() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert 'astropy' not in sys.modules\n"
        "assert 'sklearn.mixture' not in sys.modules\n"
        "assert 'nflows.flows' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def modules_after(code):
    """Return what a process of its own has imported after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        check=True, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_import_waits_for_nothing_that_is_not_used():
    assert not modules_after("import nbi_plus") & {"torch", "numpy", "scipy", "sklearn", "pandas"}
    alone = modules_after("import nbi_plus\nnbi_plus.infer.hmc")
    assert not alone & {"scipy", "sklearn", "pandas", "h5py", "nbi_plus.engine"}
    assert not modules_after("import nbi_plus\nnbi_plus.Prior") & {"sklearn", "pandas"}


def test_the_stub_offers_what_is_there():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    offered = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom)
               for alias in node.names if alias.asname == alias.name}  # fmt: skip
    assert {*offered, *noise.__all__} == set(nbi_plus.__all__) <= set(dir(nbi_plus))
    for name in nbi_plus.__all__:
        made = getattr(nbi_plus, name)
        assert made.__name__.rpartition(".")[2] == name
        assert getattr(nbi_plus, name) is made
    with pytest.raises(AttributeError, match="no attribute 'kernels'"):
        _ = nbi_plus.kernels
