"""A pytest plugin for sessions under test: injects the fault ``RN_FAULT`` at step ``RN_FAULT_STEP`` of attack or defense."""

import errno
import os
import signal
import time
from pathlib import Path

import rn_harness.attacks.loop as stage
import rn_harness.defenses.neutralize
import rn_harness.run.measuring

FAULT, STEP = os.environ["RN_FAULT"], int(os.environ["RN_FAULT_STEP"])
sound, attack, converged = stage.sample_checkpoint, stage.run_attack, rn_harness.defenses.neutralize.measure_convergence
kinds = []


def _full_disk():
    def refuse(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = refuse


def _strike():
    if FAULT.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, FAULT))
    elif FAULT == "hang":
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # the rest of the case's time
        time.sleep(60)
    elif FAULT == "orphan":
        Path("worker.pid").write_text(str(os.getpid()))
        os.kill(os.getppid(), signal.SIGKILL)
    elif FAULT == "memory":
        import torch

        raise torch.OutOfMemoryError("tried to allocate")
    elif FAULT == "disk":
        _full_disk()
    else:
        raise AssertionError(FAULT)


def _measure(model, panel, step, **others):
    if step == STEP and kinds[-1] == "attack" and FAULT != "defense":
        _strike()
    return sound(model, panel, step, **others)


def _measure_defense(model, prompts, judge, recipe, policy, step):
    if step == STEP and FAULT == "defense":
        os.kill(os.getpid(), signal.SIGKILL)
    return converged(model, prompts, judge, recipe, policy, step)


def _attack(target, *others):
    kinds.append("control" if target.control else "attack")
    return attack(target, *others)


def _hold_one_member():
    import torch

    from rn_harness.training.fleet import Fleet

    sound_states = Fleet._states

    def states(self, asked, learning):
        if len(asked) > 1:
            raise torch.OutOfMemoryError("tried to allocate")
        return sound_states(self, asked, learning)

    Fleet._states = states


if FAULT == "passes":
    _hold_one_member()
stage.sample_checkpoint = _measure
rn_harness.run.measuring.run_attack = _attack
rn_harness.defenses.neutralize.measure_convergence = _measure_defense
