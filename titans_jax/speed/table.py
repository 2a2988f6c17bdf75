"""What a benchmark of speed found, and its table: only those columns of which a row has something."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from titans_jax.training.bench import Row, markdown

HEADS = {
    "cpu_ms": ("CPU-ms of 1,000 tokens (least to most)", ",.4g"),
    "wall_ms": ("wall ms of 1,000 tokens", ",.4g"),
    "tokens_per_second": ("tokens/s", ",.0f"),
    "flops_per_token": ("FLOPs a token", ",.0f"),
    "gflops_per_cpu_s": ("GFLOP/CPU-s", ".1f"),
    "share": ("share of the matmul rate (least to most)", ".1%"),
}
"""What may be shown of a row, in this order: its field's title and format."""


class Report(NamedTuple):
    """rows: what was found, by name. heads: of the columns after those of HEADS, as there. notes: lines below."""

    rows: Mapping[str, Row]
    heads: Mapping[str, tuple[str, str]] = {}
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """In markdown.

        >>> print(Report({"a": {"cpu_ms": 2.0, "cpu_ms_least": 1.0, "cpu_ms_most": 3.0}}).table())
        | what | CPU-ms of 1,000 tokens (least to most) |
        | --- | --- |
        | a | 2 (1 to 3) |
        """
        heads = {
            field: head
            for field, head in (HEADS | dict(self.heads)).items()
            if any(field in row for row in self.rows.values())
        }
        table = markdown([(title, _cell(field, spec)) for field, (title, spec) in heads.items()], self.rows, "what")
        return "\n\n".join([table, *self.notes])


def _cell(field: str, spec: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        if row.get(field) is None:
            return "-"
        around = [format(row[end], spec) for end in (f"{field}_least", f"{field}_most") if end in row]
        return format(row[field], spec) + (f" ({' to '.join(around)})" if around and field != "wall_ms" else "")

    return cell
