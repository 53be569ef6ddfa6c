"""The container's side of the loopback control plane: starting one, its input, its answer, its news of cancellation.

A container is started for one call, in a folder of its own, with what `modal_containers.py` describes. One that is not
for single use waits a while for another call of its function. The heartbeat is held until there is something to tell.
To hand containers something more, edit `start`.
"""

import asyncio
import contextlib
import itertools
from pathlib import Path

from modal_proto import api_pb2 as pb

from tests.modal_calls import FAILURE, TERMINATED, Call, FunctionCalls
from tests.modal_containers import Container, kill
from tests.modal_mounts import Mount
from tests.modal_volumes import VolumeCalls


class ContainerCalls(FunctionCalls, VolumeCalls):
    """A control plane inherits it."""

    background_commits: bool
    folder: Path
    idle_seconds: float
    numbers: "itertools.count[int]"
    starts: int
    """Containers that are there or on their way."""
    url: str

    async def start(self, call: Call) -> None:
        """Runs a container for a call, until nothing of it is left."""
        self.starts += 1
        try:
            await self._run(call)
        finally:
            self.starts -= 1

    async def _run(self, call: Call) -> None:
        identity = f"ta-{next(self.numbers)}"
        function = pb.Function()
        function.CopyFrom(call.function)
        container = Container(identity, self.folder / identity, call.app.identity, call.function_id, function)
        container.call_id = call.identity
        self._mount(container)
        environment = container.environment(*self.environment_of(function), self.url)
        container.files = self.lay_out(function, container.folder)
        (container.folder / "arguments.bin").write_bytes(self._arguments(container).SerializeToString())
        self.containers.append(container)
        await container.run(environment, lambda text, stream: self.log(call.app, text, stream, identity))
        await self.ended(container)

    def _mount(self, container: Container) -> None:
        """Copies every volume as it is now. The entrypoint itself commits at its end where the mount allows it."""
        for wanted in container.function.volume_mounts:
            wanted.allow_background_commits = self.background_commits
            local = container.folder / "volumes" / wanted.mount_path.strip("/")
            volume = self.volume(wanted.volume_id)
            mount = Mount(volume, wanted.mount_path, local, read_only=wanted.read_only, sub_path=wanted.sub_path)
            container.volume_mounts.append(mount)
            container.mounts[wanted.mount_path] = local

    def _arguments(self, container: Container) -> pb.ContainerArguments:
        function, identity = container.function, container.function_id
        objects = [pb.Object(object_id=identity, function_handle_metadata=self.handle(identity))]
        for dependency in function.object_dependencies:
            item = pb.Object(object_id=dependency.object_id)
            if dependency.object_id in self.volumes:
                item.volume_metadata.CopyFrom(self.volumes[dependency.object_id].metadata())
            elif dependency.object_id in self.source_mounts:
                item.mount_handle_metadata.CopyFrom(pb.MountHandleMetadata(content_checksum_sha256_hex="00"))
            objects.append(item)
        return pb.ContainerArguments(
            task_id=container.identity,
            function_id=identity,
            app_id=container.app_id,
            function_def=function,
            environment_name="main",
            app_layout=pb.AppLayout(objects=objects, function_ids={function.function_name: identity}),
        )

    async def FunctionGetInputs(self, _request: pb.FunctionGetInputsRequest, container: Container | None):
        assert container is not None
        app = self.apps[container.app_id]
        if container.call_id is None and not app.left:
            container.news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(container.news.wait(), self.idle_seconds)
        call = self.calls_by_id.get(container.call_id or "")
        if call is None or call.cancelled or app.stopped:
            container.dismissed = True
            return pb.FunctionGetInputsResponse(inputs=[pb.FunctionGetInputsItem(kill_switch=True)])
        call.containers += 1
        container.attempt, container.retries = call.containers, call.retries
        self._limit(container, call)
        item = pb.FunctionGetInputsItem(
            input_id=call.input_id, function_call_id=call.identity, input=call.input, retry_count=call.retries
        )
        item.function_call_invocation_type = call.invocation
        return pb.FunctionGetInputsResponse(inputs=[item])

    def _limit(self, container: Container, call: Call) -> None:
        """The timeout counts from when the input is handed over."""

        def end() -> None:
            if container.running and container.call_id == call.identity and call.retries == container.retries:
                container.timed_out = True
                kill(container)

        if call.function.timeout_secs:
            container.timer = asyncio.get_running_loop().call_later(call.function.timeout_secs, end)

    async def FunctionPutOutputs(self, request: pb.FunctionPutOutputsRequest, container: Container | None):
        assert container is not None
        for item in request.outputs:
            call = self.calls_by_id[item.input_id.removeprefix("in-")]
            if container.call_id != call.identity:
                continue  # Too late: it was given up before.
            container.call_id = None
            if container.timer is not None:
                container.timer.cancel()
            if call.cancelled:
                await self.finish(call, pb.GenericResult(status=TERMINATED, exception="the call was cancelled"))
            elif item.result.status == FAILURE:
                self.background(self.fail(call, item.result, item.data_format))
            else:
                await self.finish(call, item.result, item.data_format)

    async def TaskResult(self, request: pb.TaskResultRequest, container: Container | None):
        """The container could not even be set up, for instance since an import failed."""
        assert container is not None
        call = self.calls_by_id.get(container.call_id or "")
        if call is not None:
            container.call_id = None
            await self.finish(call, request.result)

    async def ContainerHeartbeat(self, _request: pb.ContainerHeartbeatRequest, container: Container | None):
        assert container is not None
        await container.cancellation.wait()
        container.cancellation.clear()
        event = pb.CancelInputEvent(input_ids=[f"in-{container.call_id}"])
        return pb.ContainerHeartbeatResponse(cancel_input_event=event)
