"""slurm.conf and its companions for one cluster: private ports, key and directories, everything on loopback."""

import dataclasses
import os
import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab.slurm.namespace import HOSTNAME


@dataclasses.dataclass(frozen=True)
class Options:
    """What a test may ask of a cluster. Times in seconds."""

    nodes: int = 2
    cpus: int = 4
    """Processors that each virtual node claims; they need not exist."""
    grace: int = 20
    """GraceTime of the partitions low and lowkill."""
    kill_wait: int = 5
    """SLURM raises anything below 5 to 5."""
    usersig: bool = False
    """preempt_send_user_signal: the grace begins with the job's own --signal."""
    cred_expire: int = 5
    """A requeued job waits this long and a second more; SLURM takes nothing below 5."""
    extra: Sequence[str] = ()
    """More lines for slurm.conf."""
    readable: Sequence[str] = ()
    """More directories that jobs must be able to read, such as a test's tmp_path, which is root's alone."""

    def node_names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)]


class Ports:
    """Free ports of loopback, bound without listening: nobody else is given them, and SLURM may still listen there."""

    def __init__(self, count: int) -> None:
        self._sockets = []
        for _ in range(count):
            kept = socket.socket()
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind(("127.0.0.1", 0))
            self._sockets.append(kept)
        self.numbers = [int(kept.getsockname()[1]) for kept in self._sockets]

    def close(self) -> None:
        for kept in self._sockets:
            kept.close()


def write(state: Path, options: Options, ports: Sequence[int]) -> Path:
    """Write slurm.conf, cgroup.conf and the munge key into *state*; return the path of slurm.conf."""
    for name in ("munge", "ctld", "log", "run", "jobs", *(f"spool-{node}" for node in options.node_names())):
        (state / name).mkdir()
    key = state / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    # slurmd always loads a cgroup plugin: v1 touches nothing while no other plugin uses it; 23.02 learned `disabled`.
    (state / "cgroup.conf").write_text(f"CgroupPlugin={'disabled' if version() >= (23, 2) else 'cgroup/v1'}\n")
    conf = state / "slurm.conf"
    conf.write_text(
        "\n".join([*_daemons(state, options, ports[0]), *options.extra, *_nodes(options, ports[1:])]) + "\n"
    )
    return conf


def version() -> tuple[int, ...]:
    said = subprocess.run(["slurmd", "-V"], check=True, capture_output=True, text=True).stdout
    return tuple(int(number) for number in re.findall(r"\d+", said)[:2])


def _daemons(state: Path, options: Options, port: int) -> list[str]:
    return [
        "ClusterName=lab",
        f"SlurmctldHost={HOSTNAME}(127.0.0.1)",
        "SlurmUser=root",
        "SlurmdUser=root",
        f"SlurmctldPort={port}",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={state}/munge/socket,ttl=300,cred_expire={options.cred_expire}",
        "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
        f"StateSaveLocation={state}/ctld",
        f"SlurmdSpoolDir={state}/spool-%n",
        f"SlurmctldPidFile={state}/run/slurmctld.pid",
        f"SlurmdPidFile={state}/run/slurmd-%n.pid",
        f"SlurmctldLogFile={state}/log/slurmctld.log",
        f"SlurmdLogFile={state}/log/slurmd-%n.log",
        "SlurmctldDebug=verbose",
        "SlurmdDebug=verbose",
        "LogTimeFormat=iso8601_ms",
        "MailProg=/bin/true",
        "ProctrackType=proctrack/linuxproc",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU",
        "SlurmdParameters=config_overrides",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=sched_interval=1,bf_interval=1,requeue_setup_env_fail",
        "PriorityType=priority/basic",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        # From 23.02 it is also PreemptParameters=send_user_signal; the old name still works.
        *(["SlurmctldParameters=preempt_send_user_signal"] if options.usersig else []),
        "JobRequeue=1",
        f"KillWait={options.kill_wait}",
        "CompleteWait=0",
        "InactiveLimit=0",
        "MinJobAge=3600",  # finished jobs stay in squeue
        "ReturnToService=2",
        "SlurmctldTimeout=30",
        "SlurmdTimeout=30",
        "MessageTimeout=10",
        "EpilogMsgTime=0",
    ]


def _nodes(options: Options, ports: Sequence[int]) -> list[str]:
    common = f"NodeHostname={HOSTNAME} NodeAddr=127.0.0.1 CPUs={options.cpus} RealMemory=1000 State=UNKNOWN"
    low = "Nodes=ALL PriorityTier=1 DefaultTime=60 MaxTime=INFINITE"
    return [
        *(f"NodeName={node} Port={port} {common}" for node, port in zip(options.node_names(), ports, strict=True)),
        f"PartitionName=low Default=YES PreemptMode=REQUEUE GraceTime={options.grace} {low}",
        f"PartitionName=low0 PreemptMode=REQUEUE GraceTime=0 {low}",
        f"PartitionName=lowkill PreemptMode=CANCEL GraceTime={options.grace} {low}",
        "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF DefaultTime=60 MaxTime=INFINITE",
    ]
