"""The report's style and script, written by hand: no library, and nothing that is fetched."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfb; --card: #ffffff; --ink: #1c2026; --soft: #5a626d; --rule: #d9dde3;
  --head: #f0f2f5; --link: #0b5cad; --good: #17703a; --bad: #b3261e; --warn: #8a5a00; --badbg: #fdeceb;
  --warnbg: #fff5dc; --c0: #0072b2; --c1: #d55e00; --c2: #00805c; --c3: #b5518f; --c4: #7a5c00; --c5: #5e3c99;
  --c6: #56606b; --c7: #b2182b; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --card: #1b1e24; --ink: #e7e9ec; --soft: #a2aab5;
  --rule: #363c46; --head: #242932; --link: #7cb8f5; --good: #6fd195; --bad: #ff8f85; --warn: #f3c15c;
  --badbg: #3a1f1e; --warnbg: #352b14; --c0: #5db4f0; --c1: #ff9447; --c2: #3fcf9f; --c3: #ee9bcb; --c4: #e0c04f;
  --c5: #b79cf0; --c6: #b4bdc8; --c7: #ff7d7d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1.4rem 4rem; max-width: 1500px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } p { margin: .3rem 0; max-width: 75em; } a { color: var(--link); }
.soft { color: var(--soft); } .note { font-size: .9rem; color: var(--soft); }
nav a { margin-right: 1rem; } nav { margin: .6rem 0 1rem; }
.box { border: 1px solid var(--rule); border-left: 5px solid var(--good); border-radius: 6px; padding: .5rem .9rem;
  margin: .6rem 0; background: var(--card); }
.box.bad { border-left-color: var(--bad); background: var(--badbg); }
.box.warn { border-left-color: var(--warn); background: var(--warnbg); }
.box ul { margin: .2rem 0; padding-left: 1.2rem; }
.badge { display: inline-block; padding: 0 .45em; border-radius: 4px; border: 1px solid currentColor; font-size: .8em;
  line-height: 1.5; white-space: nowrap; vertical-align: .05em; margin-right: .3em; font-weight: 500; }
.done { color: var(--good); } .failed { color: var(--bad); } .unfinished, .standin { color: var(--warn); }
.scroll { overflow: auto; max-height: 85vh; border: 1px solid var(--rule); border-radius: 6px;
  background: var(--card); width: fit-content; max-width: 100%; }
table { border-collapse: separate; border-spacing: 0; font-size: .88rem; width: max-content; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule);
  max-width: 26em; }
tbody tr:last-child > * { border-bottom: 0; } thead th { position: sticky; top: 0; z-index: 2; background: var(--head);
  vertical-align: bottom; } tbody th { font-weight: 500; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th button { all: unset; cursor: pointer; display: inline; font-weight: 600; color: var(--ink); }
th button:hover { text-decoration: underline; }
th button:focus-visible, a:focus-visible, summary:focus-visible, .scroll:focus-visible, input:focus-visible {
  outline: 2px solid var(--link); outline-offset: 2px; }
th button::after { content: " \\2195"; color: var(--soft); font-weight: 400; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: var(--link); }
th[aria-sort=descending] button::after { content: " \\2193"; color: var(--link); }
#runs tbody th, .gallery tbody th { position: sticky; left: 0; background: var(--card); z-index: 1; }
tbody tr:hover > *, #runs tbody tr:hover th, .gallery tbody tr:hover th { background: var(--head); }
.tools { margin: .5rem 0; display: flex; gap: .8rem; align-items: center; flex-wrap: wrap; }
input[type=search] { font: inherit; padding: .3rem .6rem; min-width: 18em; border: 1px solid var(--rule);
  border-radius: 5px; background: var(--card); color: var(--ink); }
details { border: 1px solid var(--rule); border-radius: 6px; margin: .4rem 0; background: var(--card);
  padding: .1rem .8rem; } details[open] { padding-bottom: .7rem; }
details details { background: var(--paper); } summary { cursor: pointer; padding: .3rem 0; }
pre { overflow: auto; max-height: 30rem; margin: .3rem 0; padding: .6rem; font: 12.5px/1.45 ui-monospace,
  "DejaVu Sans Mono", monospace; background: var(--head); border-radius: 5px; white-space: pre-wrap; }
.charts { display: flex; flex-wrap: wrap; gap: .6rem; margin: .5rem 0; }
.chart { width: 340px; max-width: 100%; height: auto; background: var(--card); border: 1px solid var(--rule);
  border-radius: 6px; }
.chart text { font-size: 10.5px; fill: var(--soft); } .chart .t { font-size: 12px; font-weight: 600; fill: var(--ink); }
.chart path { fill: none; } .g { stroke: var(--rule); } .a { stroke: var(--soft); }
.chart polyline { fill: none; stroke-width: 1.5; stroke-linejoin: round; } .d { stroke-dasharray: 5 3; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); } .s3 { stroke: var(--c3); }
.s4 { stroke: var(--c4); } .s5 { stroke: var(--c5); } .s6 { stroke: var(--c6); } .s7 { stroke: var(--c7); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .88rem; list-style: none; padding: 0;
  margin: .3rem 0; } .legend svg { width: 26px; height: 10px; margin-right: .35em; stroke-width: 3; }
figure { margin: .6rem 0; } figcaption { font-size: .88rem; color: var(--soft); }
figure img { max-width: 100%; height: auto; border: 1px solid var(--rule); border-radius: 4px; background: #fff; }
.pic { display: block; position: relative; width: 144px; background-size: 100% 100%; image-rendering: pixelated;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.pic img { position: absolute; inset: 0; width: 100%; height: 100%; image-rendering: auto; }
.pic:hover img, .bare .pic img { visibility: hidden; }
.gallery td, .gallery th { padding: .35rem; } .gallery thead th { max-width: 156px; overflow-wrap: anywhere; }
.cap { font-size: .8rem; color: var(--soft); display: block; width: 144px; overflow-wrap: anywhere; }
.key { display: inline-block; width: .9em; height: .9em; border: 2px solid; vertical-align: -.1em;
  margin: 0 .3em 0 .8em; }
.km { border-color: #ff8c00; background: #ff8c0060; } .kr { border-color: #40e0d0; }
[hidden] { display: none !important; }
@media print { .scroll { max-height: none; overflow: visible; } .tools { display: none; } }
"""

