"""The tables of what `benchmarks.scale` has measured: fits, requests, the check on the real pool, and what 1e10 examples ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.scale_fit import Fit, fit_power, greedy_bound, lower_bound
from benchmarks.scale_run import ITEMS, SLOTS, STRAGGLERS, durations

Line = dict[str, Any]
STAGES = ("shard", "proxy", "score", "merge", "select", "subset", "train")
VARIABLES = ("rows", "shards", "proxies", "classes", "features")
READS, WRITES = ("get_object", "head_object"), ("put_object", "list_objects_v2", "delete_object")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def number(value: float) -> str:
    """Return a number to two digits, whole ones in full."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def size_of(line: Line, variable: str) -> int:
    """Return the variable of a measurement; of shards those there are, which may be more than were asked for."""
    return int(line["found"]["seals"]["score"][0] if variable == "shards" else line["place"][variable])


def fit_of(lines: Sequence[Line], part: str, stage: str, what: str = "cpu") -> Fit:
    """Return the fit of a stage's cost over the part's variable. Raises ValueError where too little is measured."""
    chosen = [line for line in lines if line["part"] == part]
    return fit_power([size_of(line, part) for line in chosen], [line["found"][stage][what] for line in chosen])


def growth(lines: Sequence[Line]) -> str:
    """Return the fits of every stage over every variable."""
    out = []
    for part in VARIABLES:
        chosen = [line for line in lines if line["part"] == part]
        if len({size_of(line, part) for line in chosen}) < 3:
            continue
        most = max(size_of(line, part) for line in chosen)
        for stage in STAGES:
            fit = fit_of(lines, part, stage)
            there = [line["found"][stage]["cpu"] for line in chosen if size_of(line, part) == most]
            peak = max(line["found"][stage]["peak_mib"] for line in chosen if size_of(line, part) == most)
            out.append([part, stage, f"{fit.exponent:.2f} [{fit.low:.2f}, {fit.high:.2f}]", number(fit.fixed),
                        f"{fit.spread:.2f}", f"{most:,}", number(sum(there) / len(there)), number(peak)])  # fmt: skip
    head = ["over", "stage", "exponent [95 %]", "fixed, CPU s", "spread of log", "at most", "CPU s there", "peak MiB there"]
    return markdown(head, out)


def _slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return (a shard, fixed) of counts, which are straight lines: from the fewest shards to the most."""
    (first, low), (last, high) = min(points), max(points)
    each = (high - low) / (last - first)
    return each, low - each * first


def asked_of_s3(lines: Sequence[Line]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return, by stage and kind (read, write), the requests to S3 that a shard adds and those that do not grow."""
    out: dict[str, dict[str, tuple[float, float]]] = {}
    chosen = [line for line in lines if line["part"] == "s3"]
    for stage in STAGES if len(chosen) > 1 else ():
        out[stage] = {}
        for kind, methods in (("read", READS), ("write", WRITES)):
            counts = [(size_of(line, "shards"), sum(line["found"][stage].get(one, 0) for one in methods)) for line in chosen]
            out[stage][kind] = _slope(counts)
    return out


def reads_a_megabyte(lines: Sequence[Line]) -> dict[str, float]:
    """Return, by stage, the reads of S3 that each MB of data adds, beyond those of a small shard."""
    low, high = sorted((line for line in lines if line["part"] == "s3_wide"), key=lambda line: int(line["place"]["rows"]))
    more = 4e-6 * (high["place"]["rows"] - low["place"]["rows"]) * high["place"]["features"]

    def reads(line: Line, stage: str) -> int:
        return sum(line["found"][stage].get(one, 0) for one in READS)

    return {stage: (reads(high, stage) - reads(low, stage)) / more for stage in STAGES}


def volume(lines: Sequence[Line]) -> dict[str, tuple[float, float]]:
    """Return, by stage, the bytes written and read a train row, at the most rows that are measured."""
    chosen = [line for line in lines if line["part"] == "rows"]
    most = max(chosen, key=lambda line: int(line["place"]["rows"]))
    rows = most["place"]["rows"]
    return {s: (most["found"][s].get("bytes in", 0) / rows, most["found"][s].get("bytes out", 0) / rows) for s in STAGES}


def seal_bytes(lines: Sequence[Line]) -> dict[str, float]:
    """Return, by stage, the bytes that a part adds to the seal."""
    chosen = [line for line in lines if line["part"] == "shards"]
    most = max(chosen, key=lambda line: int(line["place"]["shards"]))
    return {stage: size / parts for stage, (parts, size) in most["found"]["seals"].items() if parts > 10}


