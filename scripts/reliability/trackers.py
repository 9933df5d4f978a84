"""Trackers whose server is gone, slow or wrong, whose disk is full or place is taken, and whose library fails.

Whatever happens to them, a run has the results of one without a tracker, each failure is reported once, no process
stays, nobody but the server that the user named is asked, and its password is nowhere.
"""

import json
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

from reliability import Ending, fault_class
from reliability.injected import Fault, injected
from reliability.interruptions import RUN, ended

NAMES = ("csv", *(name for name in ("tensorboard", "mlflow", "wandb") if find_spec(name)))
SECRET, STAYS_S = "0123456789abcdef" * 3, 40.0
"""How long a process of a tracker may outlive its run, which waits 20 seconds for it, on a busy machine."""

LIBRARY = """
import os, signal, sys, threading, time, types
calls, FIRED = [0], __file__ + ".fired"
class Unprintable(Exception):
    def __str__(self): return 1 / 0
class Fake(types.ModuleType):
    __path__, __file__ = [], "fake"
    def __getattr__(self, name): return Fake(name)
    def __call__(self, *given, **named):
        calls[0] += 1
        if calls[0] == AT:
            open(FIRED, "w").close()
            FAULT
        return self
    __bool__, __sub__, __iter__, __setitem__ = lambda self: False, lambda *_: 0, lambda self: iter(()), __call__
of = ".compat.proto.event_pb2 .plugins.hparams.summary_v2 .summary.writer.event_file_writer".split()
for name in ("", ".compat", ".compat.proto", ".plugins", ".plugins.hparams", ".summary", ".summary.writer", *of):
    sys.modules[__name__ + name] = Fake(name)
"""
RAISED = (
    *("raise ValueError('a fault')", "raise Unprintable", "raise SystemExit(0)", "raise SystemExit('bye')"),
    *("raise KeyboardInterrupt", "raise MemoryError", "raise RecursionError", "raise ValueError('x' * 10**6)"),
    *("raise ValueError('two\\nlines \\x1b[2J')", "os._exit(0)", "os._exit(3)", "os.abort()", "time.sleep(3600)"),
    *(f"os.kill(os.getpid(), signal.SIG{name})" for name in ("KILL", "STOP", "TERM")),
    *("threading.Thread(target=time.sleep, args=(3600,)).start(); raise OSError(28, 'full')", "sys.stdin.close(); 1/0"),
    "[print('x' * 10**6) for _ in range(200)]; raise ValueError('after much text')",
)
BODIES = (b"", b"{}", b"[]", b"null", b"<html>", b"[" * 10**5, b"\xff\xfe", b'{"run": {"info": 1}}', b"x" * 20_000_000)
ANSWERS = ("gone", "silent", "late", "drip", "no HTTP", "cut", 200, 200, 200, 301, 401, 404, 429, 500, 503)

Faulty = Callable[[random.Random, str, Path, Path, dict[str, str], ExitStack], str]


def _server(draw: random.Random, name: str, own: Path, run: Path, env: dict[str, str], until: ExitStack) -> str:
    """A server that the environment names, of this process."""
    how, body = draw.choice(ANSWERS), draw.choice(BODIES)

    class Odd(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            head = b"".join(iter(self.rfile.readline, b"\r\n"))
            self.rfile.read(int((re.findall(rb"(?i)content-length: *(\d+)", head) or [b"0"])[0]))
            time.sleep(60 if how == "late" else 0)
            status, length = how if isinstance(how, int) else 200, len(body) + (how in ("drip", "cut"))
            lines = (f"HTTP/1.1 {status} x", f"Content-Length: {length}", "Location: /", "Retry-After: 86400", "", "")
            self.wfile.write(b"\0" * 99 if how == "no HTTP" else "\r\n".join(lines).encode() + body)
            time.sleep(60 if how == "drip" else 0)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd, bind_and_activate=how not in ("gone", "silent"))
    server.handle_error = lambda *given: None  # type: ignore[method-assign]
    until.callback(server.server_close)
    if how in ("gone", "silent"):
        server.server_bind()
        server.socket.listen() if how == "silent" else None
    else:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        until.callback(server.shutdown)
    env |= {"MLFLOW_TRACKING_URI": f"http://me:{SECRET}@127.0.0.1:{server.server_address[1]}", "WANDB_MODE": "online"}
    env |= {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_address[1]}", "WANDB_API_KEY": SECRET}
    return f"a server that answers {how} {body[:20]!r}"


def _library(draw: random.Random, name: str, own: Path, run: Path, env: dict[str, str], until: ExitStack) -> str:
    """The library does something at one of its calls."""
    raised, at = draw.choice(RAISED), draw.choice((1, 1, 2, 3, 4, 6, 9))
    code = LIBRARY.replace("AT", str(at)).replace("FAULT", raised)
    (own / "site" / f"{name}.py").write_text(code, encoding="utf-8")
    env["MLFLOW_TRACKING_URI"] = "fake"
    return f"call {at} of the library: {raised[:60]}"


def _disk(draw: random.Random, name: str, own: Path, run: Path, env: dict[str, str], until: ExitStack) -> str:
    """No file that the tracker writes may be larger."""
    most = draw.choice((0, 100, 1000, 10_000, 100_000))
    code = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n"
    (own / "site" / "sitecustomize.py").write_text(code, encoding="utf-8")
    env["PYTHONDONTWRITEBYTECODE"] = "1"  # Python keeps what it could write of a module, and cannot read that later
    return f"files of at most {most} bytes"


