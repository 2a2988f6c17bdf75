"""What a compiled program does on one device, read from its text: estimated cycles, and what goes over the links."""

import math
import re
from collections.abc import Callable, Iterator

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
WIRE: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
"""Of n devices in a ring, the bytes that each one sends for a byte of its result."""
COLLECTIVE = re.compile(rf" = (?P<result>.*) (?P<kind>{'|'.join(WIRE)})(?P<start>-start)?\(")


class Program:
    """The computations of a compiled program's text, each a list of instructions.

    A loop runs as often as the compiler notes at it. Without a note it is a scan's, from 0 by 1 to the constant that
    its condition compares with. Of two branches the one with more cycles counts. Raises ValueError for other loops.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[str]] = {}
        for line in text.splitlines():
            if header := re.match(r"(?:ENTRY )?%([\w.-]+) \(.*\{$", line):
                self.computations[header[1]] = lines = []
            elif line.startswith("  ") and self.computations:
                lines.append(line)
        [self.entry] = re.findall(r"^ENTRY %([\w.-]+)", text, flags=re.MULTILINE)

    def cycles(self, name: str | None = None) -> int:
        """The estimated cycles of a computation, or of the program: a loop's body as often as it runs."""
        total = 0
        for line in self.computations[name or self.entry]:
            total += int(found[1]) if (found := re.search(r'"estimated_cycles":"(\d+)"', line)) else 0
            total += sum(times * self.cycles(inner) for inner, times in self.called(line))
        return total

    def called(self, line: str) -> list[tuple[str, int]]:
        """The computations that an instruction runs, and how often; without those of fusions."""
        if found := re.search(r" while\(.*condition=%([\w.-]+), body=%([\w.-]+)", line):
            known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            times = int(known[1]) if known else _trips(self.computations[found[1]])
            return [(found[1], times), (found[2], times)]
        if found := re.search(r" conditional\(.*branch_computations=\{([^}]*)\}", line):
            return [(max((each.strip().removeprefix("%") for each in found[1].split(",")), key=self.cycles), 1)]
        return [(found[1], 1)] if (found := re.search(r" call\(.*to_apply=%([\w.-]+)", line)) else []

    def collectives(self) -> dict[str, dict[str, float]]:
        """Of each kind of collective, its "count" in one run of the program and the "bytes" that a device sends.

        One that is split over several fusions, so that it runs beside them, counts once.
        """
        whole: list[tuple[str, int]] = []
        parts: dict[str, tuple[str, int]] = {}
        for line, times, fused in self._runs(self.entry, 1):
            if not (found := COLLECTIVE.search(line)):
                continue
            if fused and (channel := re.search(r"channel_id=\d+", line)):
                key = found["kind"] + channel[0]
                parts[key] = min(parts.get(key, (line, times)), (line, times), key=lambda part: part[1])
            else:
                whole.append((line, times))
        total: dict[str, dict[str, float]] = {}
        for line, times in [*whole, *parts.values()]:
            kind, sent = wire(line)
            counted = total.setdefault(kind, {"count": 0, "bytes": 0})
            counted["count"] += times
            counted["bytes"] += times * sent
        return total

    def _runs(self, name: str, times: int, fused: bool = False) -> Iterator[tuple[str, int, bool]]:
        """Every instruction below a computation, how often it runs, and whether it is inside a fusion."""
        for line in self.computations[name]:
            yield line, times, fused
            for inner, often in self.called(line):
                yield from self._runs(inner, times * often, fused)
            if found := re.search(r" fusion\(.*calls=%([\w.-]+)", line):
                yield from self._runs(found[1], times, True)


def wire(line: str) -> tuple[str, float]:
    """The kind of a collective instruction, and the bytes that one device sends for it.

    >>> wire("  %a = f32[8,4]{1,0} all-gather(%x), replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}")
    ('all-gather', 96.0)
    """
    found = COLLECTIVE.search(line)
    assert found is not None, line
    kind, shapes = found["kind"], [_bytes(*shape) for shape in re.findall(r"(\w+)\[([\d,]*)\]", found["result"])]
    # An asynchronous gather's result holds its operand too; the results of a reduction of several arrays add up.
    size = max(shapes) if found["start"] and kind != "all-reduce" else sum(shapes)
    return kind, size * WIRE[kind](_group(line))


def _bytes(kind: str, shape: str) -> int:
    return BYTES.get(kind, 0) * math.prod(int(size) for size in shape.split(",") if size)


def _group(line: str) -> int:
    """The devices that take part in one collective together."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(found[1].split(","))
    if "source_target_pairs" in line:
        return 2
    raise ValueError(f"the compiler's program does not say how many devices share a collective: {line[:200]}")


def _trips(condition: list[str]) -> int:
    bounds = [int(found[1]) for text in condition if (found := re.search(r" constant\((\d+)\)", text))]
    if len(bounds) != 1 or not any("direction=LT" in text for text in condition):
        raise ValueError("the TPU compiler's program has a loop whose number of steps its condition does not say")
    return bounds[0]
