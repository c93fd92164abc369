"""What in the environment was probably meant for us, and has no effect as it stands."""

from collections.abc import Iterator, Mapping

from preemptd.config import PREFIX, variables

_NO_SETTINGS = frozenset({"SIGNAL_DIR", "ATTEMPT", "RESUMED", "STEP"})
"""Ours as well: those of the client, of hooks, of the file provider."""
_SIMILAR = 0.85


def warnings(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each. A variable that is like none of ours is not spoken of: plug-ins may have their own."""
    known = {name.removeprefix(PREFIX) for name in variables()}
    ours = {name.removeprefix(PREFIX) for name in environ if name.startswith(PREFIX)}
    for name in sorted(ours - known - _NO_SETTINGS):
        from difflib import get_close_matches  # loaded for those alone: a wrapper is judged by how soon it runs

        if similar := get_close_matches(name, known, n=1, cutoff=_SIMILAR):
            yield f"{PREFIX}{name} is no setting of ours: is {PREFIX}{similar[0]} meant?"
    number = environ.get("SLURM_JOB_ID", "")
    if number and not (number.isascii() and number.isdecimal()):
        yield f"SLURM_JOB_ID={number[:40]!r} is no number: this is not taken for a SLURM job"
