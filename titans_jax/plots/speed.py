"""Pictures of speed: the cost of tokens, and how it grows with the length."""

from collections.abc import Mapping
from typing import Any

from titans_jax.plots.legends import legend_below
from titans_jax.plots.style import BLUE, INK, MUTED, ORANGE, drawing, log_ticks, short, write
from titans_jax.plots.types import Figure, Target

_LINES = {
    "cpu_ms": ("CPU-ms of 1,000 tokens", 1),
    "peak_bytes": ("Peak memory of the process, GB", 1e9),
    "bytes_per_token": ("KiB per token", 1024),
}
_COLOURS = (BLUE, ORANGE, INK)
_BARS = {"cpu_s": "CPU-seconds", "cpu_ms": "CPU-ms of 1,000 tokens", "share": "share of the machine's matmul rate"}


def speed_bars(rows: Mapping[str, Mapping[str, Any]], path: Target) -> Figure:
    """Draws the cost of 1,000 tokens for each subject, and its share of the matmul rate where FLOPs were counted.

    rows: cpu_ms, or cpu_s for a subject without tokens; perhaps share; and the ends of each whisker, such as
    cpu_ms_least and cpu_ms_most. Raises ValueError if there is no such row.
    """
    shown = {name: row for name, row in rows.items() if "cpu_ms" in row or "cpu_s" in row}
    if not shown:
        raise ValueError("there is nothing to draw: no row has cpu_ms")
    fields = [field for field in _BARS if any(field in row for row in shown.values())]
    with drawing(5 + 4.5 * len(fields), 1.1 + 0.3 * len(shown)) as figure:
        panels = figure.subplots(1, len(fields), sharey=True, squeeze=False)[0]
        for axes, field, colour in zip(panels, fields, (BLUE, ORANGE, MUTED), strict=False):
            here = {name: row for name, row in shown.items() if field in row}
            values = [row[field] for row in here.values()]
            ends = [[row[field] - row[f"{field}_least"], row[f"{field}_most"] - row[field]] for row in here.values()]
            whiskers = dict(xerr=list(zip(*ends, strict=True)), error_kw=dict(ecolor=INK, lw=1, capsize=2))
            axes.barh(list(here), values, color=colour, height=0.65, **whiskers)
            for name, row in here.items():
                percent = field == "share"
                text = f"{float(f'{row[field] * (100 if percent else 1):.3g}'):,.10g}{'%' * percent}"
                axes.annotate(
                    text, (row[f"{field}_most"], name), (4, 0), textcoords="offset points", va="center", fontsize=8
                )
            axes.margins(x=0.15)
            axes.set(title=_BARS[field])
            axes.grid(axis="y", visible=False)
            if field == "share":
                axes.xaxis.set_major_formatter(lambda x, _: f"{float(f'{100 * x:.6g}'):g}%")
            elif max(values) > 50 * min(values):
                axes.set_xscale("log")
                log_ticks(axes.xaxis)
        panels[0].invert_yaxis()  # they share it
        return write(figure, path, shown)


def speed_lines(rows: Mapping[str, Mapping[str, Any]], path: Target) -> Figure:
    """Draws the cost of a token, and the memory where it was measured, against the number of tokens.

    rows: pass, which names the line; tokens; cpu_ms with cpu_ms_least and cpu_ms_most; perhaps peak_bytes and
    bytes_per_token. Raises ValueError if there is no row with cpu_ms.
    """
    shown = {name: row for name, row in rows.items() if "cpu_ms" in row}
    if not shown:
        raise ValueError("there is nothing to draw: no row has cpu_ms")
    fields = [field for field in _LINES if any(field in row for row in shown.values())]
    with drawing(1 + 4.6 * len(fields), 4) as figure:
        panels = figure.subplots(1, len(fields), squeeze=False)[0]
        for axes, field in zip(panels, fields, strict=True):
            title, unit = _LINES[field]
            for kind, colour in zip(dict.fromkeys(row["pass"] for row in shown.values()), _COLOURS, strict=False):
                line = [row for row in shown.values() if row["pass"] == kind and field in row]
                tokens = [row["tokens"] for row in line]
                axes.plot(tokens, [row[field] / unit for row in line], "o-", color=colour, ms=4.5, lw=1.4, label=kind)
                if field == "cpu_ms":
                    ends = ([row[f"{field}_{end}"] for row in line] for end in ("least", "most"))
                    axes.fill_between(tokens, *ends, color=colour, alpha=0.15, lw=0)
            axes.set(title=title, xlabel="tokens", xscale="log")
            axes.set_ylim(bottom=0)
            at = sorted({row["tokens"] for row in shown.values()})
            axes.set_xticks(at, [short(n) for n in at])
            axes.minorticks_off()
        legend_below(figure, panels[0])
        return write(figure, path, shown)
