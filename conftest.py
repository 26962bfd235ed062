"""What is tested only where the package that it needs is there."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("pymc") else ["nbi_plus/pymc"]
