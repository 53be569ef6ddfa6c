"""Apps of the loopback control plane, and the stream of what their containers print.

An app is one `modal run`. Whoever follows its log is told when the app is over, the client of a detached app already
when it takes its leave. To answer another call about apps, add a method of its name.
"""

import asyncio
import dataclasses
import time
from collections.abc import Coroutine
from typing import Any

from grpclib.const import Status
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2 as pb

from tests.modal_containers import Container


@dataclasses.dataclass
class App:
    """One `modal run`, from its start until its last container is gone."""

    identity: str
    description: str
    detached: bool
    log: list[pb.TaskLogsBatch] = dataclasses.field(default_factory=list)
    left: bool = False
    """Whether the client is gone."""
    stopped: bool = False
    """Whether its containers have to end."""
    done: bool = False
    news: asyncio.Condition = dataclasses.field(default_factory=asyncio.Condition)
    created: float = dataclasses.field(default_factory=time.time)

    @property
    def state(self) -> Any:
        """As listings tell it."""
        alive = pb.APP_STATE_DETACHED if self.detached else pb.APP_STATE_EPHEMERAL
        return pb.APP_STATE_STOPPED if self.done else alive


class AppCalls:
    """A control plane inherits it."""

    apps: dict[str, App]

    async def AppCreate(self, request: pb.AppCreateRequest, _: Container | None):
        identity = f"ap-{len(self.apps) + 1:022}"  # The command line tells ids from names by their length.
        detached = request.app_state == pb.APP_STATE_DETACHED
        self.apps[identity] = App(identity, request.description, detached)
        return pb.AppCreateResponse(app_id=identity, app_page_url=f"http://127.0.0.1/apps/{identity}")

    async def EnvironmentGetOrCreate(self, _request: pb.EnvironmentGetOrCreateRequest, _: Container | None):
        settings = pb.EnvironmentSettings(image_builder_version="2025.06")
        metadata = pb.EnvironmentMetadata(name="main", settings=settings)
        return pb.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    async def AppList(self, _request: pb.AppListRequest, _: Container | None):
        response = pb.AppListResponse()
        for app in self.apps.values():
            response.apps.add(app_id=app.identity, description=app.description, state=app.state, created_at=app.created)
        return response

    async def AppGetLifecycle(self, request: pb.AppGetLifecycleRequest, _: Container | None):
        app = self.app(request.app_id)
        return pb.AppGetLifecycleResponse(lifecycle=pb.AppLifecycle(app_state=app.state, created_at=app.created))

    def app(self, identity: str) -> App:
        if identity not in self.apps:
            raise GRPCError(Status.NOT_FOUND, f"App '{identity}' not found")
        return self.apps[identity]

    def log(self, app: App, text: str, descriptor: int, task_id: str = "") -> None:
        """Adds to what the app's clients are shown."""
        item = pb.TaskLogs(data=text, file_descriptor=descriptor, timestamp=time.time())  # type: ignore[arg-type]
        app.log.append(pb.TaskLogsBatch(task_id=task_id, entry_id=str(len(app.log) + 1), items=[item]))
        self.tell(app)

    def tell(self, app: App) -> None:
        """Wakes whoever waits for news of an app."""

        async def wake() -> None:
            async with app.news:
                app.news.notify_all()

        self.background(wake())

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        raise NotImplementedError

    async def AppGetLogs(self, request: pb.AppGetLogsRequest, _: Container | None):
        app = self.app(request.app_id)
        position = int(request.last_entry_id or 0)
        left_before = app.left
        deadline = asyncio.get_running_loop().time() + request.timeout
        while True:
            while position < len(app.log):
                yield app.log[position]
                position += 1
            # A detached app goes on when its client leaves, but the client need not wait for it.
            if app.done or (app.left and app.detached and not left_before):
                yield pb.TaskLogsBatch(app_done=True)
                return
            remaining = deadline - asyncio.get_running_loop().time()
            if remaining <= 0:
                return
            async with app.news:
                if position == len(app.log) and not app.done:
                    try:
                        await asyncio.wait_for(app.news.wait(), remaining)
                    except TimeoutError:
                        return

    async def AppFetchLogs(self, request: pb.AppFetchLogsRequest, _: Container | None):
        return pb.AppFetchLogsResponse(batches=self.app(request.app_id).log[-request.limit or None :])
