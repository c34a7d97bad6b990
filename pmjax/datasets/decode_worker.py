"""Decodes chunks of a data set; `python -m pmjax.datasets._worker` does so in a process of its own.

Such a process is started afresh, because a fork of a process in which JAX runs may hang, and
because multiprocessing's 'spawn' would run the user's main module once more. It reads pickles from
stdin: first the data set, then (split, start, stop) for each chunk; it answers on stdout, and ends
when stdin does, so that it does not outlive a killed parent.
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
from PIL import Image

from pmjax.datasets.images import decode


def decode_chunk(records: Sequence[dict], file: Path, size: int, start: int, stop: int) -> dict:
    """Decodes records[start:stop] into their rows of an .npy file uint8 [N, size, size, 3].

    They are written rather than memory-mapped: a full disk is then an error, not a signal.

    Returns:
        What is to be known about the chunk: start, stop, labels, whether any image is in colour,
        those that cannot be read {i: (file, reason)} (their rows are zero), and the rows' CRC-32.
    """
    images = np.zeros((stop - start, size, size, 3), np.uint8)
    labels, broken, colour = [], {}, False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the error is enough
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
            colour = colour or bool(image.ndim == 3 and (image != image[..., :1]).any())
    with file.open("r+b") as rows:
        npy.read_magic(rows)
        npy.read_array_header_1_0(rows)
        rows.seek(start * images[0].nbytes, os.SEEK_CUR)
        rows.write(images)
    return {"start": start, "stop": stop, "labels": labels, "colour": colour, "broken": broken,
            "crc": zlib.crc32(images)}  # fmt: skip


def main() -> None:
    """Answers until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    splits, files, size = pickle.load(sys.stdin.buffer)
    while True:
        try:
            split, start, stop = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = decode_chunk(splits[split], files[split], size, start, stop)
        except Exception as e:  # is raised again by the parent
            answer = e
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
