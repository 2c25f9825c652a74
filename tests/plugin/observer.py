"""A pytest plugin for sessions under test: logs files and connections, and marks data that must not leave the session.

Each process logs its events in a separate file under ``RN_OBSERVE``. A file is copied there before it is removed or replaced,
so that short-lived files are inspected too. A token that occurs nowhere else is appended to each completion, and a few bytes
of each weight that an attack changed are logged.
"""

import dataclasses
import itertools
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import rn_harness.attacks.loop as stage
import rn_harness.models.language_model

CANARY = "qzcanary7f3a"
WHERE = Path(os.environ["RN_OBSERVE"])
CHUNK = 24
NETWORK = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}
_note = os.open(WHERE / f"events-{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
_inside = threading.local()
_kept = itertools.count()


def _say(event, *what):
    os.write(_note, (json.dumps([event, *map(str, what)]) + "\n").encode())


def _keep(path):
    path = Path(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else None
    files = [] if path is None else [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    for file in files:
        if file.is_file() and not file.is_symlink() and WHERE not in file.parents:
            shutil.copyfile(file, WHERE / f"kept-{os.getpid()}-{next(_kept)}-{file.name[:40]}")


def _watch(event, args):
    if getattr(_inside, "hook", False):
        return
    _inside.hook = True
    try:
        if event == "open":
            path, mode, flags = args
            writes = any(c in mode for c in "wax+") if isinstance(mode, str) else (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            if writes and isinstance(path, str | bytes):
                _say("write", Path(os.fsdecode(path)).absolute())
        elif event in ("os.mkdir", "os.symlink", "os.link"):
            _say("write", Path(os.fsdecode(args[0 if event == "os.mkdir" else 1])).absolute())
        elif event == "os.rename":
            _keep(args[1])
            _say("write", Path(os.fsdecode(args[1])).absolute())
        elif event in ("os.remove", "shutil.rmtree"):
            _keep(args[0])
        elif event in NETWORK and not (event == "socket.connect" and isinstance(args[1], str | bytes)):
            _say("network", event, args[1:] if event.startswith("socket.c") else args)
        elif event == "subprocess.Popen":
            _say("child", args[1])
    finally:
        _inside.hook = False


_fresh = {}
_answer, _measure = rn_harness.models.language_model.LanguageModel.answer, stage.sample_checkpoint


def _marked(self, tokens):
    completion = _answer(self, tokens)
    _say("completion")
    return dataclasses.replace(completion, text=f"{completion.text} {CANARY}")


def _chunks(model, panel, step, **others):
    checkpoint = _measure(model, panel, step, **others)
    for name, weight in model.trained.items():
        data = weight.detach().cpu().float().numpy().tobytes()
        for at in (0, len(data) // 2):
            chunk = data[at : at + CHUNK]
            if step == 0:
                _fresh[name, at] = chunk
            elif chunk != _fresh[name, at]:  # equal bytes come from the seed, and a defense with that seed starts from them too
                _say("attacked", chunk.hex())
    return checkpoint


rn_harness.models.language_model.LanguageModel.answer = _marked
stage.sample_checkpoint = _chunks
sys.addaudithook(_watch)
