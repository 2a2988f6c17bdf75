"""What a benchmark of speed found, and its table: only those columns of which a row has something."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from titans_jax.results import Row, markdown

HEADS = {
    "times_cpu": ("CPU-seconds, first over second (least to most)", ".3g"),
    "times_wall": ("wall time", ".3g"),
    "cpu_ms": ("CPU-ms of 1,000 tokens (least to most)", ".4g"),
    "wall_ms": ("wall ms of 1,000 tokens", ".4g"),
    "cpu_s": ("CPU-s (least to most)", ".3g"),
    "wall_s": ("wall s", ".3g"),
    "tokens_per_second": ("tokens/s", ",.0f"),
    "flops_per_token": ("FLOPs a token", ",.0f"),
    "gflops_per_cpu_s": ("GFLOP/CPU-s", ".1f"),
    "share": ("share of the matmul rate (least to most)", ".1%"),
}
"""What may be shown of a row, in this order: its field's title and format."""


class Report(NamedTuple):
    """rows: what was found, by name. ratios: what comparing them found; notes: lines below them both.

    heads: of the columns after those of HEADS, as there. picture: bars, or lines over the rows' `tokens`.
    """

    rows: Mapping[str, Row]
    ratios: Mapping[str, Row] = {}
    notes: tuple[str, ...] = ()
    heads: Mapping[str, tuple[str, str]] = {}
    picture: str = "bars"

    def table(self) -> str:
        """In markdown.

        >>> print(Report({"a": {"cpu_ms": 2.0, "cpu_ms_least": 1.0, "cpu_ms_most": 3.0}}).table())
        | what | CPU-ms of 1,000 tokens (least to most) |
        | --- | --- |
        | a | 2 (1 to 3) |
        """
        return "\n\n".join([*(self._one(rows) for rows in (self.rows, self.ratios) if rows), *self.notes])

    def _one(self, rows: Mapping[str, Row]) -> str:
        heads = HEADS | dict(self.heads)
        there = {field: head for field, head in heads.items() if any(field in row for row in rows.values())}
        return markdown([(title, _cell(field, spec)) for field, (title, spec) in there.items()], rows, "what")


def _cell(field: str, spec: str) -> Callable[[Row], str]:
    def shown(value: float) -> str:
        # 49,400 and not 4.94e+04
        return f"{float(format(value, spec)):,.10g}" if spec.endswith("g") else format(value, spec)

    def cell(row: Row) -> str:
        if row.get(field) is None:
            return "-"
        around = [shown(row[end]) for end in (f"{field}_least", f"{field}_most") if end in row]
        return shown(row[field]) + (f" ({' to '.join(around)})" if around and "wall" not in field else "")

    return cell
