"""Rows of what a server stands on: its network, its weights, its model files, the disk, descriptors."""

from __future__ import annotations

import asyncio
import io
import json
import resource
import sys
from collections import Counter
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file, save_file

from loadtest.attacks.clients import Connection, Request, classify, load, raw
from loadtest.attacks.forms import batch
from loadtest.attacks.framing import LIVE
from loadtest.attacks.outcome import Outcome
from loadtest.attacks.target import SERVE, Bench, Target
from loadtest.servers import ServerFailed

CLIENTS = 4
BROKEN = (sys.executable, "-m", "loadtest.attacks.broken_server")
WEIGHTS, SPEC = "weights.safetensors", "model.json"
DESCRIPTORS = 256
CONNECTIONS = 400
MODELS = "store-models"
NO_ROOM = "No usable temporary directory"


def plain(colour: str) -> bytes:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


async def raising(bench: Bench) -> AsyncIterator[Outcome]:
    """A pass that raises on some images, and one that gives NaN on some, batched with others that are all right."""
    for what, colour in (("raises", "white"), ("gives NaN", "black")):
        outcome = Outcome(f"Fault: the network {what}", "500 only for that image, no label, no NaN; ready")
        codes: Counter[str] = Counter()
        bad = plain(colour)
        with bench.shared(command=BROKEN, processes=1) as target:
            async with load(target.port, bench.requests, CLIENTS) as others:
                connection = Connection(target.port)
                for number in range(20 if bench.is_quick else 500):
                    request = classify(bad) if number % 2 else batch([bad, bench.photographs[0]], bench.model)
                    status, body = await connection.ask(request)
                    outcome.fates[str(status)] += 1
                    answer = json.loads(body)
                    result = answer if number % 2 else answer["results"][0]
                    codes[result.get("error", {}).get("code", "none")] += 1
                    outcome.expect(b"NaN" not in body and "label" not in result, f"answered {body[:200]!r}")
                    if not number % 2:
                        outcome.expect("label" in answer["results"][1], "the photograph beside it got no answer")
                connection.close()
                outcome.expect(await asyncio.to_thread(target.status, "/health/ready") == 200, "not ready")
        outcome.did = f"{sum(codes.values())} such images, half in batches with a photograph; {CLIENTS} clients"
        outcome.expect(set(codes) == {"device_failed"}, f"codes: {dict(codes)}")
        outcome.expect_fates("200", "500")
        outcome.expect(set(others.counts) == {"200"}, f"others got {dict(others.counts)}")
        outcome.fates += others.counts
        yield outcome


async def weights(bench: Bench) -> AsyncIterator[Outcome]:
    """Models whose weights are NaN, or so large that float32 overflows: at the start, and in a switch."""
    outcome = Outcome(
        "Fault: weights that are NaN or overflow", "never served: no start, no switch; the old model serves"
    )
    store = _models(bench)
    with bench.shared(model_store=store, model="good") as target:
        async with load(target.port, bench.requests, CLIENTS) as fates:
            for name in ("nan", "large"):
                answered = await asyncio.to_thread(target.patch, "/config/model", {"model": name})
                outcome.measured[f"switch to {name}"] = str(answered.status_code)
                outcome.expect(answered.status_code in (422, 500, 503), f"switch: {answered.text[:200]}")
        served = (await asyncio.to_thread(target.get, "/stats"))["model"]["name"]
        outcome.expect(served == "good", f"{served} is served")
    started = ("nan",) if bench.is_quick else ("nan", "large")
    for name in started:
        try:
            with bench.serve(model_store=store, model=name, processes=1):
                outcome.broken.append(f"{name} is served from the start")
        except ServerFailed as error:
            outcome.expect("ended with status 1" in str(error), str(error))
    outcome.did = f"2 models by a switch, {len(started)} at the start; {CLIENTS} clients"
    outcome.fates = fates.counts
    outcome.expect_fates("200")
    yield outcome


def _models(bench: Bench) -> Path:
    """A store with the model twice, and with weights that are NaN, and that overflow; made once."""
    if MODELS not in bench.stores:
        store = bench.store(MODELS, good=bench.model, other=bench.model, nan=bench.model, large=bench.model)
        _scale(store / "nan" / "1", float("nan"))
        _scale(store / "large" / "1", 1e38)
    return bench.stores[MODELS]


def _scale(folder: Path, factor: float) -> None:
    """Multiply all weights, and write the digest that belongs to them."""
    scaled = {
        name: each * factor if each.is_floating_point() else each for name, each in load_file(folder / WEIGHTS).items()
    }
    save_file(scaled, folder / WEIGHTS)
    spec = json.loads((folder / SPEC).read_text())
    digest = sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    (folder / SPEC).write_text(json.dumps({**spec, "weights_sha256": digest}))


