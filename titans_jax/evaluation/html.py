"""A report as Markdown, and as one HTML file with its pictures inside: no script, no font, no other file."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
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
    style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    body = "".join(_section(i, section, folder) for i, section in enumerate(sections))
    return (
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{escape(title)}</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        "<meta name=color-scheme content='light dark'>"
        f"<link rel=icon href='data:,'><style>{style}</style></head><body><main><h1>{escape(title)}</h1>"
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
