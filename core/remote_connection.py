"""Whether there is a way to Modal, found out in less time than its client takes: token, network, somebody who answers.

It looks for the mistakes a person makes, and sends nothing. What the servers say to the token is left to the client.
To look at something else first, add it to `check_connection`.
"""

import queue
import socket
import ssl
import threading
import time
import urllib.request
from importlib import metadata
from typing import Any, NamedTuple
from urllib.parse import urlparse

from utils.errors import BackendError

CONNECTION_SECONDS = 2.5


def require_modal() -> Any:
    """The modal client. Raises BackendError when it is not installed; an empty folder `modal` can be imported too."""
    try:
        metadata.version("modal")
        import modal
    except (metadata.PackageNotFoundError, ModuleNotFoundError) as error:
        raise BackendError("the modal client is not installed; to install it: pip install -e '.[modal]'") from error
    if not hasattr(modal, "App"):
        raise BackendError(
            f"`import modal` finds {list(modal.__path__)}, not the client: start from the project's root"
        )
    return modal


class Server(NamedTuple):
    """A server, or the proxy on the way to it."""

    host: str
    port: int
    is_encrypted: bool

    def knock(self, seconds: float) -> None:
        """Connect, as far as agreeing on HTTP/2. Raises OSError."""
        with socket.create_connection((self.host, self.port), timeout=seconds) as connection:
            if self.is_encrypted:
                # Who it is, the client checks; a portal or a proxy in the way does not speak its language.
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                context.set_alpn_protocols(["h2"])
                with context.wrap_socket(connection, server_hostname=self.host) as encrypted:
                    if encrypted.selected_alpn_protocol() != "h2":
                        raise ConnectionError("what answers there is not Modal")


def server_of(url: str) -> Server:
    """Where a URL leads: past this machine's proxy when there is one for it. Raises BackendError for no URL."""
    address = urlparse(url.strip())
    proxies = urllib.request.getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if proxy and address.hostname and not urllib.request.proxy_bypass(address.hostname):
        address, is_encrypted = urlparse(proxy if "://" in proxy else f"http://{proxy}"), False
    else:
        is_encrypted = address.scheme == "https"
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
    except ValueError:
        port = 0
    if not address.hostname or not port:
        raise BackendError(
            f"Modal's server is '{url}', which is no URL; look at MODAL_SERVER_URL and the proxy settings"
        )
    return Server(address.hostname, port, is_encrypted)


def check_connection(seconds: float = CONNECTION_SECONDS) -> None:
    """Raise BackendError within `seconds` when there is no token, or none of Modal's servers answers."""
    require_modal()
    from modal.config import config

    if not any(config.get(key) for key in ("token_id", "oauth_refresh_token")):
        raise BackendError("there is no Modal token on this machine; to get one: modal setup (or modal token set)")
    # The client's own default names two, of which one is enough.
    servers = [server_of(url) for url in str(config.get("server_url")).split(",")]
    problem = first_answer(servers, seconds)
    if problem is not None:
        tried = " or ".join(f"{server.host}:{server.port}" for server in servers)
        raise BackendError(f"cannot reach Modal at {tried} ({problem}): is there a network here?")


def first_answer(servers: list[Server], seconds: float) -> str | None:
    """None as soon as one of them answers, else what was wrong last."""
    answers: queue.Queue[str | None] = queue.Queue()

    def knock(server: Server) -> None:
        try:
            server.knock(seconds)
        except OSError as error:
            answers.put(str(error.strerror or error))
        else:
            answers.put(None)

    # Looking up a name has no timeout of its own.
    for server in servers:
        threading.Thread(target=knock, args=(server,), daemon=True).start()
    deadline, problem = time.monotonic() + seconds, "no answer"
    for _ in servers:
        try:
            found = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        if found is None:
            return None
        problem = found
    return problem