async def files(bench: Bench) -> AsyncIterator[Outcome]:
    """Models that are damaged in every file, switched to; then the files of what is served damaged, and gone."""
    outcome = Outcome("Fault: model files damaged or gone", "switches are refused with a reason; none lost, all 200")
    store = _models(bench)
    folder = store / "other" / "1"
    whole = {name: (folder / name).read_bytes() for name in (WEIGHTS, SPEC)}
    damages = {
        "weights cut": (WEIGHTS, whole[WEIGHTS][:-1000]),
        "a bit of the weights": (WEIGHTS, whole[WEIGHTS][:-1] + bytes((whole[WEIGHTS][-1] ^ 1,))),
        "no weights": (WEIGHTS, None),
        "model.json cut": (SPEC, whole[SPEC][:500]),
        "model.json empty": (SPEC, b""),
        "model.json of bytes": (SPEC, b"\xff\xfe\0"),
        "model.json a list": (SPEC, b"[]"),
        "no model.json": (SPEC, None),
    }
    statuses: Counter[str] = Counter()
    with bench.shared(model_store=store, model="good") as target:
        async with load(target.port, bench.requests, CLIENTS) as fates:
            for what, (name, data) in damages.items():
                _write(folder / name, data)
                answered = await asyncio.to_thread(target.patch, "/config/model", {"model": "other"})
                statuses[str(answered.status_code)] += 1
                outcome.expect(
                    answered.status_code in (404, 422), f"{what}: {answered.status_code} {answered.text[:150]}"
                )
                _write(folder / name, whole[name])
                listed = await asyncio.to_thread(target.status, "/models")
                outcome.expect(listed == 200, f"{what}: /models {listed}")
            for name in whole:  # of what is served
                _write(store / "good" / "1" / name, None)
            await asyncio.sleep(bench.seconds / 3)
            answered = await asyncio.to_thread(target.patch, "/config/model", {"model": "other"})
            outcome.expect(answered.status_code == 200, f"a switch to what is whole: {answered.text[:200]}")
    outcome.did = f"{len(damages)} damages switched to, those served removed; {CLIENTS} clients"
    outcome.measured["switches told"] = ", ".join(f"{status}: {count}" for status, count in statuses.items())
    outcome.fates = fates.counts
    outcome.expect_fates("200")
    yield outcome


def _write(path: Path, data: bytes | None) -> None:
    if data is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(data)


async def _once(target: Target, request: Request) -> tuple[int, bytes]:
    """On a connection of its own: a server that refuses a body before it has read it closes the connection."""
    connection = Connection(target.port)
    try:
        return await connection.ask(request)
    finally:
        connection.close()


async def disk(bench: Bench) -> AsyncIterator[Outcome]:
    """No file can grow by a byte, and the log goes to a device that is full, while requests and changes come."""
    outcome = Outcome("Fault: disk full", "200, or 429 beside batches; none lost; changes 200; ready")
    command = ("sh", "-c", 'exec "$@" >/dev/full 2>&1', "sh", *SERVE)
    large = batch((list(bench.photographs) * 64)[:64], bench.model)
    with bench.serve(command=command) as target:
        for each in target.family():
            resource.prlimit(each.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        async with load(target.port, bench.requests, CLIENTS) as fates:
            for number in range(5 if bench.is_quick else 50):
                changed = await asyncio.to_thread(target.patch, "/config/threshold", {"threshold": 0.5 + number / 200})
                outcome.expect(changed.status_code == 200, f"a change got {changed.status_code}")
                status, _ = await _once(target, large)
                outcome.expect(status in (200, 429), f"a large batch got {status}")
                await _once(target, Request("/classify", b"\xff\xd8 no image"))  # which is logged
            await asyncio.sleep(bench.seconds / 3)
        outcome.expect(await asyncio.to_thread(target.is_ready), "not ready")
    outcome.did = f"RLIMIT_FSIZE 0 and the log to /dev/full; {CLIENTS} clients, changes, batches of 64"
    outcome.fates = fates.counts
    outcome.expect_fates("200", "429")  # the batches take room
    yield outcome
    yield await _full_from_the_start(bench)


async def _full_from_the_start(bench: Bench) -> Outcome:
    outcome = Outcome("Fault: disk full from the start", "it ends with status 1 and one line that says why")
    command = ("bash", "-c", 'set -o pipefail; (ulimit -f 0; exec "$@") 2>&1 | cat', "bash", *SERVE)
    try:
        with bench.serve(command=command):
            outcome.broken.append("it serves")
    except ServerFailed as error:
        outcome.expect("ended with status 1" in str(error), str(error))
        log = Path(str(error).rpartition("see ")[2]).read_text()
        *_, last = log.splitlines() or [""]
        outcome.measured["it said"] = last.partition(" found in")[0]
        outcome.expect(f"\nerror: {NO_ROOM}" in log and "Traceback" not in log, f"it said {log[-200:]}")
    outcome.did = "RLIMIT_FSIZE 0 before it starts"
    return outcome


async def descriptors(bench: Bench) -> AsyncIterator[Outcome]:
    """More connections than there are descriptors."""
    outcome = Outcome("Fault: few descriptors", "connections above the limit get 503, others are served; it recovers")
    command = ("sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh", *SERVE)
    with bench.serve(command=command) as target:
        async with load(target.port, bench.requests, 2) as fates:
            await asyncio.sleep(0.3)
            idle = [await asyncio.open_connection("127.0.0.1", target.port) for _ in range(CONNECTIONS)]
            answers = []
            for _ in range(20):
                try:
                    answers.append(await raw(target.port, LIVE, seconds=15, lingers=0.2))
                except OSError as error:
                    outcome.broken.append(f"a new connection: {error!r}")
            for _, writer in idle:
                writer.close()
            await asyncio.sleep(1)
        statuses = Counter(str(status) for told, _ in answers for status in told)
        silent = sum(not told for told, _ in answers)
        outcome.expect(silent == 0, f"{silent} new connections got no answer")
        outcome.expect(set(statuses) <= {"200", "503"}, f"new connections got {dict(statuses)}")
        status = await asyncio.to_thread(target.status, "/health/ready")
        outcome.expect(status == 200, f"afterwards readiness is {status}")
    outcome.did = f"{CONNECTIONS} idle connections, {DESCRIPTORS} descriptors for each process, 2 clients"
    outcome.measured["new connections told"] = ", ".join(f"{status}: {count}" for status, count in statuses.items())
    outcome.fates = fates.counts
    outcome.expect_fates("200")
    yield outcome
