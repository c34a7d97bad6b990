"""Decodes one chunk of a data set; `main` does it in a process of its own.

The process is a new interpreter, because forking a process that runs JAX may hang and
multiprocessing's 'spawn' would run the user's main module again. It reads pickles from stdin (the
data set, then (split, start, stop) for each chunk) and writes its results to stdout. It ends when
stdin ends, so that it never outlives a killed parent.
"""

import os
import pickle
import signal
import sys
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from pmjax.datasets.image_codec import decode


def decode_chunk(records: Sequence[dict], file: Path, size: int, start: int, stop: int) -> dict:
    """Decodes records[start:stop] into their rows of an .npy file uint8 [N, size, size, 3].

    The rows are written, not memory-mapped, so that a full disk is an error and not a signal.

    Returns:
        A description of the chunk: labels, whether any image has colors, the unreadable images
        {i: (file, reason)} (their rows are zero), and the CRC-32 of the rows.
    """
    images = np.zeros((stop - start, size, size, 3), np.uint8)
    labels, broken, color = [], {}, False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # of metadata; of size, the error suffices
        for i in range(start, stop):
            record = records[i]
            label = record.get("label")
            labels.append(label if label is None else np.asarray(label).item())
            try:
                image = decode(record["image"], size)
            except ValueError as e:
                name = record.get("file", f"record {i} of {file.stem}".encode())
                broken[i] = (os.fsdecode(name), str(e))
                continue
            images[i - start] = image if image.ndim == 3 else image[..., None]
            color = color or bool(image.ndim == 3 and (image != image[..., :1]).any())
    with file.open("r+b") as rows:
        npy.read_magic(rows)
        npy.read_array_header_1_0(rows)
        rows.seek(start * images[0].nbytes, os.SEEK_CUR)
        rows.write(images)
    return {"labels": labels, "color": color, "broken": broken, "crc": zlib.crc32(images)}


def main() -> None:
    """Decodes the requested chunks until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    elsewhere = sys.stderr or open(os.devnull, "w")  # None: it was closed when the command started
    os.dup2(elsewhere.fileno(), sys.stdout.fileno())  # libraries must not print among the answers
    splits, files, size = pickle.load(sys.stdin.buffer)
    while True:
        try:
            split, start, stop = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: dict | Exception
        try:
            answer = decode_chunk(splits[split], files[split], size, start, stop)
        except Exception as e:  # the parent raises it
            answer = e
        pickle.dump(answer, answers)
        answers.flush()
