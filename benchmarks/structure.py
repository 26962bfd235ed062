"""How large is the package, and how far do the data travel? ``python -m benchmarks.structure``.

Prints what a reader meets: the widest folder, the longest module and function (without docstrings),
the imports and how many run against the order of the rooms, class names used twice, and how many
files the data of one object pass on their way from ``Engine.predict`` to its posterior.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus import Batch
from tests.test_architecture import MODULES, PACKAGE, floor_of, imports, module_of, name_of

GOAL = 14  # files that one parameter may pass
TOLERANCE = 1e-6  # by which data that were in single precision differ

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


class Size(NamedTuple):
    """How large something is, and what it is called."""

    n: int
    name: str

    def __str__(self) -> str:
        return f"{self.n}, {self.name}"


def widest_folder() -> Size:
    """Return the folder with the most modules."""
    counts = Counter(str(path.parent.relative_to(PACKAGE.parent)) for path in MODULES)
    name, n = counts.most_common(1)[0]
    return Size(n, name)


def longest_module() -> Size:
    """Return the module with the most lines, docstrings left out."""
    return max(Size(_length(tree, path.read_text()), name_of(path)) for path, tree in _trees())


def longest_function() -> Size:
    """Return the function with the most lines, its docstring left out."""
    return max(
        Size(node.end_lineno - node.lineno + 1 - _docstring(node), f"{name_of(path)}: {node.name}")
        for path, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    )


def import_counts() -> tuple[int, int]:
    """Return how many imports join two modules of the package, and how many go upwards."""
    known = {module_of(path) for path in MODULES}
    edges = {
        (module_of(path), module.removeprefix("nbi_plus."))
        for path in MODULES
        for module, _ in imports(path)
        if module.removeprefix("nbi_plus.") in known
    }
    upwards = [(a, b) for a, b in edges if a != "cli" and floor_of(b) > floor_of(a)]
    return len(edges), len(upwards)


def duplicate_classes() -> list[str]:
    """Return the names that more than one class of the package has."""
    counts = Counter(
        node.name for _, tree in _trees() for node in tree.body if isinstance(node, ast.ClassDef)
    )
    return sorted(name for name, n in counts.items() if n > 1)


def files_on_the_way(x_obs: np.ndarray, call: Callable[[np.ndarray], object]) -> dict[str, str]:
    """Return the files whose functions got the data during ``call(x_obs)``, and the first of each.

    A function got them if an argument, or the object that it is a method of, is the array, the
    `Observations` or the `Batch`, or a dataclass that holds one of them directly.
    """
    found: dict[str, str] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        file = code.co_filename.removeprefix(f"{PACKAGE}/")
        if event != "call" or file == code.co_filename or file in found:
            return
        if any(holds(value, x_obs) for value in _arguments(frame)):
            found[file] = code.co_name

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call(x_obs)
    finally:
        sys.setprofile(before)
    return found


def way_of_the_data() -> dict[str, str]:
    """Return the files that ``x_obs`` passes from `Engine.predict` to the posterior."""
    design = torch.linspace(-1, 1, 12, dtype=torch.float64) ** torch.arange(3)[:, None]
    engine = nbi.Engine(
        lambda theta: theta @ design.to(theta.dtype),
        nbi.Prior({name: norm(0, 1) for name in "abc"}),
        noise=nbi.GaussianNoise(sigma=0.3),
        seed=0,
    )
    engine.fit(n_sims=256, n_epochs=1)
    return files_on_the_way(np.linspace(-0.7, 0.8, 12), engine.predict)


def _trees() -> Iterator[tuple[Path, ast.Module]]:
    return ((path, ast.parse(path.read_text())) for path in MODULES)


def _length(tree: ast.Module, text: str) -> int:
    owners = (ast.Module, ast.ClassDef, *Function)
    return text.count("\n") - sum(_docstring(n) for n in ast.walk(tree) if isinstance(n, owners))


def _docstring(node: ast.AST) -> int:
    """Return the number of lines of its docstring."""
    text = ast.get_docstring(node)
    return len(text.splitlines()) if text else 0


def _arguments(frame: FrameType) -> list[object]:
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return [frame.f_locals[name] for name in names if name in frame.f_locals]


def holds(thing: object, x_obs: np.ndarray) -> bool:
    """Say whether a thing is the data in some form, or a dataclass that holds them directly."""
    if _is(thing, x_obs):
        return True
    if not is_dataclass(thing) or isinstance(thing, type):
        return False
    return any(_is(getattr(thing, field.name, None), x_obs) for field in fields(thing))


def _is(thing: object, x_obs: np.ndarray) -> bool:
    """Say whether a thing is the array, or the observations or the batch made of it."""
    if not isinstance(thing, nbi.Observations | Batch):
        return thing is x_obs
    values = np.asarray(thing.x, np.float64)
    return x_obs.size == values.size and np.allclose(values.ravel(), x_obs, atol=TOLERANCE)


def main() -> None:
    """Print the figures."""
    n_imports, n_upwards = import_counts()
    way = way_of_the_data()
    print(f"widest folder       {widest_folder()}")
    print(f"longest module      {longest_module()}")
    print(f"longest function    {longest_function()}")
    print(f"imports             {n_imports}, {n_upwards} against the order")
    print(f"class names twice   {', '.join(duplicate_classes()) or 'none'}")
    print(f"way of the data     {len(way)} files; the goal is {GOAL}")
    for file, function in way.items():
        print(f"    {file}: {function}")


if __name__ == "__main__":
    main()
