"""EC2's metadata server in a network namespace; each line on its standard input announces the interruption."""

import sys

from preemptd.rehearsal.servers import Ec2Server
from preemptd.rehearsal.serving import Announcement

GRACE = 120.0
NEVER = 3600.0


def main() -> None:
    announcement = Announcement(NEVER, GRACE, None, lambda _: None)
    with Ec2Server(announcement, sys.argv[1], 80):
        print("ready", flush=True)
        for _ in sys.stdin:
            announcement.announce()
            print("announced", flush=True)


if __name__ == "__main__":
    main()
