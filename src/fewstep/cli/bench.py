"""``fewstep bench``."""

from __future__ import annotations

from fewstep.errors import UsageError


def bench(*, json: bool = False, threads: int = 2, pairs: int = 15, engines: bool = False) -> None:
    """Time the library against the bare network's passes: ratios, and peak memory.

    Args:
        json: print everything, raw milliseconds included, as JSON.
        threads: the number of threads that torch uses.
        pairs: measurements of each side of a ratio.
        engines: time samples by ONNX Runtime and OpenVINO beside torch instead, and by torch with
            its memory format channels_last.
    """
    if min(threads, pairs) < 1:
        raise UsageError(f"threads and pairs must be at least 1, got {threads} and {pairs}")
    if engines:
        from fewstep.engine_bench import main as measure
    else:
        from fewstep.bench import main as measure
    measure(threads, pairs, json)