#: `#sort=ID:COLUMN:asc|desc` sorts a table, `#filter=WORDS` filters the runs, `#run-N` opens a run; joined by "&".
SCRIPT = """
"use strict";
(() => {
  const value = (row, column) => {
    const cell = row.cells[column];
    if (!cell) return null;
    if (cell.dataset.v !== undefined) return cell.dataset.v === "" ? null : Number(cell.dataset.v);
    const text = cell.textContent.trim();
    return text === "" || text === "\\u2013" ? null : text;
  };
  // Numbers before words, and what is not there last, whichever way.
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    if (typeof a === "number") return sign * (a - b);
    return sign * a.localeCompare(b, undefined, { numeric: true, sensitivity: "base" });
  };
  const sort = (table, column, descending) => {
    const heads = table.tHead.rows[0].cells;
    if (!heads[column] || !heads[column].hasAttribute("aria-sort")) return;
    const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
    rows.sort((a, b) => compare(a[0], b[0], descending ? -1 : 1));
    table.tBodies[0].append(...rows.map((pair) => pair[1]));
    for (const head of heads) if (head.hasAttribute("aria-sort")) head.setAttribute("aria-sort", "none");
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  const box = document.getElementById("filter");
  const filter = () => {
    if (!box) return;
    const words = box.value.toLowerCase().split(/\\s+/).filter((word) => word);
    let shown = 0;
    for (const row of document.getElementById("runs").tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
      const details = document.getElementById(row.dataset.run);
      if (details) details.hidden = row.hidden;
    }
    document.getElementById("shown").textContent = `${shown} of ${box.dataset.all} runs`;
  };
  const state = new URLSearchParams();
  const keep = () => { try { history.replaceState(null, "", "#" + state); } catch { /* a viewer without history */ } };
  const read = () => {
    const hash = location.hash.slice(1);
    const target = document.getElementById(hash);
    if (target) {
      if (target.tagName === "DETAILS") { target.hidden = false; target.open = true; target.scrollIntoView(); }
      return;
    }
    for (const [name, text] of new URLSearchParams(hash)) {
      state.set(name, text);
      const [id, column, way] = text.split(":");
      const table = document.getElementById(id);
      if (name === "sort" && table && table.tHead) sort(table, Number(column), way === "desc");
      if (name === "filter" && box) { box.value = text; filter(); }
    }
  };
  document.addEventListener("click", (event) => {
    const head = event.target.closest("th[aria-sort]");
    if (!head) return;
    const table = head.closest("table");
    const descending = head.getAttribute("aria-sort") === "ascending";
    sort(table, head.cellIndex, descending);
    state.set("sort", `${table.id}:${head.cellIndex}:${descending ? "desc" : "asc"}`);
    keep();
  });
  if (box) box.addEventListener("input", () => { filter(); state.set("filter", box.value); keep(); });
  const masks = document.getElementById("masks");
  if (masks) masks.addEventListener("change", () => document.body.classList.toggle("bare", !masks.checked));
  window.addEventListener("hashchange", read);
  read();
})();
"""
