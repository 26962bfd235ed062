"""nbi-plus: neural posterior estimation you can trust.

What it offers is imported when it is first asked for: processes that only simulate, and whoever
needs a sampler or a table alone, wait for nothing else. ``__init__.pyi`` says what there is, and
whence.
"""

import ast
import importlib
import importlib.util
from pathlib import Path

__version__ = "0.1.0"

_WHENCE = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text()).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
_NOISES = _WHENCE.pop("*")  # a room that lists its names itself


def __getattr__(name: str) -> object:
    """Import what is offered, or a room or module of the package."""
    if name == "__all__":
        return sorted({*_WHENCE, *importlib.import_module(_NOISES).__all__})
    room, public = f"{__name__}.{name}", not name.startswith("_")
    if public and importlib.util.find_spec(room):
        return importlib.import_module(room)
    if public and (name in _WHENCE or name in importlib.import_module(_NOISES).__all__):
        whence = importlib.import_module(_WHENCE.get(name, _NOISES))
        found = globals()[name] = getattr(whence, name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
