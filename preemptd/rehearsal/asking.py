"""The command that the provider ``exec`` runs in a rehearsal: ``python -m preemptd.rehearsal.asking URL``.

It asks the page of `page.PageServer`. Exit status 75: the machine leaves, at the time that it prints; 0: it does not.
"""

import http.client
import sys
from urllib.parse import urlsplit

LEAVING = 75
WITHIN = 10.0


def ask(url: str) -> str | None:
    """Return when the machine leaves; None: it does not. Raises OSError or HTTPException where nobody answers."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=WITHIN)  # no proxy is asked on the way
    try:
        connection.request("GET", "/leaving")
        word, _, time = connection.getresponse().read().decode().strip().partition(" ")
    finally:
        connection.close()
    return time if word == "at" else None


def main(url: str) -> int:
    time = ask(url)
    if time is None:
        return 0
    sys.stdout.write(f"{time}\n")
    return LEAVING


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
