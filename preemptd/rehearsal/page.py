"""A page that says whether this machine leaves, for the providers ``http`` and ``exec``: not like any cloud's."""

from datetime import datetime, timezone

from preemptd.rehearsal.serving import MetadataServer, Reply, Request

PATH = "/leaving"


class PageServer(MetadataServer):
    """``no``, or ``at`` and a time."""

    event = "terminate"

    def answer(self, request: Request) -> Reply:
        if request.path != PATH:
            return Reply(404)
        self.announcement.looked()
        deadline = self.announcement.deadline
        if deadline is None:
            return Reply(200, b"no\n")
        return Reply(200, f"at {datetime.fromtimestamp(deadline, timezone.utc).isoformat()}\n".encode())
