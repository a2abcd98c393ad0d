"""The same pipeline in a loop without a server: the upper bound of serving.

    python -m benchmarks.serving.loop MODEL MANIFEST_FOLDER PHOTOS [--processes 2] [--threads 1]
                                      [--batch 8]

Each process decodes a batch of photos and runs it in a session of one thread. Processes share no
lock, and nothing is sent. For each line with seconds on standard input, the loop measures once and
prints the number of images as JSON. *threads* is the number of threads in each process that decode
and run, with one session for all of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.serving.photos import read_photos
from models.package.manifest_file import read_manifest
from models.pixels.preprocess import to_pixels
from models.runtime.session import open_session


def main() -> None:
    """Start the processes, then measure for each line."""
    options = _options()
    ends = [_start(options, number) for number in range(options.processes)]
    for connection in ends:
        connection.recv()
    print("ready", flush=True)
    for line in sys.stdin:
        for connection in ends:
            connection.send(float(line))
        rates = [connection.recv() for connection in ends]
        print(json.dumps({"per_second": sum(rates)}), flush=True)
    for connection in ends:
        connection.send(None)


def _start(options: argparse.Namespace, number: int) -> Connection:
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(
        target=_work, args=(options, number, theirs), daemon=True
    ).start()
    return ours


def _work(options: argparse.Namespace, number: int, connection: Connection) -> None:
    """Images a second of this process, for each number of seconds received."""
    spec = read_manifest(options.package).preprocess
    session = open_session(
        options.model.read_bytes(), threads=1, provider="cpu", origin=str(options.model)
    )
    photos = read_photos(options.photos)
    order = np.random.default_rng(number).permutation(len(photos))

    def some(start: int, ended_s: float) -> int:
        done = 0
        while time.perf_counter() < ended_s:
            batch = [
                to_pixels(photos[order[(start + done + place) % len(order)]], spec)
                for place in range(options.batch)
            ]
            session.run(["probabilities"], {"image": np.stack(batch)})
            done += options.batch
        return done

    with ThreadPoolExecutor(options.threads) as pool:
        some(0, time.perf_counter() + 0.5)
        connection.send("ready")
        while (seconds := connection.recv()) is not None:
            begun_s = time.perf_counter()
            starts = range(0, len(order), -(-len(order) // options.threads))
            counts = pool.map(partial(some, ended_s=begun_s + seconds), starts)
            connection.send(sum(counts) / (time.perf_counter() - begun_s))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("package", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
