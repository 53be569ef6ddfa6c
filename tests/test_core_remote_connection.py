"""No token, no network, no client, or somebody else who answers: told in one line, soon."""

import importlib.metadata
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from core.remote_connection import Server, check_connection, first_answer, require_modal, server_of
from utils.errors import BackendError

REPOSITORY = Path(__file__).resolve().parents[1]


def test_an_empty_folder_named_modal_is_not_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = ModuleType("modal")
    empty.__path__ = ["modal"]
    monkeypatch.setitem(sys.modules, "modal", empty)
    with pytest.raises(BackendError, match="not the client: start from the project's root"):
        require_modal()

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("core.remote_connection.metadata.version", missing)
    with pytest.raises(BackendError, match=r"the modal client is not installed; .* pip install -e '.\[modal\]'"):
        require_modal()


def test_the_folder_modal_hides_nothing() -> None:
    import modal

    assert hasattr(modal, "App")
    assert "site-packages" in str(modal.__file__)
    assert not (REPOSITORY / "modal" / "__init__.py").exists()
    assert not (REPOSITORY / "modal" / "modal.py").exists()


def test_a_name_that_is_looked_up_for_ever_does_not_hold_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-1")
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-1")
    monkeypatch.setenv("MODAL_SERVER_URL", "https://api.modal.example")

    def connect(*_: object, **__: object) -> None:
        never.wait(60)
        raise OSError("too late")

    monkeypatch.setattr("core.remote_connection.socket.create_connection", connect)
    with pytest.raises(BackendError, match=r"cannot reach Modal at api.modal.example:443 \(no answer\)"):
        check_connection(seconds=0.05)
    never.set()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A token, and no proxy."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("MODAL_TOKEN_ID", "ak-1")
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-1")
    monkeypatch.delenv("MODAL_SERVER_URL", raising=False)
    return monkeypatch


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_the_servers_of_the_clients_own_settings(settings: pytest.MonkeyPatch) -> None:
    """The default is what everybody has who has set nothing: it names two servers."""
    tried: list[Server] = []
    settings.setattr(Server, "knock", lambda server, seconds: tried.append(server))
    check_connection()
    assert len(tried) >= 1
    assert all(server.host.startswith("api.modal") and server[1:] == (443, True) for server in tried)


def test_one_server_that_answers_is_enough(settings: pytest.MonkeyPatch, silent_port: int) -> None:
    dead = free_port()
    for urls in (
        f"http://127.0.0.1:{silent_port},http://127.0.0.1:{dead}",
        f"http://127.0.0.1:{dead}, http://127.0.0.1:{silent_port}",
    ):
        settings.setenv("MODAL_SERVER_URL", urls)
        check_connection()
    settings.setenv("MODAL_SERVER_URL", f"http://127.0.0.1:{dead},http://127.0.0.1:{free_port()}")
    with pytest.raises(
        BackendError, match=rf"cannot reach Modal at 127.0.0.1:{dead} or 127.0.0.1:\d+ \(Connection refused\)"
    ):
        check_connection()


def test_who_takes_the_call_and_does_not_speak_tls_is_not_modal(settings: pytest.MonkeyPatch, silent_port: int) -> None:
    settings.setenv("MODAL_SERVER_URL", f"https://127.0.0.1:{silent_port}")
    with pytest.raises(BackendError, match="cannot reach Modal at 127.0.0.1"):
        check_connection(seconds=0.2)


def test_a_proxy_is_asked_instead(settings: pytest.MonkeyPatch, silent_port: int) -> None:
    settings.setenv("HTTPS_PROXY", f"http://127.0.0.1:{silent_port}")
    check_connection()
    assert server_of("https://api.modal.com") == Server("127.0.0.1", silent_port, False)
    settings.setenv("NO_PROXY", "api.modal.com")
    assert server_of("https://api.modal.com") == Server("api.modal.com", 443, True)
    settings.setenv("HTTPS_PROXY", "127.0.0.1:3128")
    assert server_of("https://other.example") == Server("127.0.0.1", 3128, False)


@pytest.mark.parametrize("url", ["", "api.modal.com", "https://", "https://host:port"])
def test_what_is_no_url_is_told(settings: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(BackendError, match="which is no URL"):
        server_of(url)


def test_nobody_at_all() -> None:
    assert first_answer([], 0.1) == "no answer"
