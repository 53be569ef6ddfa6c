"""What clients create on the loopback control plane: images, mounted files, secrets, functions and their options.

Everything is recorded as the protobuf that arrived, for tests to assert on: which GPU, which timeout, which volumes.
Images are built at once, and nothing runs of their recipe but its `ENV` lines. To answer another call, add a method of
its name to one of the classes that a control plane inherits.
"""

from pathlib import Path

from grpclib.const import Status
from grpclib.exceptions import GRPCError
from modal_proto import api_pb2 as pb

from tests.modal_apps import AppCalls
from tests.modal_blocks import Blocks
from tests.modal_containers import Container, image_environment

PICKLE = [pb.DATA_FORMAT_PICKLE]
RESERVED = ("resources", "volume_mounts", "secret_ids", "mount_ids", "replace_volume_mounts", "replace_secret_ids")
"""Options that do not simply replace the function's field of the same name."""


class ObjectCalls(AppCalls):
    """A control plane inherits it."""

    blocks: Blocks
    images: dict[str, pb.Image]
    files: dict[str, bytes]
    source_mounts: dict[str, list[pb.MountFile]]
    secrets: dict[str, dict[str, str]]
    secret_values: dict[str, dict[str, str]]
    functions_by_id: dict[str, pb.Function]
    app_of: dict[str, str]
    bound: dict[str, pb.FunctionOptions]

    # Images, files, secrets, long arguments.

    async def ImageGetOrCreate(self, request: pb.ImageGetOrCreateRequest, _: Container | None):
        identity = f"im-{len(self.images) + 1}"
        self.images[identity] = request.image
        return pb.ImageGetOrCreateResponse(
            image_id=identity,
            metadata=pb.ImageMetadata(image_builder_version=request.builder_version),
            result=pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS),
        )

    def image_lines(self, identity: str) -> list[str]:
        """The whole recipe of an image, its bases first."""
        image = self.images.get(identity)
        if image is None:
            return []
        before = [line for base in image.base_images for line in self.image_lines(base.image_id)]
        return before + list(image.dockerfile_commands)

    async def MountBatchedCheckExistence(self, request: pb.MountBatchedCheckExistenceRequest, _: Container | None):
        missing = [digest for digest in request.sha256_hex_hashes if digest not in self.files]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def MountPutFile(self, request: pb.MountPutFileRequest, _: Container | None):
        kind = request.WhichOneof("data_oneof")
        if kind == "data":
            self.files[request.sha256_hex] = request.data
        elif kind == "data_blob_id":
            self.files[request.sha256_hex] = self.blocks.blob(request.data_blob_id)
        return pb.MountPutFileResponse(exists=request.sha256_hex in self.files)

    async def MountGetOrCreate(self, request: pb.MountGetOrCreateRequest, _: Container | None):
        identity = f"mo-{len(self.source_mounts) + 1}"
        self.source_mounts[identity] = list(request.files)
        metadata = pb.MountHandleMetadata(content_checksum_sha256_hex="00")
        return pb.MountGetOrCreateResponse(mount_id=identity, handle_metadata=metadata)

    def lay_out(self, function: pb.Function, folder: Path) -> list[str]:
        """Writes the mounted files below `folder`; returns their paths in the container."""
        laid = []
        for identity in function.mount_ids:
            for file in self.source_mounts.get(identity, []):
                place = folder / file.filename.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(self.files[file.sha256_hex])
                laid.append(file.filename)
        return sorted(laid)

    async def SecretGetOrCreate(self, request: pb.SecretGetOrCreateRequest, _: Container | None):
        values = dict(request.env_dict)
        if request.object_creation_type == pb.OBJECT_CREATION_TYPE_UNSPECIFIED:
            name = request.deployment_name
            if name not in self.secrets:
                raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' not found in environment 'main'")
            values = self.secrets[name]
            lacking = [key for key in request.required_keys if key not in values]
            if lacking:
                raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' lacks the required keys {lacking}")
        identity = f"st-{len(self.secret_values) + 1}"
        self.secret_values[identity] = values
        return pb.SecretGetOrCreateResponse(secret_id=identity)

    async def BlobCreate(self, request: pb.BlobCreateRequest, _: Container | None):
        name, url = self.blocks.new_blob()
        return pb.BlobCreateResponse(blob_ids=[name], upload_urls=pb.UploadUrlList(items=[url]))

    async def BlobGet(self, request: pb.BlobGetRequest, _: Container | None):
        return pb.BlobGetResponse(download_url=self.blocks.blob_url(request.blob_id))

    # Functions.

    def handle(self, identity: str) -> pb.FunctionHandleMetadata:
        function = self.functions_by_id.get(identity)
        return pb.FunctionHandleMetadata(
            function_name=function.function_name if function else "",
            function_type=pb.Function.FUNCTION_TYPE_FUNCTION,
            definition_id="de-1",
            app_id=self.app_of.get(identity, ""),
            supported_input_formats=PICKLE,
            supported_output_formats=PICKLE,
        )

    async def FunctionPrecreate(self, request: pb.FunctionPrecreateRequest, _: Container | None):
        identity = request.existing_function_id or f"fu-{len(self.functions_by_id) + 1}"
        self.app_of[identity] = request.app_id
        self.functions_by_id.setdefault(identity, pb.Function(function_name=request.function_name))
        return pb.FunctionPrecreateResponse(function_id=identity, handle_metadata=self.handle(identity))

    async def FunctionCreate(self, request: pb.FunctionCreateRequest, _: Container | None):
        identity = request.existing_function_id or f"fu-{len(self.functions_by_id) + 1}"
        plain = request.HasField("function")
        function = request.function if plain else request.function_data.ranked_functions[0].function
        self.app_of[identity] = request.app_id
        self.functions_by_id[identity] = function
        response = pb.FunctionCreateResponse(
            function_id=identity, function=function, handle_metadata=self.handle(identity)
        )
        if plain:
            response.function_data.ranked_functions.add(rank=0).function.CopyFrom(function)
        else:
            response.function_data.CopyFrom(request.function_data)
        return response

    async def FunctionBindParams(self, request: pb.FunctionBindParamsRequest, _: Container | None):
        identity = f"fu-{len(self.functions_by_id) + 1}"
        base = self.functions_by_id[request.function_id]
        self.functions_by_id[identity] = with_options(base, request.function_options)
        self.app_of[identity] = self.app_of[request.function_id]
        self.bound[identity] = request.function_options
        return pb.FunctionBindParamsResponse(bound_function_id=identity, handle_metadata=self.handle(identity))

    async def ClassCreate(self, _request: pb.ClassCreateRequest, _: Container | None):
        return pb.ClassCreateResponse(class_id="cs-1", handle_metadata=pb.ClassHandleMetadata())

    def environment_of(self, function: pb.Function) -> tuple[dict[str, str], dict[str, str]]:
        """What the image and the secrets put into a container's environment."""
        secrets: dict[str, str] = {}
        for identity in function.secret_ids:
            secrets |= self.secret_values[identity]
        return image_environment(self.image_lines(function.image_id)), secrets


def with_options(base: pb.Function, options: pb.FunctionOptions) -> pb.Function:
    """The function as it runs under `with_options`: volumes and secrets replace, resources are merged."""
    function = pb.Function()
    function.CopyFrom(base)
    if options.HasField("resources"):
        if options.resources.HasField("gpu_config"):
            function.resources.ClearField("gpu_config")
        function.resources.MergeFrom(options.resources)
    for name in ("volume_mounts", "secret_ids"):
        if getattr(options, f"replace_{name}"):
            function.ClearField(name)  # type: ignore[arg-type]
        getattr(function, name).extend(getattr(options, name))
    fields = function.DESCRIPTOR.fields_by_name
    for field, value in options.ListFields():
        if field.name not in RESERVED and field.name in fields:
            if field.message_type is None:
                setattr(function, field.name, value)
            else:
                getattr(function, field.name).CopyFrom(value)
    return function
