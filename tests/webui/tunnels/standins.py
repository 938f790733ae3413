"""`standins.py CLIENT MODE ARGUMENTS...`: small programs that speak a tunnel client's side and forward for real.

They print what the real client prints, word for word where it was seen, and open their public address on this machine.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def forward(target: int, refusal: bytes = b""):
    """A public address for the port `target`; `refusal` is answered in its place."""

    async def serve(reader, writer):
        if refusal:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(refusal)
            await writer.drain()
            writer.close()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


def say(line: str) -> None:
    print(line, flush=True)


def plain_answer(status: str, body: bytes, header: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{header}\r\n\r\n"
    return head.replace("\r\n\r\n\r\n", "\r\n\r\n").encode() + body


async def ngrok(mode: str, arguments: list[str]) -> None:
    config = json.loads(Path(arguments[arguments.index("--config") + 1]).read_text())
    token, upstream = config["agent"]["authtoken"], config["endpoints"][0]["upstream"]["url"]
    assert config["version"] == "3" and arguments[:2] == ["start", "fastsd"]
    port = int(upstream.removeprefix("http://127.0.0.1:"))
    say(
        f't=2026 lvl=info msg="open config file" path=x token={token}'
    )  # the real one shows none: ours must mask it
    refused = {
        "noauth": "4018",
        "revoked": "107",
        "malformed": "105",
        "limit": "108",
        "online": "334",
        "old": "120",
    }
    if mode in refused:
        code = f"ERR_NGROK_{refused[mode]}"
        say(
            f't=2026 lvl=eror msg="failed to reconnect session" obj=tunnels.session err="refused\\r\\n\\r\\n{code}\\r\\n"'
        )
        say(f"ERROR:  {code}")
        raise SystemExit(1)
    answers = {
        "offline": plain_answer("404 Not Found", b"gone", "ngrok-error-code: ERR_NGROK_3200"),
        "unreached": plain_answer("502 Bad Gateway", b"no", "ngrok-error-code: ERR_NGROK_8012"),
    }
    server, public = await forward(port, answers.get(mode, b""))
    listing = json.dumps(
        {"endpoints": [{"name": "fastsd", "url": f"http://standin.localhost:{public}"}]}
    ).encode()
    _, web = await forward(0, plain_answer("200 OK", listing))
    say(f't=2026 lvl=info msg="starting web service" obj=web addr=127.0.0.1:{web} allow_hosts=[]')
    say('t=2026 lvl=info msg="client session established" obj=tunnels.session')
    if mode != "quiet":  # then only its interface tells
        say(
            f't=2026 lvl=info msg="started tunnel" obj=tunnels name=fastsd addr={upstream} url=http://standin.localhost:{public}'
        )
    await server.serve_forever()


async def frpc(mode: str, arguments: list[str]) -> None:
    port = int(arguments[arguments.index("-l") + 1])
    if mode == "refused":
        say(
            "2026/11/21 [W] [service.go:128] login to server failed: dial tcp 127.0.0.1:7000: connect: connection refused"
        )
        await asyncio.sleep(60)
    server, public = await forward(port)
    say(f"2026/11/21 [I] [control.go:172] [random] start proxy success: http://standin.localhost:{public}")
    await server.serve_forever()


async def cloudflared(mode: str, arguments: list[str]) -> None:
    port = int(arguments[arguments.index("--url") + 1].rpartition(":")[2])
    error = {
        "limit": 'ERR Error unmarshaling QuickTunnel response: error code: 1015 status_code="429 Too Many Requests"',
        "offline": 'failed to request quick Tunnel: Post "https://api.trycloudflare.com/tunnel": lookup: no such host',
    }
    if mode in error:
        print(error[mode], file=sys.stderr, flush=True)
        raise SystemExit(1)
    server, public = await forward(port)
    url = f"http://standin.localhost:{public}"
    if mode == "elsewhere":
        _, other = await forward(0, plain_answer("200 OK", b"another site"))
        url = f"http://standin.localhost:{other}"
    rule = "+" + "-" * 88 + "+"
    for line in (rule, "|  Your quick Tunnel has been created! Visit it at:  |", f"|  {url:84}  |", rule):
        print(f"2026-11-21T00:00:00Z INF {line}", file=sys.stderr, flush=True)
    await server.serve_forever()


async def proxy(mode: str, arguments: list[str]) -> None:
    """Colab's port proxy: prints its address, and forwards."""
    server, public = await forward(int(arguments[0]))
    say(str(public))
    await server.serve_forever()


def main() -> None:
    client, mode, *arguments = sys.argv[1:]
    if mode == "dies":
        say("Segmentation fault")
        raise SystemExit(139)
    if mode == "silent":
        time.sleep(600)
    if mode == "floods":  # no line ever ends
        while True:
            sys.stdout.write("." * 65536)
    asyncio.run(
        {"ngrok": ngrok, "frpc": frpc, "cloudflared": cloudflared, "proxy": proxy}[client](mode, arguments)
    )


if __name__ == "__main__":
    main()
