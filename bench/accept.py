"""Acceptance over mTLS: single POSTs and batches, durable, one gateway process, against an empty handler.

Rounds alternate between the two, so that both see the same machine; the ratio is the median of the rounds'.
python bench/accept.py [--rounds 3] [--seconds 4] [--connections 128] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
BATCH, BATCH_CONNECTIONS = 500, 8


# -- The two servers, each a process ----------------------------------------------------------------------


def serve_empty(directory: Path) -> None:
    """Stock uvicorn and Starlette: read the body, answer 202."""
    import ssl

    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def accept(request):
        await request.body()
        return JSONResponse({"status": "queued"}, 202)

    app = Starlette(routes=[Route("/api/v1/messages", accept, methods=["POST"])])
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, http="httptools", loop="uvloop", access_log=False, log_level="error",
        ssl_certfile=directory / "gateway.crt", ssl_keyfile=directory / "gateway.key",
        ssl_ca_certs=str(directory / "ca.crt"), ssl_cert_reqs=ssl.CERT_REQUIRED,
    )  # fmt: skip
    server = uvicorn.Server(config)

    async def run() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)
        await task

    _uvloop(run())


def serve_gateway(directory: Path) -> None:
    """The real gateway on the log that `prepare` made."""
    _uvloop(_gateway(directory))


async def _gateway(directory: Path) -> None:
    from broker import clock, lifecycle
    from broker.events import connection, log_identity
    from broker.events.appender import Appender
    from broker.events.keyring import Keyring
    from broker.events.keys import LogKeys
    from broker.events.sealing import Sealer
    from broker.events.trust import Trust
    from broker.services.gateway.role import GatewayRole

    settings = _settings(directory)
    redis, own = connection.connect(settings.redis_url), connection.connect(settings.redis_url)
    identity = await log_identity.load(redis, settings)
    keys = LogKeys(settings.log_name, settings.partitions)
    keyring = Keyring.load(settings.keyring_path)
    trust = Trust(own, keys.control, identity.incarnations["control"], keyring)
    stop = asyncio.Event()
    lifecycle.stop_on_signals(stop)
    following = asyncio.create_task(trust.run(stop))
    await trust.wait_fresh()
    role = GatewayRole(
        settings, redis=redis, keys=keys, identity=identity, sealer=Sealer(keyring, trust.keys), trust=trust,
        appender=Appender(redis, keys, identity), read_model=None, cert=directory / "gateway.crt",
        key=directory / "gateway.key", ca=directory / "ca.crt",
        certificate_ends_ms=clock.now_ms() + 86_400_000_000,
    )  # fmt: skip
    profiler = _profiler()
    await role.run(stop, lambda port: print(port, flush=True))
    if profiler is not None:
        profiler.disable()
        profiler.dump_stats(os.environ["BENCH_PROFILE"])
    await following


def _profiler():
    """Profiling where BENCH_PROFILE names a file."""
    if not os.environ.get("BENCH_PROFILE"):
        return None
    import cProfile

    profiler = cProfile.Profile()
    profiler.enable()
    return profiler


def _uvloop(main) -> None:
    import uvloop

    uvloop.run(main)


def _settings(directory: Path):
    from broker.settings import Settings

    return Settings(
        data_dir=directory,
        redis_url=f"unix://{directory}/valkey/valkey.sock",
        gateway_port=0,
        log_name="bench",
    )


# -- Preparing and measuring ------------------------------------------------------------------------------


async def prepare(directory: Path) -> None:
    """A log, keys, and certificates for the gateway and a client."""
    from broker import clock
    from broker.events import connection, log_identity
    from broker.events.certificate_commands import CertificateCommands
    from broker.events.client_commands import ClientCommands
    from broker.events.control import Registry
    from broker.events.keyring import Keyring
    from broker.events.keys import LogKeys
    from broker.services.ca import files
    from broker.services.ca.authority import Authority

    settings = _settings(directory)
    redis = connection.connect(settings.redis_url)
    identity = await log_identity.create(redis, settings)
    keys = LogKeys(settings.log_name, settings.partitions)
    registry = Registry(redis, keys.control, identity.incarnations["control"])
    keyring = Keyring.create(settings.keyring_path)
    await ClientCommands(registry, keyring).register_client("demo", actor="system")
    authority = Authority.create(directory)
    for name, role in (("demo", "producer"), ("gateway", "gateway")):
        issued = authority.issue(name, role)
        await CertificateCommands(registry).record_certificate(
            issued.entry(name, role, issued_at_ms=clock.now_ms()), actor="system"
        )
        files.write_pair(
            directory / f"{name}.crt",
            directory / f"{name}.key",
            certificate_pem=issued.certificate_pem.encode(),
            key_pem=issued.private_key_pem.encode(),
        )
    await redis.aclose()


@contextmanager
def serving(which: str, directory: Path) -> Iterator[tuple[int, int]]:
    """The server as a process of its own: its port and process id."""
    command = [sys.executable, __file__, "--serve", which, "--directory", str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.terminate()
        process.wait()


Server = tuple[int, int]


def load(directory: Path, server: Server, connections: int, seconds: float, batch: int = 0) -> dict:
    """One run of the load generator."""
    port, pid = server
    command = [
        sys.executable, str(HERE / "loadgen.py"), "--port", str(port), "--ca", str(directory / "ca.crt"),
        "--cert", str(directory / "demo.crt"), "--key", str(directory / "demo.key"), "--pid", str(pid),
        "--connections", str(connections), "--seconds", str(seconds), "--batch", str(batch),
    ]  # fmt: skip
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


async def measure(args: argparse.Namespace) -> dict:
    from broker.embedded.valkey import Valkey

    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        valkey = Valkey(directory / "valkey", maxmemory_mb=4096)
        await valkey.start()
        try:
            await prepare(directory)
            return _measure(args, directory)
        finally:
            await valkey.stop()


def _measure(args: argparse.Namespace, directory: Path) -> dict:
    with serving("empty", directory) as empty, serving("gateway", directory) as gateway:
        load(directory, empty, args.connections, 0.5)
        load(directory, gateway, args.connections, 0.5)
        rounds = [
            {
                "empty": load(directory, empty, args.connections, args.seconds),
                "single": load(directory, gateway, args.connections, args.seconds),
                "batch": load(directory, gateway, BATCH_CONNECTIONS, args.seconds, BATCH),
            }
            for _ in range(args.rounds)
        ]
    ratios = [r["single"]["requests_per_second"] / r["empty"]["requests_per_second"] for r in rounds]
    cpu = [r["empty"]["server_cpu_us_per_message"] / r["single"]["server_cpu_us_per_message"] for r in rounds]
    return {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "ratio_single_to_empty": round(statistics.median(ratios), 3),
        "ratio_by_cpu": round(statistics.median(cpu), 3),
        "rounds": rounds,
    }


def show(found: dict) -> None:
    print(
        f"{'':8}{'requests/s':>12}{'messages/s':>12}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}"
        f"{'cpu us/msg':>12}  statuses"
    )
    for number, measured in enumerate(found["rounds"], 1):
        for name, run in measured.items():
            print(
                f"{number} {name:6}{run['requests_per_second']:12,.0f}{run['messages_per_second']:12,.0f}"
                f"{run['p50_ms']:9}{run['p95_ms']:9}{run['p99_ms']:9}"
                f"{run['server_cpu_us_per_message']:12}  {run['statuses']}"
            )
    print(f"single POST / empty handler: {found['ratio_single_to_empty']:.0%} (median of the rounds)")
    print(f"by the servers' CPU time: {found['ratio_by_cpu']:.0%}; load average {found['load_average']:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--connections", type=int, default=128)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=["empty", "gateway"], help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        (serve_empty if args.serve == "empty" else serve_gateway)(args.directory)
        return
    found = asyncio.run(measure(args))
    show(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
