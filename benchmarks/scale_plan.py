"""What 1e10 examples on 1,000 GPUs would ask, computed from what is measured here: nothing of it was run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.scale_fit import Fit, fit_power
from benchmarks.scale_tables import Line, asked_of_s3, fit_of, markdown, number, reads_a_megabyte, seal_bytes, size_of, volume

DRIVER_PASSES = {"shard": 2, "merge": 2}
"""How often the driver hands out all shards: `shard` reads and then splits, `merge` looks for ranges and then merges."""


@dataclass(frozen=True)
class Cluster:
    """Hold what is assumed. Rates and prices are stated in docs/scale.md with their sources."""

    examples: float = 1e10
    features: int = 768
    """Of 4 bytes each."""
    shard_rows: int = 2**18
    gpus: int = 1000
    cores_a_gpu: int = 16
    proxies: int = 3
    keep: float = 0.1
    scored_a_second: float = 16_007.0
    """Rows of one GPU and proxy (benchmarks/gpu.md: ResNet-18, 32x32, float32, passes of 256 rows, one H200)."""
    select_cores: int = 4
    """One process, which gains nothing by more readers."""
    puts_a_second: float = 3500.0
    gets_a_second: float = 5500.0
    dollars_a_put: float = 5e-6
    dollars_a_get: float = 4e-7
    dollars_a_gpu_hour: float = 3.0
    driver_bytes_a_shard: float = 670.0

    @property
    def shards(self) -> float:
        """Return how many shards there are."""
        return self.examples / self.shard_rows


def cpu_of(lines: Sequence[Line], stage: str, there: Cluster) -> tuple[float, float, float]:
    """Return the CPU seconds of a stage in a straight line of the rows, then at either end of the exponent's interval.

    Rows cost what the largest table says, and what features and proxies add; shards what the sweep over them adds.
    """
    fit, most = fit_of(lines, "rows", stage), max(line["place"]["rows"] for line in lines if line["part"] == "rows")
    over = fit_of(lines, "shards", stage)
    at = max(size_of(line, "shards") for line in lines if line["part"] == "shards")
    shards = max(0.0, over.at(at) - over.fixed) / at * there.shards
    more = features_more(lines, stage, there.features) + (there.proxies - 1) * a_proxy_more(lines, stage)[2]
    row, factor = (fit.at(most) - fit.fixed) / most, there.examples / most
    low, high = (there.examples * (row * factor ** (exponent - 1) + more) + shards for exponent in (fit.low, fit.high))
    return there.examples * (row + more) + shards, low, high


def features_more(lines: Sequence[Line], stage: str, features: int) -> float:
    """Return the CPU seconds that a row of so many features takes more than one of 8."""
    wide = [line for line in lines if line["part"] == "features"]

    def mean(width: int) -> float:
        return median(line["found"][stage]["cpu"] for line in wide if line["place"]["features"] == width)

    return max(0.0, mean(features) - mean(8)) / float(wide[0]["place"]["rows"])


def a_proxy_more(lines: Sequence[Line], stage: str) -> tuple[float, float, float]:
    """Return what each proxy after the first adds to a row: bytes written, bytes read, CPU seconds; nothing where it shrinks."""
    chosen = [line for line in lines if line["part"] == "proxies"]
    counts = [line["place"]["proxies"] for line in chosen]
    first, last = min(counts), max(counts)

    def at(count: int, what: str) -> float:
        return median(line["found"][stage].get(what, 0) for line in chosen if line["place"]["proxies"] == count)

    rows = chosen[0]["place"]["rows"]
    written, read, cpu = (
        max(0.0, at(last, what) - at(first, what)) / (last - first) / rows for what in ("bytes in", "bytes out", "cpu")
    )
    return written, read, cpu


def fastest(lines: Sequence[Line]) -> float:
    """Return the most items a second that have come through the pool here: the driver can do that, and perhaps more."""
    return max(line["place"]["items"] / line["found"]["makespan"] for line in lines if line["part"] == "pool")


def stages(lines: Sequence[Line], there: Cluster) -> str:
    """Return the table of stages: requests, bytes, the time that the narrowest of its limits takes, and cost."""
    asked, moved, rate, more_reads = asked_of_s3(lines), volume(lines), fastest(lines), reads_a_megabyte(lines)
    rows = []
    for stage in ("shard", "score", "merge", "select", "subset"):
        reads, writes = (each * there.shards + fixed for each, fixed in asked[stage].values())
        width = 4 * there.features * {"shard": 2, "score": 1, "subset": 1}.get(stage, 0)
        kept = there.keep * 4 * there.features if stage == "subset" else 0.0
        reads += more_reads[stage] * 4e-6 * there.features * there.examples
        more_written, more_read, _ = ((there.proxies - 1) * each for each in a_proxy_more(lines, stage))
        written = (moved[stage][0] + kept + more_written) * there.examples
        read = (moved[stage][1] + width + more_read) * there.examples
        if stage == "subset":
            # Every worker reads the whole selection, as `select` writes it.
            read += there.cores_a_gpu * there.gpus * moved["select"][0] * there.examples
        cpu, low, high = cpu_of(lines, stage, there)
        cores = there.cores_a_gpu * there.gpus if stage != "select" else there.select_cores
        limits = {
            "cores": cpu / cores,
            "GPUs": there.proxies * there.examples / there.scored_a_second / there.gpus if stage == "score" else 0.0,
            "requests": max(reads / there.gets_a_second, writes / there.puts_a_second),
            "driver": 0.0 if stage == "select" else there.shards * DRIVER_PASSES.get(stage, 1) / rate,
        }
        seconds = max(limits.values())
        dollars = reads * there.dollars_a_get + writes * there.dollars_a_put
        whole = dollars + there.gpus * seconds / 3600 * there.dollars_a_gpu_hour
        rows.append([
            stage, number(reads), number(writes), number(read / 1e12), number(written / 1e12),
            f"{number(cpu / 3600)} ({number(low / 3600)} to {number(high / 3600)})",
            *(number(one) if one else "-" for one in limits.values()), number(dollars), number(whole),
        ])  # fmt: skip
    head = ["stage", "S3 reads", "S3 writes and lists", "TB read", "TB written", "core hours", "s, by cores", "s, by GPUs",
            "s, by requests of one prefix", "s, by the driver", "dollars of requests", "and of 1,000 GPUs meanwhile"]  # fmt: skip
    return markdown(head, rows)


def driver(lines: Sequence[Line], there: Cluster) -> str:
    """Return what the driver and the records come to."""
    rate, looks = fastest(lines), fit_of_waits(lines)
    flight = 2 * there.gpus
    seals = seal_bytes(lines)
    widest = max(seals.values())
    look = looks.at(flight)
    split = 4 * there.features * there.examples / 1e12
    rows = [
        ["shards", number(there.shards), f"{there.shard_rows:,} rows each"],
        ["a stage through the driver, at most, s", number(there.shards / rate),
         f"at the fastest seen here, {number(rate)} a second"],
        ["one look at all that is in flight, ms", number(1000 * look),
         f"{flight:,} calls; exponent {looks.exponent:.2f} [{looks.low:.2f}, {looks.high:.2f}]"],
        ["driver's memory, MB", number(there.driver_bytes_a_shard * there.shards / 1e6), "0.67 KB a shard"],
        ["a seal, MB", number(widest * there.shards / 1e6), f"{number(widest)} bytes a part"],
        ["parts at which a seal has 1 GiB", number(2**30 / widest), "one PUT takes no more"],
        ["a proxy's split in memory, TB", number(split), "features alone"],
        ["the subset's in memory, TB", number(there.keep * split), "features alone"],
        ["a selection in each worker of subset, GB", number(12 * there.keep * there.examples / 1e9), "12 bytes a kept row"],
    ]  # fmt: skip
    return markdown(["what", "figure", "of"], rows)


def fit_of_waits(lines: Sequence[Line]) -> Fit:
    """Return the fit of the driver's look at what is in flight."""
    chosen = [line for line in lines if line["part"] == "wait"]
    return fit_power([line["place"]["in flight"] for line in chosen], [line["found"]["seconds"] for line in chosen])
