"""Print the dependencies that a pyproject.toml declares, one a line: all, or those with (without) given names.

python deploy/dependencies.py pyproject.toml [--only NAME...] [--except NAME...]
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Container
from pathlib import Path


def dependencies(pyproject: Path, only: Container[str] | None = None, without: Container[str] = ()) -> list[str]:
    """Return the requirements of `[project] dependencies`, in their order, chosen by the name that each begins with."""
    declared: list[str] = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    named = [(re.split(r"[^\w.-]", line, maxsplit=1)[0].lower(), line) for line in declared]
    return [line for name, line in named if (only is None or name in only) and name not in without]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pyproject", type=Path)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--except", nargs="+", default=[], dest="without")
    asked = parser.parse_args()
    sys.stdout.write("\n".join(dependencies(asked.pyproject, asked.only, asked.without)) + "\n")
