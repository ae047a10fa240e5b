"""Reading a report's page in tests, strictly: a tag that is not closed, or an id that is there twice, is an error."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from maskaug.benchmarks.report import report

VOID = {"meta", "link", "img", "input", "br"}
Row = list[tuple[str, dict[str, str]]]


class Page(HTMLParser):
    """What a page holds: `tags` with their attributes, `text`, tables by id as rows of (text, attributes)."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[Row]] = {}
        self.rows: dict[str, list[dict[str, str]]] = {}
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.words: list[str] = []
        self._open: list[str] = []
        self._in: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def titles(self, table: str) -> list[str]:
        return [text for text, _ in self.tables[table][0]]

    def body(self, table: str) -> list[Row]:
        return self.tables[table][1:]

    def column(self, table: str, title: str) -> list[str]:
        at = self.titles(table).index(title)
        return [row[at][0] for row in self.body(table)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        assert len(attributes) == len(attrs)
        self.tags.append((tag, attributes))
        if tag in VOID:
            return
        self._open.append(tag)
        if tag == "table":
            self._in.append(attributes.get("id", ""))
            self.tables.setdefault(self._in[-1], [])
            self.rows.setdefault(self._in[-1], [])
        elif tag == "tr":
            self.tables[self._in[-1]].append([])
            self.rows[self._in[-1]].append(attributes)
        elif tag in ("td", "th"):
            self.tables[self._in[-1]][-1].append(("", attributes))

    def handle_endtag(self, tag: str) -> None:
        assert tag not in VOID
        assert self._open.pop() == tag
        if tag == "table":
            self._in.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in self.raw:
            self.raw[self._open[-1]].append(data)
            return
        self.words.append(data)
        if self._in and {"td", "th"} & set(self._open):
            text, attributes = self.tables[self._in[-1]][-1][-1]
            self.tables[self._in[-1]][-1][-1] = (text + data, attributes)


def made(out: Path, *folders: Path, **more: object) -> Page:
    report(folders, out, **more)  # type: ignore[arg-type]
    return Page(out.read_text(encoding="utf-8"))
