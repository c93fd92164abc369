"""A cluster to look at by hand: `python -m tests.lab.slurm` opens a shell in it as the jobs' user; `exit` ends both."""

import argparse
import sys

from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--grace", type=int, default=20)
    parser.add_argument("--usersig", action="store_true")
    parser.add_argument("--extra", action="append", default=[], metavar="LINE", help="one more line of slurm.conf")
    parser.add_argument("command", nargs="*", default=["bash", "--norc"])
    given = parser.parse_args()
    options = Options(nodes=given.nodes, grace=given.grace, usersig=given.usersig, extra=given.extra)
    with Cluster(options) as cluster:
        return cluster.call(given.command)


sys.exit(main())
