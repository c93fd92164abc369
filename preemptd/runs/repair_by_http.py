"""Ends a run anew by what wandb itself sends to the server, where wandb cannot be used. It runs as the training's user.

A program by itself (``python -c``), standard library only, Python 3.8 and later: the key and the settings of another
user must be read with that user's rights, and a name server that hangs must be killable. Its argument is JSON: entity,
project, run_id, code, cwd, home (may the files of the home directory be used), end (time.monotonic() by which it must
have answered: one clock for all processes, and it may take long to start), answer (a descriptor that gets one line of
JSON).
"""

import sys

sys.path[:] = [entry for entry in sys.path if entry]  # with -c the first entry is the working directory

import base64  # noqa: E402
import configparser  # noqa: E402
import json  # noqa: E402
import netrc  # noqa: E402
import os  # noqa: E402
import ssl  # noqa: E402
import time  # noqa: E402
import urllib.error  # noqa: E402
import urllib.parse  # noqa: E402
import urllib.request  # noqa: E402

PUBLIC = "https://api.wandb.ai"
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 3.0
REQUEST_WITHIN = 10.0
TO_ANSWER = 0.2
"""Seconds that are kept for saying why it did not work."""


class HopelessError(Exception):
    """Why it is of no use to try again."""


class Server:
    """Where to post to, as whom, and until when."""

    def __init__(self, base: str, key: str, end: float) -> None:
        self.base = base
        self._end = end
        self._opener = urllib.request.build_opener(NoRedirect, urllib.request.HTTPSHandler(context=trust()))
        self._headers = {
            "Authorization": "Basic " + base64.b64encode(("api:" + key).encode()).decode(),
            "Content-Type": "application/json",
            "User-Agent": "preemptd",
        }

    def post(self, path: str, body: "dict[str, object]") -> bytes:
        """Post until it is answered."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, self._headers, method="POST")  # noqa: S310 - checked
        pause, why = FIRST_PAUSE, "no time left"
        while True:
            left = self._end - time.monotonic()
            if left <= 0:
                raise HopelessError(why)
            try:
                with self._opener.open(request, timeout=min(left, REQUEST_WITHIN)) as response:
                    answer: bytes = response.read(1 << 20)
                    return answer
            except urllib.error.HTTPError as error:
                error.close()
                why = f"the server answers {error.code}"
                if error.code not in (408, 429) and error.code < 500:
                    raise HopelessError(why) from None
            except Exception as error:  # noqa: BLE001 - OSError, ValueError, and http.client has its own kind
                reason = getattr(error, "reason", error)
                why = f"no network: {getattr(reason, 'strerror', None) or type(reason).__name__}"
            time.sleep(max(0.0, min(pause, self._end - time.monotonic())))
            pause = min(2 * pause, LONGEST_PAUSE)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key elsewhere."""

    def redirect_request(self, *_args: object) -> None:
        return None


def main() -> None:
    request = json.loads(sys.argv[1])
    try:
        os.chdir(request["cwd"])
    except OSError:
        os.chdir("/")
    try:
        repair(request)
        why = ""
    except HopelessError as error:
        why = str(error)
    os.write(request["answer"], (json.dumps({"ok": not why, "why": why[:300]}) + "\n").encode())


def repair(request: "dict[str, object]") -> None:
    settings = read_settings() if request["home"] else {}
    base = (os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or PUBLIC).rstrip("/")
    if urllib.parse.urlsplit(base).scheme not in ("http", "https"):
        raise HopelessError("no network: the server's address is no URL")
    key = os.environ.get("WANDB_API_KEY") or settings.get("api_key") or (read_netrc(base) if request["home"] else "")
    if not key:
        raise HopelessError("no key: neither WANDB_API_KEY nor a netrc entry for the server")
    server = Server(base, key, float(str(request["end"])) - TO_ANSWER)
    entity = str(request["entity"] or os.environ.get("WANDB_ENTITY") or default_entity(server))
    names = [urllib.parse.quote(str(name), safe="") for name in (entity, request["project"], request["run_id"])]
    path = "/files/{}/{}/{}/file_stream".format(*names)
    server.post(path, {"preempting": True})
    server.post(path, {"complete": True, "exitcode": request["code"]})


def default_entity(server: Server) -> str:
    """Ask who is logged in, as wandb does for a run that names no entity."""
    body: dict[str, object] = {"query": "query Viewer { viewer { entity } }", "variables": {}}
    answer = server.post("/graphql", body)
    try:
        entity = json.loads(answer)["data"]["viewer"]["entity"]
    except (ValueError, KeyError, TypeError):
        entity = None
    if not isinstance(entity, str) or not entity:
        raise HopelessError("no entity: the run names none, and the server does not say whose it is")
    return entity


def trust() -> ssl.SSLContext:
    """Trust whom the training trusted."""
    context = ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE") or None)
    if os.environ.get("WANDB_INSECURE_DISABLE_SSL", "").lower() in ("1", "true"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def read_settings() -> "dict[str, str]":
    """Read wandb's own settings files: of the user, then of the directory."""
    config = os.environ.get("WANDB_CONFIG_DIR") or os.path.expanduser("~/.config/wandb")
    found: dict[str, str] = {}
    for path in (os.path.join(config, "settings"), os.path.join("wandb", "settings")):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(path)
            found.update(parser.items("default"))
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
    return found


def read_netrc(base: str) -> str:
    host = urllib.parse.urlsplit(base).netloc
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            entry = netrc.netrc(os.path.expanduser(path)).authenticators(host) if path else None
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        if entry and entry[2]:
            return entry[2]
    return ""


main()
