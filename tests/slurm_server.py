"""A Slurm of one node, private to the tests: own key, own ports, own folder; gone afterwards.

Partition main requeues its jobs when one of partition urgent wants their place, after a grace time.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from timing import HANGS_S

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=5
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=3
PartitionName=urgent Nodes={host} MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str:
    """Why there can be no private Slurm here; "" when there can."""
    missing = [name for name in PROGRAMS if _which(name) is None]
    if missing:
        return f"no {missing[0]} here (Debian: apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "a private Slurm needs root"


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@contextmanager
def slurm_server() -> Iterator[Path]:
    """Start it; yields its slurm.conf, which clients find by the variable SLURM_CONF."""
    # Not below pytest's folder: the path of a socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        ports = _free_ports(2)
        host = socket.gethostname().split(".")[0]
        conf = folder / "slurm.conf"
        conf.write_text(CONF.format(folder=folder, host=host, controller=ports[0], daemon=ports[1]))
        own = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log"}
        munge = [f"--{option}={folder / name}" for option, name in (own | {"seed-file": "seed"}).items()]
        environment = {**os.environ, "SLURM_CONF": str(conf)}
        for command in (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D", "-c"], ["slurmd", "-D"]):
            command[0] = _which(command[0]) or command[0]
            nowhere = subprocess.DEVNULL
            daemons.append(subprocess.Popen(command, env=environment, stdout=nowhere, stderr=nowhere))
            time.sleep(0.5)
        _wait_until_idle(folder, environment)
        yield conf
        subprocess.run(["scancel", "--me"], env=environment, check=False, capture_output=True)
        _wait_until_idle(folder, environment)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=HANGS_S)
        shutil.rmtree(folder)


def _wait_until_idle(folder: Path, environment: dict[str, str]) -> None:
    seen = None
    for _ in range(60):
        seen = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, check=False)
        if set(seen.stdout.split()) == {"idle"}:
            return
        time.sleep(0.5)
    logs = "\n".join(p.read_text()[-2000:] for p in folder.glob("*.log"))
    raise RuntimeError(f"Slurm is not idle: {seen}\n{logs}")


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()
