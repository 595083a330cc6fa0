"""Lua scripts as named things: a file in `scripts/`, the shared prelude before it, called by its hash.

A script is atomic and touches one slot. Scripts that let the queue drain carry `allow-oom`.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any

from redis.exceptions import NoScriptError

from broker.events.connection import Redis, translated

Arg = str | bytes | int


class Script:
    """One Lua script. Calling it raises the broker's errors (`connection.translate`)."""

    def __init__(self, name: str, *, allow_oom: bool = False) -> None:
        self.name = name
        folder = resources.files("broker.events") / "scripts"
        shebang = "#!lua flags=allow-oom\n" if allow_oom else "#!lua\n"
        prelude = (folder / "_prelude.lua").read_text("utf-8")
        body = (folder / f"{name}.lua").read_text("utf-8")
        self.source = shebang + prelude + body
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, redis: Redis, keys: list[str], args: list[Arg]) -> Any:
        """Run the script on the server; load it first where the server does not know it."""
        with translated():
            try:
                return await redis.evalsha(self.sha, len(keys), *keys, *args)
            except NoScriptError:
                # NOSCRIPT means that nothing ran, so sending it whole cannot run it twice.
                return await redis.eval(self.source, len(keys), *keys, *args)

    def queue(self, pipeline: Any, keys: list[str], args: list[Arg]) -> None:
        """Put the call on a pipeline whose server is known to have the script (`load`)."""
        pipeline.evalsha(self.sha, len(keys), *keys, *args)

    async def load(self, redis: Redis) -> None:
        """Make the server know the script."""
        with translated():
            await redis.script_load(self.source)
