"""Generates the message classes of candlewick.v1 from the server's own contract, whenever the package is built.

`python hatch_build.py` does it in place, for who works on the package without building it. Needs grpcio-tools.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
SOURCE = ROOT / "src"


def contract() -> Path:
    """The folder of the protos: the checkout's, or the copy that a source distribution carries."""
    for folder in (ROOT / "proto", ROOT.parents[1] / "proto"):
        if (folder / "candlewick/v1").is_dir():
            return folder
    raise SystemExit("candlewick/v1/*.proto is neither in the source distribution nor in the checkout")


def generate() -> None:
    """Writes src/candlewick/v1 and src/candlewick/details_pb2 anew."""
    import grpc_tools
    from grpc_tools import protoc

    googles = Path(grpc_tools.__file__).parent / "_proto"
    protos, package = contract(), SOURCE / "candlewick/v1"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir()
    (package / "__init__.py").write_text('"""The messages of candlewick.v1, generated."""\n')
    files = sorted(str(path.relative_to(protos)) for path in protos.glob("candlewick/v1/*.proto"))
    for includes, names in (([protos], files), ([SOURCE, googles], ["candlewick/details.proto"])):
        arguments = ["protoc", *(f"-I{folder}" for folder in includes), f"--python_out={SOURCE}", f"--pyi_out={SOURCE}"]
        if protoc.main([*arguments, *names]):
            sys.exit("the .proto files do not compile")


class Stubs(BuildHookInterface[Any]):
    """What hatchling runs before it builds a wheel, an editable one included."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """The source distribution carries the protos instead."""
        if self.target_name == "wheel":
            generate()


if __name__ == "__main__":
    generate()
