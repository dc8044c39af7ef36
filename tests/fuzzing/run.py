"""Fuzz every target for some seconds: make fuzz ARGS="--seconds 60 header archives".

With atheris (libFuzzer, guided by what the code covers) where it can be had; else the same targets
run with random mutations of the same seeds, and that is said. What a target let through is kept in
.fuzz/, with how to try it again; the run then fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
FOUND = TESTS.parent / ".fuzz"
LONGEST_INPUT = 64 << 10
MEMORY_BYTES = 2 << 30
INPUT_SECONDS = 30
"""No input may take longer; a real one takes milliseconds."""

INTERESTING = (
    b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xfe\xff\x00\xe0",
    b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0", b"SQ", b"UN", b"OB", b"\\", b"../",
    b"\0", b"PK\3\4", b"PK\1\2", b"BZh9", b"\x1f\x8b\x08", b"1e999", b"-1", b"nan",
)  # fmt: skip


def main() -> int:
    arguments = _arguments()
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    if arguments.inside:
        code = _inside(arguments.inside, arguments.seconds, arguments.seed, arguments.corpus)
        sys.stdout.flush()
        os._exit(code)  # a receiver of the target's may still run
    from fuzzing.targets import TARGETS

    chosen = arguments.targets or list(TARGETS)
    unknown = set(chosen) - set(TARGETS)
    if unknown:
        print(f"no target {sorted(unknown)}: there are {', '.join(TARGETS)}")
        return 2
    guided = importlib.util.find_spec("atheris") is not None
    print("with atheris" if guided else "no atheris: random mutations, which no coverage guides")
    sys.stdout.flush()
    failed = 0
    from fuzzing.seeds import seeds_of

    seeds = {name: seeds_of(name) for name in chosen}  # not in threads: they cache what they make
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = [
            pool.submit(_run, name, seeds[name], arguments.seconds, arguments.seed)
            for name in chosen
        ]
        for name, run in zip(chosen, runs, strict=True):
            inputs, seconds, found = run.result()
            print(
                f"{name:14} {inputs:9,} inputs {seconds:5.0f} s  {found or 'nothing found'}",
                flush=True,
            )
            failed += bool(found)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, prog="make fuzz")
    parser.add_argument("targets", nargs="*", help="all of them, if none is named")
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(name: str, seeds: Mapping[str, bytes], seconds: int, seed: int) -> tuple[int, float, str]:
    """Run a target in a process of its own; return inputs, seconds and what was found."""
    with tempfile.TemporaryDirectory(prefix="petct-fuzz-", dir="/dev/shm") as place:
        corpus = Path(place) / "corpus"
        corpus.mkdir()
        for number, content in enumerate(seeds.values()):
            (corpus / f"{number:04}").write_bytes(content[:LONGEST_INPUT])
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, __file__, "--inside", name, "--seconds", str(seconds), "--seed",
             str(seed), "--corpus", corpus],
            env=os.environ | {"PETCT_FUZZ_PLACE": place},
            capture_output=True,
            timeout=seconds + 300,
        )  # fmt: skip
        words = (done.stdout + done.stderr).decode(errors="replace")
        took = time.monotonic() - began
        counts = re.findall(r"Done (\d+) runs|number_of_executed_units: (\d+)", words)
        inputs = max((int(one or other) for one, other in counts), default=0)
        if done.returncode == 0 and inputs:
            return inputs, took, ""
        return inputs, took, f"FOUND, see {_keep(name, Path(place), words)}"


def _keep(name: str, place: Path, words: str) -> Path:
    FOUND.mkdir(exist_ok=True)
    (FOUND / f"{name}.txt").write_text(words, encoding="utf-8")
    for crash in place.glob("crash-*"):
        shutil.copy(crash, FOUND / f"{name}-{crash.name}")
    return FOUND / f"{name}.txt"


# inside the process of one target -----------------------------------------------------------------


def _inside(name: str, seconds: int, seed: int, corpus: Path) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("error")
    if importlib.util.find_spec("atheris") is not None:
        _with_atheris(name, seconds, seed, corpus)
        return 0
    return _with_mutations(name, seconds, seed, corpus)


def _with_atheris(name: str, seconds: int, seed: int, corpus: Path) -> None:
    import atheris

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with atheris.instrument_imports(include=["config", "workers", "daemon"]):
            from fuzzing.targets import TARGETS
    options = {
        "max_total_time": seconds,
        "seed": seed,
        "max_len": LONGEST_INPUT,
        "rss_limit_mb": MEMORY_BYTES >> 20,
        "timeout": INPUT_SECONDS,
        "artifact_prefix": f"{corpus.parent}/crash-",
        "print_final_stats": 1,
    }
    words = [f"-{option}={value}" for option, value in options.items()]
    atheris.Setup([name, str(corpus), *words], TARGETS[name])
    atheris.Fuzz()


def _with_mutations(name: str, seconds: int, seed: int, corpus: Path) -> int:
    from fuzzing.targets import TARGETS

    resource.setrlimit(resource.RLIMIT_AS, (2 * MEMORY_BYTES, 2 * MEMORY_BYTES))
    chance = random.Random(seed)
    pool = [path.read_bytes() for path in sorted(corpus.iterdir())]
    until = time.monotonic() + seconds
    done = 0
    waiting = list(pool)
    while time.monotonic() < until or waiting:
        data = waiting.pop() if waiting else mutated(chance.choice(pool), pool, chance)
        began = time.process_time()
        try:
            TARGETS[name](data)
            assert time.process_time() - began < INPUT_SECONDS, "this input takes too long"
        except BaseException:  # noqa: BLE001 - whatever it is, it is what we look for
            traceback.print_exc()
            (corpus.parent / "crash-1").write_bytes(data)
            print(json.dumps({"target": name, "size": len(data)}))
            print(f"Done {done} runs")
            return 1
        done += 1
    print(f"Done {done} runs")
    return 0


def mutated(data: bytes, pool: list[bytes], chance: random.Random) -> bytes:
    """Change an input in some places."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        start = chance.randrange(len(made) + 1)
        end = min(len(made), start + chance.choice((0, 1, 2, 4, 8, 64, 512)))
        match chance.randrange(7):
            case 0 if end > start:
                made[start] ^= 1 << chance.randrange(8)
            case 1:
                piece = chance.choice(INTERESTING)
                made[start : start + len(piece)] = piece
            case 2:
                made[start:start] = chance.choice(INTERESTING)
            case 3:
                del made[start:end]
            case 4:
                made[start:start] = made[start:end] * chance.choice((1, 2, 50))
            case 5:
                size = struct.pack(chance.choice(("<L", ">L", "<Q")), chance.randrange(1 << 32))
                made[start : start + len(size)] = size
            case _:
                other = chance.choice(pool)
                at = chance.randrange(len(other) + 1)
                made[start:end] = other[at : at + chance.randrange(600)]
    return bytes(made[:LONGEST_INPUT])


if __name__ == "__main__":
    sys.exit(main())
