"""A root file system made of the files of Debian packages that this machine has: an image without a registry."""

import glob
import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("base-files", "bash", "coreutils", "dash", "grep", "libc-bin", "procps", "python3", "python3-pip", "sed")
"""All that is in the image, but for what they depend on."""
LEFT_OUT = {"debconf", "dpkg", "media-types", "perl-base", "tar", "tzdata"}
_NOT_NEEDED = re.compile(
    r"/usr/share/(doc|man|locale|info|lintian|bash-completion)/|/etc/(passwd|group|hosts|hostname)$"
)
_BY_CONFIGURATION = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d/x86_64-linux-gnu.conf")
_DIRECTORIES = {**dict.fromkeys(("dev", "etc", "proc", "run", "sys", "usr", "var", "wheels"), 0o755), "tmp": 0o1777}
_MERGED = ("bin", "sbin", "lib", "lib64")


def make_base(path: Path, wheels: Path) -> None:
    """Write the tar file *path*; *wheels* become /wheels."""
    kept = {file for package in _closure() for file in _files(package)} | set(_BY_CONFIGURATION)
    kept |= {compiled for file in kept if file.endswith(".py") for compiled in _compiled(file)}
    with tarfile.open(path, "w") as tar:
        for name, mode in _DIRECTORIES.items():
            _add_directory(tar, name, mode)
        for name in _MERGED:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        for file in sorted(kept):
            if os.path.lexists(file) and file.lstrip("/") not in (*_DIRECTORIES, *_MERGED):
                tar.add(file, file.lstrip("/"), recursive=False)
        _add_text(tar, "etc/passwd", "root:x:0:0::/:/bin/sh\n")
        _add_text(tar, "etc/group", "root:x:0:\n")
        for wheel in sorted(wheels.glob("*.whl")):
            tar.add(wheel, f"wheels/{wheel.name}")


def _closure() -> set[str]:
    depends, provides = _installed()
    seen: set[str] = set()
    left = list(PACKAGES)
    while left:
        name = left.pop()
        package = name if name in depends else provides.get(name, "")
        if not package or package in seen | LEFT_OUT:
            continue
        seen.add(package)
        for alternatives in depends[package]:
            left += [one for one in alternatives if one in depends or one in provides][:1]
    return seen


def _installed() -> tuple[dict[str, list[list[str]]], dict[str, str]]:
    """Return what each installed package depends on, as a list of alternatives, and who provides a virtual one."""
    shown = "${Package}\t${db:Status-Abbrev}\t${Depends}, ${Pre-Depends}\t${Provides}\n"
    query = subprocess.run(["dpkg-query", "-W", "-f", shown], capture_output=True, text=True, check=True)
    depends: dict[str, list[list[str]]] = {}
    provides: dict[str, str] = {}
    for package, status, needed, provided in (line.split("\t") for line in query.stdout.splitlines()):
        if status.startswith("ii"):
            depends[package] = [list(map(_name, one.split("|"))) for one in needed.split(",") if one.strip()]
            provides.update({_name(one): package for one in provided.split(",") if one.strip()})
    return depends, provides


def _name(text: str) -> str:
    return re.split(r"[ :(]", text.strip())[0]


def _files(package: str) -> Iterator[str]:
    listed = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if name.startswith("/") and name != "/." and not _NOT_NEEDED.match(name):
            # /bin/x is /usr/bin/x where /bin is a link.
            yield os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))


def _compiled(source: str) -> Iterator[str]:
    """Find what was made of *source* when its package was installed; without it each start would make it anew."""
    directory, name = os.path.split(source.removesuffix(".py"))
    yield from glob.glob(f"{directory}/__pycache__/{name}.cpython-*[0-9].pyc")


def _add_directory(tar: tarfile.TarFile, name: str, mode: int) -> None:
    directory = tarfile.TarInfo(name)
    directory.type, directory.mode = tarfile.DIRTYPE, mode
    tar.addfile(directory)


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    file = tarfile.TarInfo(name)
    file.size, file.mode = len(text), 0o644
    tar.addfile(file, io.BytesIO(text.encode()))


if __name__ == "__main__":
    make_base(Path(sys.argv[1]), Path(sys.argv[2]))
