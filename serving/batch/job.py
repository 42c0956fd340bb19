"""Spreads the tiles over workers with Ray Data, and adds what they give to the results.

Ray starts workers anew that were killed, and gives them what those had not finished. Where a whole
machine dies, Ray has often used up its attempts before it knows; what is left is then given to it once
more. A tile may so be scored twice, which leaves the same mask; its row is taken once, here.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from serving.batch.model import unpack
from serving.batch.results import Results
from serving.batch.scorer import ROWS, Scorer, Settings
from serving.errors import ServingError
from serving.quiet import hushed, import_tensorflow

# Read when Ray is imported: no reports home, no notices.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")

import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

__all__ = ["connected", "score"]

log = logging.getLogger(__name__)

BLOCK = 32
"""Tiles that a worker gets at a time, at most: what is lost with it."""

ATTEMPTS = 5
"""Workers that may die of the same tiles before that ends the run."""

MACHINE_GONE = (ray.exceptions.ActorUnavailableError, ray.exceptions.ObjectLostError)
"""What Ray says of a machine that it can't reach, before and after it takes it for dead."""

PAUSE = 5.0
"""Seconds until what is left is tried again without that machine."""

TOKEN_HINT = "; where it wants a token: RAY_AUTH_MODE=token, token in ~/.ray/auth_token or RAY_AUTH_TOKEN"

STORE_BYTES = 128 * 2**20
"""Ray's shared memory on this machine, beside the model: only paths and rows go through it."""


class _Worker(Scorer):
    """A scorer with a model out of Ray's store."""

    def __init__(self, files: Any, settings: Settings) -> None:
        threading = import_tensorflow().config.threading
        threading.set_intra_op_parallelism_threads(settings.threads)
        threading.set_inter_op_parallelism_threads(settings.threads)
        with tempfile.TemporaryDirectory() as folder:
            unpack(ray.get(files), Path(folder))
            super().__init__(Path(folder), settings)


