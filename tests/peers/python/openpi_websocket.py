"""MessagePack over a WebSocket, as openpi serves its policies: asyncio `websockets` behind, `openpi_client` before.

The client and the packing of arrays are openpi's own, from its package; the server is not in a package, and does here what
openpi's does per request: unpack, infer, add the server's timing, pack, send. No compression and no limit of size, as there.
"""
import asyncio
import time

import websockets.asyncio.server
import websockets.exceptions
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def serve(policy, ready, _variant) -> None:
    async def handle(connection) -> None:
        packer = msgpack_numpy.Packer()
        await connection.send(packer.pack({}))
        while True:
            try:
                observation = msgpack_numpy.unpackb(await connection.recv())
            except websockets.exceptions.ConnectionClosed:
                return
            start = time.monotonic()
            action = {"actions": policy(observation["observation"])}
            action["server_timing"] = {"infer_ms": (time.monotonic() - start) * 1000}
            await connection.send(packer.pack(action))

    async def run() -> None:
        async with websockets.asyncio.server.serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
            ready(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await server.serve_forever()

    asyncio.run(run())


class Client:
    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self.policy = WebsocketClientPolicy(host, int(port))

    def infer(self, observation):
        return self.policy.infer({"observation": observation})["actions"]
