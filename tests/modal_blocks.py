"""The HTTP side of the loopback control plane: blocks of volume files, and call arguments too long for a message.

Blocks are known by their SHA-256, and a block that no file of a volume has used yet counts only for the client that
just sent it (it shows the server's answer as a receipt), as with Modal: an upload that was interrupted sends its blocks
again. What goes over the line is counted, for tests that claim something is sent once. To add an endpoint, add a route.
"""

import hashlib
import itertools

from aiohttp import web

BLOCK = 8 * 1024 * 1024
"""Bytes of a block, fixed by Modal."""


def block_lengths(start: int, length: int) -> list[int]:
    """How many bytes of a range fall into each aligned block that it touches."""
    lengths = []
    position, end = start, start + length
    while position < end:
        following = min(end, (position // BLOCK + 1) * BLOCK)
        lengths.append(following - position)
        position = following
    return lengths


class Blocks:
    """Stored blocks and blobs, and what was sent and fetched."""

    def __init__(self) -> None:
        self.url = ""
        self.uploaded: list[bytes] = []
        """Every block that was sent, in order."""
        self.downloaded_bytes = 0
        self._received: dict[str, bytes] = {}
        self._kept: set[str] = set()
        self._served: dict[str, bytes] = {}
        self._blobs: dict[str, bytes] = {}
        self._numbers = itertools.count(1)

    def has(self, digest: bytes, receipt: bytes) -> bool:
        """Whether a file may be made of that block without sending it."""
        name = digest.hex()
        return name in self._kept or (name in self._received and receipt == b"receipt-" + name.encode())

    def keep(self, digest: bytes) -> bytes:
        """The block's contents, which from now on is part of a file."""
        self._kept.add(digest.hex())
        return self._received[digest.hex()]

    def put_url(self, digest: bytes) -> str:
        return f"{self.url}/block/{digest.hex()}"

    def get_url(self, content: bytes) -> str:
        """Where this part of a file can be fetched, whatever becomes of the file."""
        name = hashlib.sha256(content).hexdigest()
        self._served[name] = content
        return f"{self.url}/part/{name}"

    def new_blob(self) -> tuple[str, str]:
        """Name and upload address of a blob to come."""
        name = f"bl-{next(self._numbers)}"
        return name, self.blob_url(name)

    def blob_url(self, name: str) -> str:
        return f"{self.url}/blob/{name}"

    def blob(self, name: str) -> bytes:
        return self._blobs[name]

    async def _put_block(self, request: web.Request) -> web.Response:
        content, name = await request.read(), request.match_info["name"]
        if hashlib.sha256(content).hexdigest() != name:
            return web.Response(status=400, text="the block's contents are not those of its name")
        self.uploaded.append(content)
        self._received[name] = content
        return web.Response(body=b"receipt-" + name.encode())

    async def _get_part(self, request: web.Request) -> web.Response:
        content = self._served.get(request.match_info["name"])
        if content is None:
            return web.Response(status=404)
        sent = content.rstrip(b"\0")
        self.downloaded_bytes += len(sent)
        return web.Response(body=sent)

    async def _put_blob(self, request: web.Request) -> web.Response:
        content = await request.read()
        self._blobs[request.match_info["name"]] = content
        etag = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return web.Response(headers={"ETag": f'"{etag}"'})

    async def _get_blob(self, request: web.Request) -> web.Response:
        return web.Response(body=self._blobs[request.match_info["name"]])

    async def serve(self) -> web.AppRunner:
        """Starts answering on a free port of this machine."""
        app = web.Application(client_max_size=4 * BLOCK)
        app.router.add_put("/block/{name}", self._put_block)
        app.router.add_get("/part/{name}", self._get_part)
        app.router.add_put("/blob/{name}", self._put_blob)
        app.router.add_get("/blob/{name}", self._get_blob)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner
