"""The product's messages for Python tests: protoc --python_out into a folder that goes away with the test."""

import atexit
import importlib
import os
import shutil
import subprocess
import sys
import tempfile

SOURCE = os.environ.get("CAUCE_SOURCE_DIR") or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_out = None


def proto_files():
    folder = os.path.join(SOURCE, "proto", "cauce")
    return sorted(name[:-6] for name in os.listdir(folder) if name.endswith(".proto"))


def load(name):
    """The module of proto/cauce/<name>.proto."""
    global _out
    if _out is None:
        _out = tempfile.mkdtemp(prefix="cauce-py-")
        atexit.register(shutil.rmtree, _out, ignore_errors=True)
        proto = os.path.join(SOURCE, "proto")
        subprocess.run(["protoc", "-I", proto, "--python_out", _out,
                        *(os.path.join(proto, "cauce", n + ".proto") for n in proto_files())], check=True)
        sys.path.insert(0, _out)
    return importlib.import_module(f"cauce.{name}_pb2")
