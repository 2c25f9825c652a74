"""The libraries below us in new processes, which import them all."""

from __future__ import annotations

import os
import subprocess
import sys

LEFT = """
import gc, weakref

class Model:
    pass

gc.disable()
left = Model()
left.itself, seen = left, weakref.ref(left)
del left
from rn_harness.models.transformers_compat import quiet_libraries
quiet_libraries()
assert gc.get_freeze_count() > 100_000
gc.collect()
assert seen() is None
"""


def test_earlier_garbage_in_cycles_is_freed() -> None:
    """Garbage from before quiet_libraries, such as a dropped model, is freed; only the libraries' objects are frozen."""
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


COUNTED = """
import gc

began = []
gc.callbacks.append(lambda phase, _: began.append(phase) if phase == "start" else None)
from rn_harness.models.transformers_compat import quiet_libraries
before = len(began)
quiet_libraries()
print(len(began) - before)
assert gc.isenabled()
"""


def test_libraries_are_imported_without_collections() -> None:
    """The collector does not go through the libraries' objects while they are made, but once before they are frozen."""
    done = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 10  # one in full, and few when it goes on; hundreds without the pause


def test_the_network_is_off_even_after_an_earlier_import() -> None:
    """The hub's client is set offline, without telemetry, even if it was imported first."""
    code = (
        "import huggingface_hub, huggingface_hub.constants as c; assert not c.HF_HUB_OFFLINE\n"
        "from rn_harness.models.transformers_compat import quiet_libraries; quiet_libraries()\n"
        "from huggingface_hub.utils import send_telemetry; import os, subprocess, sys\n"
        "print(huggingface_hub.is_offline_mode(), c.HF_HUB_DISABLE_TELEMETRY)\n"
        "child = 'import huggingface_hub as h; print(h.is_offline_mode(), h.constants.HF_HUB_DISABLE_TELEMETRY)'\n"
        "print(subprocess.run([sys.executable, '-c', child], capture_output=True, text=True).stdout)"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "DO_NOT", "DISABLE_TEL"))}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean).stdout
    assert told.split() == ["True"] * 4
