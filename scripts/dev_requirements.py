"""Prints what pyproject.toml asks for to build and to test, for pip-compile, which reads neither itself."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())
wanted = [*project["build-system"]["requires"], *project["dependency-groups"]["dev"]]
sys.stdout.writelines(f"{requirement}\n" for requirement in wanted)
