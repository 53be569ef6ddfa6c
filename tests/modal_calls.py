"""Calls of the loopback control plane: who runs them, who tries again, how they end.

For `.remote()` the client decides on retries, for `.spawn()` the server does, as with Modal. A container that ends
without an answer and without an error was interrupted: its call goes to another container and nothing is counted. One
that dies, or is past its timeout, has failed, which counts. To change what a lost container means, edit `ended`.
"""

import asyncio
import dataclasses
import signal
from typing import Any

from grpclib.const import Status
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2 as pb

from tests.modal_apps import App
from tests.modal_containers import Container, interrupt, kill, send
from tests.modal_objects import ObjectCalls

RESULT = pb.GenericResult
SUCCESS, FAILURE = RESULT.GENERIC_STATUS_SUCCESS, RESULT.GENERIC_STATUS_FAILURE
TERMINATED, TIMEOUT = RESULT.GENERIC_STATUS_TERMINATED, RESULT.GENERIC_STATUS_TIMEOUT


@dataclasses.dataclass
class Call:
    """One call of a function with one input."""

    identity: str
    app: App
    function_id: str
    function: pb.Function
    asynchronous: bool
    input: pb.FunctionInput
    retries: int = 0
    containers: int = 0
    output: pb.FunctionGetOutputsItem | None = None
    cancelled: bool = False
    news: asyncio.Condition = dataclasses.field(default_factory=asyncio.Condition)

    @property
    def invocation(self) -> Any:
        asynchronous, waiting = pb.FUNCTION_CALL_INVOCATION_TYPE_ASYNC, pb.FUNCTION_CALL_INVOCATION_TYPE_SYNC
        return asynchronous if self.asynchronous else waiting

    @property
    def input_id(self) -> str:
        return f"in-{self.identity}"


