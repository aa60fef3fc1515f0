"""The least that this stack can answer: a FastAPI route that says hello, at the port given as the argument."""

from __future__ import annotations

import socket
import sys

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/hello")
async def hello() -> dict[str, str]:
    return {"hello": "world"}


if __name__ == "__main__":
    # The protocol is named for asyncio, which leaves TCP_NODELAY off otherwise.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", int(sys.argv[1])))
    uvicorn.Server(uvicorn.Config(app, access_log=False, log_config=None, http="httptools")).run(sockets=[listening])
