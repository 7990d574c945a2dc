"""A TCP proxy that adds a round-trip time, for the jobs of `scripts/bench` with a distant registry.

    distant_proxy.py PORT SECONDS

The proxy listens on a free port, prints its address to stdout, and forwards connections to PORT of this machine. It
delays each connection and each byte by half of SECONDS in each direction. It does not limit the throughput.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from functools import partial

_CHUNK = 256 * 1024
#: Chunks in flight in one direction. A sender waits while this many have not arrived.
_WINDOW = 256


async def _read(reader: asyncio.StreamReader, chunks: asyncio.Queue[tuple[float, bytes]], delay: float) -> None:
    chunk = b"more"
    while chunk:
        with contextlib.suppress(ConnectionError):
            chunk = await reader.read(_CHUNK)
        await chunks.put((asyncio.get_running_loop().time() + delay, chunk))


async def _write(writer: asyncio.StreamWriter, chunks: asyncio.Queue[tuple[float, bytes]]) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            due, chunk = await chunks.get()
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            if not chunk:
                break
            writer.write(chunk)
            await writer.drain()
    writer.close()


async def _forward(port: int, seconds: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # The handshake of TCP takes a round trip before the first byte can be sent.
    await asyncio.sleep(seconds)
    to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.TaskGroup() as tasks:
        for source, target in ((reader, to_writer), (to_reader, writer)):
            chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WINDOW)
            tasks.create_task(_read(source, chunks, seconds / 2))
            tasks.create_task(_write(target, chunks))


async def main(port: int, seconds: float) -> None:
    """Forward connections until the process is killed."""
    server = await asyncio.start_server(partial(_forward, port, seconds), "127.0.0.1", 0)
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