@contextmanager
def connected(address: str | None, cpus: int | None, model_bytes: int) -> Iterator[None]:
    """Ray for the length of a `with` block: that of this process if it has one, a cluster, or a new one.

    Args:
        address: of a cluster, None for a new one on this machine that ends with the block.
        cpus: of the new one; None for those of this machine.
        model_bytes: what the model takes in Ray's store.

    Raises:
        ServingError: there is no cluster at the address, or not for us.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not address:
        options |= {"num_cpus": cpus, "include_dashboard": False}
        options["object_store_memory"] = STORE_BYTES + model_bytes
    try:
        with hushed():
            ray.init(address, **options)
    except ray.exceptions.AuthenticationError as error:
        raise ServingError(f"Ray at {address or 'this machine'} wants another token: {error}") from error
    except (OSError, RuntimeError, ValueError) as error:  # what Ray raises, depending on what is wrong
        hint = TOKEN_HINT if address else ""
        raise ServingError(f"no Ray at {address or 'this machine'}: {error}{hint}") from error
    try:
        yield
    finally:
        ray.shutdown()


def score(
    images: pa.Table,
    files: Mapping[str, bytes],
    settings: Settings,
    results: Results,
    *,
    workers: int | None,
    gpus: int,
    seconds: float,
) -> Iterator[pa.Table]:
    """Scores images within `connected`, and adds them to the results.

    Args:
        images: without results; rows of `IMAGES`.
        files: of the model's version.
        settings: of the run; each worker gets as many CPUs as threads.
        results: to add to.
        workers: how many; None for as many as there are CPUs and GPUs for.
        gpus: of each worker.
        seconds: from one part of the results to the next.

    Yields:
        Rows of `ROWS` as they come; with the next ones, or at the end, they are in the results.

    Raises:
        ServingError: workers fail for a reason that no tile is to blame for, or no machine is large enough.
    """
    if not _places(settings.threads, gpus):
        lacking = f"Ray has no machine with {settings.threads} CPUs and {gpus} GPUs for a worker"
        if workers is None:
            raise ServingError(
                f"{lacking}; take fewer --cpus-per-worker or --gpus-per-worker. With --workers it waits"
            )
        log.warning("%s; waiting for one", lacking)
    left = set(images["image"].to_pylist())
    waiting, since = [], time.monotonic()
    try:
        for rows in _rows_of_all(images, files, settings, workers, gpus):
            is_new = [name in left for name in rows["image"].to_pylist()]
            rows = rows.filter(pa.array(is_new, pa.bool_()))
            left.difference_update(rows["image"].to_pylist())
            waiting.append(rows)
            if time.monotonic() - since >= seconds:
                results.add(pa.concat_tables(waiting))
                waiting, since = [], time.monotonic()
            yield rows
    except ray.exceptions.RayError as error:
        if isinstance(error, ray.exceptions.ActorDiedError) and "creation task" not in str(error):
            reason = (
                f"{ATTEMPTS} workers died of the same {BLOCK} tiles or fewer, mostly for want of memory: use "
                "fewer --workers or a smaller --batch-size"
            )
        else:
            reason = f"a worker failed: {_raised(error)}"
        raise ServingError(f"{reason}; the same command goes on where it stopped") from error
    finally:
        if waiting:
            results.add(pa.concat_tables(waiting))
    if left:
        raise ServingError(f"{len(left):,} tiles got no result from Ray; run the same command again")


def _places(cpus: int, gpus: int) -> int:
    """Workers that the machines of the cluster have room for, as it is now."""
    needs = {"CPU": cpus, "GPU": gpus}
    return sum(
        int(min(node["Resources"].get(name, 0) // need for name, need in needs.items() if need))
        for node in ray.nodes()
        if node["Alive"]
    )


def _raised(error: ray.exceptions.RayError) -> str:
    """The line that says what a worker has raised."""
    text = str(getattr(error, "cause", None) or error)
    if isinstance(error, ray.exceptions.UserCodeException):  # ends with advice of Ray, whatever was raised
        text = str(error).rpartition("The above exception was the direct cause")[0] or text
    return text.strip().splitlines()[-1].removeprefix("serving.errors.ServingError: ")


def _rows_of_all(
    images: pa.Table, files: Mapping[str, bytes], settings: Settings, workers: int | None, gpus: int
) -> Iterator[pa.Table]:
    """Rows of all images, also if machines die on the way: as long as each time something has been done."""
    left, failures = images, 0
    while True:
        done: set[str] = set()
        wanted = workers or max(1, _places(settings.threads, gpus))
        try:
            for rows in _rows(left, files, settings, min(wanted, len(left)), gpus):
                done.update(rows["image"].to_pylist())
                yield rows
            return
        except ray.exceptions.RayError as error:
            failures = 1 if done else failures + 1
            if failures == ATTEMPTS or not isinstance(getattr(error, "cause", None) or error, MACHINE_GONE):
                raise
        left = left.filter(pa.array([name not in done for name in left["image"].to_pylist()], pa.bool_()))
        if not len(left):
            return
        log.warning("a machine can't be reached; %s tiles are left, others take them over", f"{len(left):,}")
        time.sleep(PAUSE)


def _rows(
    images: pa.Table, files: Mapping[str, bytes], settings: Settings, workers: int, gpus: int
) -> Iterator[pa.Table]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    size = max(1, min(BLOCK, len(images) // (8 * workers)))
    data = ray.data.from_arrow([images.slice(start, size) for start in range(0, len(images), size)])
    with warnings.catch_warnings():
        # Until 2.64 this is how a limit is set; without one, a tile that kills its worker does so for ever.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        scored = data.map_batches(
            _Worker,
            fn_constructor_args=(ray.put(dict(files)), settings),
            batch_size=size,  # a block; Ray wants a number where there are GPUs
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=settings.threads,
            num_gpus=gpus,
            max_task_retries=ATTEMPTS - 1,
        )
    for rows in scored.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield rows.cast(ROWS)