class FunctionCalls(ObjectCalls):
    """A control plane inherits it."""

    calls_by_id: dict[str, Call]
    closing: bool
    containers: list[Container]
    goodbyes: list[str]
    problems: list[str]
    grace_seconds: float

    # The caller's side.

    async def FunctionMap(self, request: pb.FunctionMapRequest, _: Container | None):
        function = self.functions_by_id[request.function_id]
        asynchronous = request.function_call_invocation_type == pb.FUNCTION_CALL_INVOCATION_TYPE_ASYNC
        app = self.apps[self.app_of[request.function_id]]
        (item,) = request.pipelined_inputs
        identity = f"fc-{len(self.calls_by_id) + 1:026}"
        call = Call(identity, app, request.function_id, function, asynchronous, item.input)
        self.calls_by_id[identity] = call
        self.schedule(call)
        response = pb.FunctionMapResponse(
            function_call_id=identity,
            retry_policy=function.retry_policy,
            function_call_jwt=identity,
            max_inputs_outstanding=1000,
            sync_client_retries_enabled=True,
        )
        response.pipelined_inputs.add(idx=item.idx, input_id=call.input_id, input_jwt=call.input_id)
        return response

    async def FunctionRetryInputs(self, request: pb.FunctionRetryInputsRequest, _: Container | None):
        call = self.calls_by_id[request.function_call_jwt]
        call.retries, call.output = call.retries + 1, None
        self.schedule(call)
        return pb.FunctionRetryInputsResponse(input_jwts=[call.input_id])

    async def FunctionGetOutputs(self, request: pb.FunctionGetOutputsRequest, _: Container | None):
        call = self._call(request.function_call_id)
        async with call.news:
            try:
                await asyncio.wait_for(call.news.wait_for(lambda: call.output is not None), request.timeout or 0.001)
            except TimeoutError:
                return pb.FunctionGetOutputsResponse(num_unfinished_inputs=1)
            return pb.FunctionGetOutputsResponse(outputs=[call.output])  # type: ignore[list-item]

    def _call(self, identity: str) -> Call:
        if identity not in self.calls_by_id:
            raise GRPCError(Status.NOT_FOUND, f"Function call {identity} not found")
        return self.calls_by_id[identity]

    async def FunctionCallFromId(self, request: pb.FunctionCallFromIdRequest, _: Container | None):
        call = self._call(request.function_call_id)
        metadata = pb.FunctionCallHandleMetadata(app_id=call.app.identity, function_id=call.function_id)
        return pb.FunctionCallFromIdResponse(function_call_id=call.identity, num_inputs=1, metadata=metadata)

    async def FunctionCallCancel(self, request: pb.FunctionCallCancelRequest, _: Container | None):
        call = self._call(request.function_call_id)
        if call.output is not None or call.cancelled:
            return
        call.cancelled = True
        workers = [one for one in self.containers if one.running and one.call_id == call.identity]
        for container in workers:
            if request.terminate_containers:
                kill(container)
            else:
                container.cancellation.set()
                self._kill_after_grace(container, call.identity)
        if not workers:
            await self.finish(call, pb.GenericResult(status=TERMINATED, exception="the call was cancelled"))

    async def AppClientDisconnect(self, request: pb.AppClientDisconnectRequest, _: Container | None):
        app = self.app(request.app_id)
        app.left = True
        self.goodbyes.append(pb.AppDisconnectReason.Name(request.reason).removeprefix("APP_DISCONNECT_REASON_"))
        if not app.detached:
            await self._stop(app)
        self.settle(app)

    async def AppStop(self, request: pb.AppStopRequest, _: Container | None):
        app = self.app(request.app_id)
        app.left = True
        await self._stop(app)
        self.settle(app)

    async def _stop(self, app: App) -> None:
        """Its containers are asked to end and later made to; what waits is given up."""
        app.stopped = True
        working = set()
        for container in self.containers:
            if container.app_id == app.identity and container.returncode is None:
                container.news.set()
                if container.running and container.call_id is not None:
                    working.add(container.call_id)
                    send([container.pid], signal.SIGINT)
                    self._kill_after_grace(container, container.call_id)
        for call in self.calls_by_id.values():
            if call.app is app and call.output is None and call.identity not in working:
                await self.finish(call, pb.GenericResult(status=TERMINATED, exception="the app was stopped"))

    def settle(self, app: App) -> None:
        """The app is over when nobody is there to call and nothing is left to run."""
        busy = any(one.app_id == app.identity and one.returncode is None for one in self.containers)
        pending = any(call.app is app and call.output is None for call in self.calls_by_id.values())
        if app.left and not pending:
            for container in self.containers:
                if container.app_id == app.identity and container.call_id is None:
                    container.news.set()  # It need not wait for more work.
        app.done = app.left and not busy and not pending
        self.tell(app)

    def _kill_after_grace(self, container: Container, call_id: str) -> None:
        def end() -> None:
            if container.running and container.call_id == call_id:
                kill(container)

        asyncio.get_running_loop().call_later(self.grace_seconds, end)

    def preempt(self, container: Container) -> None:
        """Interrupts a container, and makes it end when it does not within the grace period."""
        if container.running:
            container.dismissed = True
            interrupt(container)
            self._kill_after_grace(container, container.call_id or "")

    # How a call ends.

    async def finish(self, call: Call, result: pb.GenericResult, data_format: Any = pb.DATA_FORMAT_PICKLE) -> None:
        async with call.news:
            call.output = pb.FunctionGetOutputsItem(
                result=result, input_id=call.input_id, data_format=data_format, retry_count=call.retries
            )
            call.news.notify_all()
        self.settle(call.app)

    async def fail(self, call: Call, result: pb.GenericResult, data_format: Any = pb.DATA_FORMAT_PICKLE) -> None:
        policy = call.function.retry_policy
        if not call.asynchronous or call.retries >= policy.retries or call.app.stopped:
            await self.finish(call, result, data_format)
            return
        delay = policy.initial_delay_ms * policy.backoff_coefficient**call.retries / 1000
        call.retries += 1
        await asyncio.sleep(min(delay, policy.max_delay_ms / 1000 or delay))
        self.schedule(call)

    async def ended(self, container: Container) -> None:
        """A container is gone; if it still had a call, that call goes elsewhere, is tried again or has failed."""
        for mount in container.volume_mounts:
            written = mount.written()
            if written:
                self.problems.append(f"the read-only mount {mount.path} was written to: {sorted(written)}")
            mount.release()
        call_id, container.call_id = container.call_id, None
        if call_id is not None:
            call = self.calls_by_id[call_id]
            code = container.returncode
            if call.cancelled or call.app.stopped:
                await self.finish(call, pb.GenericResult(status=TERMINATED, exception="the call was cancelled"))
            elif container.timed_out:
                message = f"Task's current input in {call.input_id} hit its timeout of {call.function.timeout_secs}s"
                self.background(self.fail(call, pb.GenericResult(status=TIMEOUT, exception=message)))
            elif code == 0 or container.interrupted:
                self.schedule(call)
            else:
                message = f"Container {container.identity} ended with exit code {code} and no result"
                self.background(self.fail(call, pb.GenericResult(status=FAILURE, exception=message)))
        self.settle(self.apps[container.app_id])

    def schedule(self, call: Call) -> None:
        """Gives the call to a container that is free, or will ask for work soon; or starts one."""
        if self.closing or call.app.stopped or call.output is not None:
            return
        for container in self.containers:
            if container.free and container.function_id == call.function_id:
                container.call_id = call.identity
                container.news.set()
                return
        self.background(self.start(call))

    async def start(self, call: Call) -> None:
        raise NotImplementedError
