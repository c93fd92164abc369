"""Bytes of a stream, cut into lines of bounded length; standard library only, for the trainer loads it too."""


class LineTooLongError(ValueError):
    """The other side sent more than the limit without a line feed: nothing sensible can follow."""


class Lines:
    """Keeps the unfinished end of what came in until its line feed arrives."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""

    @property
    def unfinished(self) -> bool:
        return bool(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Add *data* and return the lines that are complete now, without line feeds and without empty ones.

        Raises:
            LineTooLongError: a line, finished or not, is longer than the limit.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > self._limit or any(len(line) > self._limit for line in lines):
            raise LineTooLongError(f"a line is longer than {self._limit} bytes")
        return [line for line in lines if line.strip()]
