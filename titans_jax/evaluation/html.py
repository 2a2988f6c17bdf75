"""A report as Markdown, and as one HTML file with its pictures inside: no script, no font, no other file."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple


class Sample(NamedTuple):
    """prompt: the model's input. written: its continuation. truth: the continuation in the text."""

    prompt: str
    written: str
    truth: str


class Section(NamedTuple):
    """text: plain sentences. pictures: file names beside the report, and captions."""

    title: str
    text: str
    pictures: Sequence[tuple[str, str]] = ()
    samples: Sequence[Sample] = ()


def to_markdown(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The report as Markdown, with links to the pictures beside it."""
    lines = [f"# {title}", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in facts.items()]
    for section in sections:
        lines += ["", f"## {section.title}", "", section.text]
        for sample in section.samples:
            for name, text in sample._asdict().items():
                lines += ["", f"{name}:", "", *(f"    {line}" for line in text.splitlines() or [""])]
        for name, caption in section.pictures:
            lines += ["", f"![{caption}]({name})"]
    return "\n".join(lines) + "\n"


def to_html(title: str, facts: Mapping[str, str], sections: Sequence[Section], folder: Path) -> str:
    """The report as one HTML file, with the pictures of `folder` inside."""
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items()
    )
    links = "".join(f"<li><a href='#s{i}'>{escape(section.title)}</a></li>" for i, section in enumerate(sections))
    body = "".join(_section(i, section, folder) for i, section in enumerate(sections))
    return (
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{escape(title)}</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        "<meta name=color-scheme content='light dark'>"
        f"<link rel=icon href='data:,'><style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
        f"<table>{rows}</table><nav aria-label=Sections><ul>{links}</ul></nav>{body}</main></body></html>\n"
    )


def _section(number: int, section: Section, folder: Path) -> str:
    parts = [f"<section id=s{number}><h2>{escape(section.title)}</h2><p>{escape(section.text)}</p>"]
    for sample in section.samples:
        parts.append(
            f"<blockquote><p><span class=prompt>{escape(sample.prompt)}</span>{escape(sample.written)}</p>"
            f"<footer>The text continues: {escape(sample.truth)}</footer></blockquote>"
        )
    for name, caption in section.pictures:
        kind, raw = Path(name).suffix[1:], (folder / name).read_bytes()
        source = f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"
        parts.append(
            f"<figure><img src='{source}' alt='{escape(caption)}'><figcaption>{escape(caption)}</figcaption></figure>"
        )
    return "".join(parts) + "</section>"


_STYLE = """
:root { --ink: #1d2433; --soft: #5b6472; --paper: #fbfbfc; --card: #fff; --line: #dfe3e8; --link: #2f5fae; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --soft: #a4adba; --paper: #14171c; --card: #1d2128; --line: #343b46; --link: #8fb4f0; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 1.5rem clamp(0.8rem, 3vw, 2rem) 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 0.4rem; }
p { max-width: 46rem; }
a { color: var(--link); }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0.3rem 1rem; }
table { border-collapse: collapse; width: 100%; max-width: 46rem; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 1rem 0.25rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); white-space: nowrap; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
figure { margin: 1rem 0; padding: 0.6rem; overflow-x: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 8px; }
figure img { display: block; width: 100%; min-width: 40rem; height: auto; }
figcaption { color: #5b6472; font-size: 0.85rem; padding-top: 0.4rem; }
blockquote { margin: 0.8rem 0; padding: 0.6rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; overflow-wrap: anywhere; }
blockquote p { margin: 0; max-width: none; white-space: pre-wrap; font: 0.9rem/1.5 ui-monospace, monospace; }
blockquote footer { margin-top: 0.5rem; color: var(--soft); font-size: 0.85rem; white-space: pre-wrap; }
.prompt { color: var(--soft); }
"""
