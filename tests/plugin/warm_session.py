"""A pytest session in a process that was forked from a warm parent; ``Workspace.run`` gives this text to ``exec``.

It is never imported: a session would list a module of this folder as foreign code.
``folder``, ``environment``, ``arguments`` and ``log`` (stdout and stderr) are given by the caller.
"""

import atexit
import gc
import os
import signal
import sys
import tempfile
import types

import pytest

folder, environment, arguments, log = (globals()[name] for name in ("folder", "environment", "arguments", "log"))
for number, path in enumerate(log, 1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
os.chdir(folder)
os.environ.clear()
os.environ |= environment
tempfile.tempdir = None
gc.freeze()
sys.argv = ["pytest", *arguments]
sys.path[:0] = [folder]
sys.modules["__main__"] = types.ModuleType("__main__")
sys.modules.pop("__mp_main__", None)
signal.signal(signal.SIGINT, signal.default_int_handler)
for name, module in list(sys.modules.items()):
    if "." not in name and "pytest" not in name:  # otherwise pytest warns that it cannot rewrite their assertions
        module.__doc__ = f"{module.__doc__} PYTEST_DONT_REWRITE"
try:
    code = pytest.main(arguments)
finally:
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
sys.exit(int(code))