def asked(lines: Sequence[Line]) -> str:
    """Return what a stage asks of its store."""
    grown, moved, seals, more = asked_of_s3(lines), volume(lines), seal_bytes(lines), reads_a_megabyte(lines)
    rows = []
    for stage, counts in grown.items():
        calls = [f"{number(each)} a shard {'-' if fixed < 0 else '+'} {number(abs(fixed))}" for each, fixed in counts.values()]
        seal = number(seals[stage]) if stage in seals else "-"
        rows.append([stage, *calls, number(more[stage]), *(number(one) for one in moved[stage]), seal])
    head = ["stage", "S3 reads", "S3 writes and lists", "more reads a MB of data", "bytes written a row", "bytes read a row",
            "seal, bytes a part"]  # fmt: skip
    return markdown(head, rows)


def finished(lines: Sequence[Line]) -> str:
    """Return what `plan` and a finished run ask of the store."""
    rows = []
    for line in lines:
        if line["part"] == "finished":
            for command, found in line["found"].items():
                calls = {name: count for name, count in sorted(found["calls"].items()) if not name.startswith("bytes")}
                # Of S3, requests alone are counted.
                read = number(found["calls"]["bytes out"] / 1e6) if "bytes out" in found["calls"] else "-"
                rows.append([command, line["place"]["store"], f"{line['place']['shards']:,}", str(sum(calls.values())),
                             ", ".join(f"{count} {name}" for name, count in calls.items()),
                             read, f"{found['seconds']:.2f}"])  # fmt: skip
    return markdown(["command", "store", "shards", "calls", "of these", "MB read", "seconds"], rows)


def pool(lines: Sequence[Line]) -> str:
    """Return the makespans of the real pool beside their bounds, and what the fit of the smaller ones says of the largest."""
    chosen = [line for line in lines if line["part"] == "pool"]
    small = [line for line in chosen if line["place"]["items"] < ITEMS]
    rows = []
    if len(small) > 2:
        fit = fit_power([line["place"]["items"] for line in small], [line["found"]["makespan"] for line in small])
        said = f"fit of up to {max(line['place']['items'] for line in small):,}: exponent {fit.exponent:.2f} " \
               f"[{fit.low:.2f}, {fit.high:.2f}], {fit.at(ITEMS):.1f} s at {ITEMS:,}"  # fmt: skip
        rows.append([said, *[""] * 7])
    for line in [*chosen, *(line for line in lines if line["part"] == "makespan")]:
        found, place = line["found"], line["place"]
        slots = [(0.0, place["slots"])]
        if found["node_lost_at"] is not None:
            slots.append((found["node_lost_at"], place["slots"] - SLOTS))
        waits = durations(place["items"], STRAGGLERS if line["part"] == "makespan" else 0)
        least, real = lower_bound(sum(waits), max(waits), slots), lower_bound(found["work"], found["longest"], slots)
        name = {True: ", a node dies", False: ", stragglers", None: ""}[place.get("node dies")]
        rows.append([f"{place['items']:,} items{name}", str(place["slots"]), f"{found['makespan']:.1f}", f"{least:.1f}",
                     f"{found['makespan'] / least:.2f}", f"{real:.1f}", f"{found['makespan'] / real:.2f}",
                     f"{greedy_bound(found['work'], found['longest'], slots[-1][1]):.1f}"])  # fmt: skip
    head = ["run", "slots", "makespan s", "bound of the waits s", "times it", "bound of waits and publishing s", "times it",
            "any greedy order s"]  # fmt: skip
    return markdown(head, rows)


def nodes(lines: Sequence[Line]) -> str:
    """Return how the same work a slot takes longer on more nodes, all of them in this machine."""
    rows = []
    for line in lines:
        if line["part"] == "nodes":
            found, place = line["found"], line["place"]
            least = lower_bound(found["work"], found["longest"], [(0.0, place["slots"])])
            rows.append([str(place["nodes"]), str(place["slots"]), f"{found['start']:.1f}", f"{found['makespan']:.2f}",
                         f"{found['makespan'] / least:.2f}"])  # fmt: skip
    return markdown(["nodes", "slots", "start s", "makespan s", "times its bound"], rows)


def tables(lines: Sequence[Line]) -> str:
    """Return all tables whose parts are measured."""
    from benchmarks import scale_plan

    measured = {line["part"] for line in lines}
    there, plan = scale_plan.Cluster(), {"rows", "shards", "s3", "s3_wide", "features", "proxies", "pool"}
    known = [
        ("What a stage costs, on one thread", {"rows"}, growth),
        ("What a stage asks of the store", {"rows", "shards", "s3", "s3_wide"}, asked),
        ("`plan` and a finished run", {"finished"}, finished),
        ("The real pool, waits for work", {"pool", "makespan"}, pool),
        ("Nodes", {"nodes"}, nodes),
        ("1e10 examples on 1,000 GPUs, by stage", plan, lambda all_: scale_plan.stages(all_, there)),
        ("Its driver and records", {"pool", "wait", "shards"}, lambda all_: scale_plan.driver(all_, there)),
    ]
    return "\n\n".join(f"## {name}\n\n{make(lines)}" for name, needs, make in known if needs <= measured)
