"""Measure pairing on a phantom against its bare parts and a peer: seconds and peak memory.

    python benchmarks/pair.py                      600 CT of 512x512 + 600 PET of 200x200
    python benchmarks/pair.py --size total-body    1,000 CT of 512x512 + 645 PET of 440x440
    python benchmarks/pair.py --peer PEER/bin/python
                                                   with autoPET's way (benchmarks/pair_peer.py
                                                   tells how its environment is made)

The bare parts are what a short script does: decode every slice with pydicom, resample the CT onto
the PET with SimpleITK, save two arrays. All run in processes of their own, in turn, on the same
files; the best of each counts, without the time that imports take. Pairing also checks, hashes,
smooths, fsyncs and draws. Exits 1 beyond the limits.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMITS = {"whole-body": (2.0, 1.5), "total-body": (2.0, 4.0), "small": (None, None)}
"""Largest ratio to the bare parts and largest peak in GiB."""
PEER_TIMES, PEER_MEMORY = 8.0, 0.5
"""So many times quicker than the peer, in so much of its memory."""


def bare_parts(pet: Path, ct: Path, out: Path) -> float:
    import numpy as np
    import pydicom
    import SimpleITK as sitk  # noqa: N813

    began = time.perf_counter()
    images = []
    for folder in (pet, ct):
        slices = [pydicom.dcmread(path) for path in folder.iterdir()]
        slices.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
        volume = np.empty((len(slices), slices[0].Rows, slices[0].Columns), np.float32)
        for index, ds in enumerate(slices):
            volume[index] = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        image = sitk.GetImageFromArray(volume)
        image.SetOrigin([float(value) for value in slices[0].ImagePositionPatient])
        between_rows, between_columns = (float(value) for value in slices[0].PixelSpacing)
        first, second = (float(ds.ImagePositionPatient[2]) for ds in slices[:2])
        image.SetSpacing((between_columns, between_rows, second - first))
        images.append(image)
    moved = sitk.Resample(
        images[1], images[0], sitk.Transform(), sitk.sitkLinear, -1024.0, sitk.sitkFloat32
    )
    np.save(out / "ct.npy", np.rint(sitk.GetArrayFromImage(moved)).astype(np.int16))
    np.save(out / "pet.npy", sitk.GetArrayFromImage(images[0]))
    return time.perf_counter() - began


def whole_pair(pet: Path, ct: Path, out: Path) -> float:
    from workers.header.read import read_header
    from workers.pairing.build import PairContext, PairOptions, SeriesInput, build_pair
    from workers.pairing.suv import judge_suv

    series = []
    for folder in (pet, ct):
        files = tuple(sorted(folder.iterdir()))
        facts = tuple(read_header(path).facts for path in files)  # in use they come from the index
        series.append(SeriesInput(facts[0].series_instance_uid, files, facts, ("",) * len(files)))
    context = PairContext("1.2.3", 1, {}, (), "2026-01-01T00:00:00Z")
    began = time.perf_counter()
    verdict = judge_suv(series[0].facts)
    build_pair(series[0], series[1], verdict, context, PairOptions(), out)
    return time.perf_counter() - began


def measure(way: str, study: Path, peer: Path | None = None) -> tuple[float, float]:
    """Seconds and peak GiB of one run in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--way", way, "--study", str(study), "--out", out]
        if peer is not None and way == "peer":
            command = [str(peer), str(Path(__file__).with_name("pair_peer.py")), str(study), out]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--size", choices=LIMITS, default="whole-body")
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--study", type=Path, help="a phantom that was written before")
    asked.add_argument("--peer", type=Path, help="a Python that has what autoPET's script uses")
    asked.add_argument("--way", choices=("bare", "pair"), help=argparse.SUPPRESS)
    asked.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.way:
        work = bare_parts if given.way == "bare" else whole_pair
        seconds = work(given.study / "PET AC", given.study / "CT IMAGES", given.out)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        json.dump((seconds, peak), sys.stdout)
        return 0
    with tempfile.TemporaryDirectory() as made:
        study = given.study or written(Path(made), given.size)
        found: dict[str, list[tuple[float, float]]] = {"bare": [], "pair": []}
        if given.peer:
            found["peer"] = []
        for _ in range(given.repeats):
            for way, runs in found.items():
                runs.append(measure(way, study, given.peer))
    return report(given.size, found)


def written(folder: Path, size: str) -> Path:
    from workers.phantom.study import PhantomSpec, write_study

    write_study(PhantomSpec(size=size), folder, only=("CT IMAGES", "PET AC"))  # type: ignore[arg-type]
    return folder


def report(size: str, found: dict[str, list[tuple[float, float]]]) -> int:
    best = {way: min(seconds for seconds, _ in runs) for way, runs in found.items()}
    peak = {way: max(gib for _, gib in runs) for way, runs in found.items()}
    ratio = best["pair"] / best["bare"]
    names = {"bare": "bare parts", "pair": "pairing", "peer": "autoPET"}
    for way in found:
        words = names[way]
        times = ", ".join(f"{seconds:.2f}" for seconds, _ in found[way])
        print(f"{words:<11} best {best[way]:6.2f} s of {times}; peak {peak[way]:.2f} GiB")
    most_time, most_memory = LIMITS[size]
    print(f"ratio       {ratio:.2f} (at most {most_time}), peak at most {most_memory} GiB")
    failed = False
    if "peer" in found:
        times, memory = best["peer"] / best["pair"], peak["pair"] / peak["peer"]
        print(f"autoPET     takes {times:.1f} times as long (at least {PEER_TIMES:g});", end=" ")
        print(f"pairing uses {memory:.0%} of its memory (at most {PEER_MEMORY:.0%})")
        failed = times < PEER_TIMES or memory > PEER_MEMORY
    if most_time is None or most_memory is None:
        return int(failed)
    return int(failed or ratio > most_time or peak["pair"] > most_memory)


if __name__ == "__main__":
    sys.exit(main())
