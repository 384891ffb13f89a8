"""A loopback HTTP server that answers after a while with the number that is asked for; ends when its input does.

python benchmarks/server.py SECONDS
"""

from __future__ import annotations

import asyncio
import sys


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The requests of one connection, one after the other."""
    try:
        while line := await reader.readline():
            while (await reader.readline()).strip():  # the headers
                pass
            await asyncio.sleep(float(sys.argv[1]))
            body = line.split()[1].lstrip(b"/")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