def _place(draw: random.Random, name: str, own: Path, run: Path, env: dict[str, str], until: ExitStack) -> str:
    """Something else is where the tracker writes."""
    mine = run / "tracking" / {"csv": "metrics.csv"}.get(name, name)
    mine = run.parents[1] / "mlflow.db" if name == "mlflow" else mine
    victim = draw.choice((run / "tracking", run / "tracking" / f"{name}.log", mine, mine))
    how = draw.choice(("file", "folder", "pipe", "link", "link")) if victim.suffix != ".db" else "file"
    victim.parent.mkdir(parents=True)
    if how == "link":
        victim.symlink_to(own / "outside")
    elif how == "pipe":
        os.mkfifo(victim)
    else:
        victim.mkdir() if how == "folder" else victim.write_text("not what is expected", encoding="utf-8")
    return f"{victim.name} is a {how}"


def _of(own: Path, listening: bool = False) -> list[str]:
    """The processes that trackers of this case have started, which inherit its environment; those that listen."""
    rows = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()]
    sockets, found = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}, []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(own).encode() in (path / "environ").read_bytes():
                open_files = {os.readlink(fd) for fd in (path / "fd").glob("*")} if listening else sockets
                found += [path.name] if not listening or open_files & sockets else []
    return found


def _words(own: Path, name: str) -> list[str]:
    return [*RUN, "trainer.keep_last=true", f"outputs={own / 'outputs'}", f"tracking={name}"]


def _metrics(own: Path) -> bytes:
    return next(own.glob("outputs/s/*/tracking/metrics.csv")).read_bytes()


def prepare(made: Path) -> None:
    """A run without a tracker, and one with csv."""
    for name in ("none", "csv"):
        (made / name).mkdir()
        said, calls, _ = injected(_words(made / name, name), Fault(), made / name)
        if said.code != 0 or said.err:
            raise RuntimeError(f"the run was not made: {said}")
    (made / "whole.json").write_text(json.dumps({"calls": len(calls), "files": ended(made / "none")}), encoding="utf-8")


@fault_class(
    "trackers whose server, disk, place or library fails, of runs that may be killed and continued", 500, prepare
)
def trackers(draw: random.Random, made: Path, own: Path) -> Ending:
    name = draw.choice(NAMES)
    ways: list[Faulty | None] = [_disk, _place, None]
    ways += [_library] * 2 * (name != "csv") + [_server] * 3 * (name in ("mlflow", "wandb"))
    faulty, kills = draw.choice(ways), draw.choice((0, 0, 0, 1, 2))
    run = own / "outputs" / "s" / next((made / "csv" / "outputs" / "s").glob("*-*")).name
    words, whole = _words(own, name), json.loads((made / "whole.json").read_text(encoding="utf-8"))
    for folder in ("site", "home", "outside"):
        (own / folder).mkdir()
    env, listening, over = {"PYTHONPATH": f"{own}/site", "HOME": f"{own}/home"}, list[str](), threading.Event()

    def listen() -> None:
        while not over.wait(0.5):
            listening.extend(_of(own, listening=True))

    with ExitStack() as until:
        others = until.enter_context(socket.create_server(("127.0.0.1", 0)))
        others.setblocking(False)
        env |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), f"http://127.0.0.1:{others.getsockname()[1]}")
        env |= {"NO_PROXY": "127.0.0.1"}
        what = f"{name}: {faulty(draw, name, own, run, env, until) if faulty else 'nothing'}"
        threading.Thread(target=listen).start()
        until.callback(over.set)
        for _ in range(kills):
            _, calls, _ = injected(words, Fault("kill", draw.randint(1, whole["calls"])), own, env)
            what += f"; killed at {' '.join(calls[-1:])}"
        for path in (own / "site").glob("*.fired"):
            path.unlink()
        said, _, _ = injected(words, Fault(), own, env)
        latest = time.monotonic() + STAYS_S
        while (stayed := _of(own)) and time.monotonic() < latest:
            time.sleep(0.2)
        for pid in stayed:
            os.kill(int(pid), signal.SIGKILL)
        with suppress(BlockingIOError):
            listening.append(str(others.accept()[1]))
    seen = f"exit code {said.code}\n{said.err[-1500:]}"
    if said.fault or said.code != 0:
        return Ending(said.fault.partition(":")[0] or "lost", what, f"{said.fault}\n{seen}")
    written = [path for path in own.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    if listening or written or any((own / "outside").iterdir()):
        return Ending("escape", what, f"listens: {listening}; the password is in {written}\n{seen}")
    if stayed:
        return Ending("hang", what, f"processes {stayed} stay\n{seen}")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    failures = [line for line in record["warnings"] if line.startswith(f"tracking={name} failed")]
    sure = not kills and (faulty is _server or [*(own / "site").glob("*.fired")])
    told = said.err.count(f"tracking={name} failed")  # a run that was killed when it was done is not continued
    if (told != len(failures) and not kills) or max(told, len(failures)) > 1 or (sure and not failures):
        return Ending("lie", what, f"reported {failures}\n{seen}")
    if name == "csv" and not failures and _metrics(own) != _metrics(made / "csv"):
        return Ending("lie", what, f"another metrics.csv\n{seen}")
    record["warnings"] = [line for line in record["warnings"] if line not in failures]
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace(f"tracking:\n- {name}\n", "tracking: []\n"), encoding="utf-8")
    found = {path: sha for path, sha in ended(own).items() if path in whole["files"]}
    if other := [
        path for path, sha in whole["files"].items() if found.get(path) != sha and not path.startswith("cache/")
    ]:
        return Ending("lie", what, f"other content: {other}\n{seen}")
    return Ending("reported" if failures else "same", what, seen)
