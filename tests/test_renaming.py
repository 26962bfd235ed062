"""The page of renamed things tells the truth: the new are there, the old are gone."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "renaming.md"


def rows(title):
    """Return the pairs of one table of the page."""
    section = PAGE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", section, re.M)


MODULES = dict(rows("Modules"))


def found(path):
    """Return what a path stands for, a class's method too; None if it is not there."""
    parts = path.split(".")
    n_module = next(n for n in range(len(parts), 0, -1) if spec_of(".".join(parts[:n])) is not None)
    thing = importlib.import_module(f"nbi_plus.{'.'.join(parts[:n_module])}")
    for name in parts[n_module:]:
        thing = getattr(thing, name, None)
    return thing


def spec_of(module):
    """Return how a module would be imported; None if nothing is there."""
    try:
        return importlib.util.find_spec(f"nbi_plus.{module}")
    except ModuleNotFoundError:  # nor its folder
        return None


@pytest.mark.parametrize(("old", "new"), MODULES.items())
def test_modules_are_where_the_page_says(old, new):
    assert importlib.import_module(f"nbi_plus.{new}")
    spec = spec_of(old)
    is_folder = spec is not None and spec.submodule_search_locations
    assert spec is None or is_folder
    assert not is_folder or f"`{old}`" in PAGE.read_text().split("Eight of the old names")[1]


@pytest.mark.parametrize(("old", "new"), rows("Names"))
def test_names_are_where_the_page_says(old, new):
    assert found(new) is not None
    module, name = old.rsplit(".", 1)
    now = MODULES.get(module, module)
    assert not hasattr(importlib.import_module(f"nbi_plus.{now}"), name) or f"{now}.{name}" == new
