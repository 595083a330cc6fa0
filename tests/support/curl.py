"""The documented curl commands, also on machines without curl: `./broker test` needs nothing installed."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Sequence

import httpx


def run(argv: Sequence[str]) -> str:
    """The body of the answer. `argv` begins with `curl` and uses only the options below."""
    if shutil.which("curl"):
        done = subprocess.run([*argv, "-sS"], capture_output=True, text=True, check=True)
        return done.stdout
    options: dict[str, list[str]] = {}
    words, url = list(argv[1:]), ""
    while words:
        word = words.pop(0)
        if word in ("--cacert", "--cert", "--key", "-H", "-d"):
            options.setdefault(word, []).append(words.pop(0))
        else:
            assert word.startswith("https://"), f"{word}: not known here"
            url = word
    context = ssl.create_default_context(cafile=options["--cacert"][0])
    context.load_cert_chain(options["--cert"][0], options["--key"][0])
    headers = dict(line.split(": ", 1) for line in options.get("-H", []))
    with httpx.Client(verify=context) as client:
        body = "".join(options.get("-d", [])) or None
        return client.request("POST" if body else "GET", url, content=body, headers=headers).text
