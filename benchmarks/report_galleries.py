"""The report's pictures: figures with captions, and galleries of images beside every arm's masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskaug.benchmarks.gallery import Gallery, read_gallery
from maskaug.benchmarks.report_found import shown
from maskaug.benchmarks.report_html import Budget, Column, badge, details, escaped, table
from maskaug.benchmarks.report_pictures import embedded, overlay, small_image
from maskaug.envs.errors import ConfigurationError

#: images of a gallery that are shown.
IMAGES = 24
#: pixels across that a PNG file's picture may keep, and bytes that a run's picture of that width takes at most.
WIDTHS, _COSTS = (1400, 640, 400), (120_000, 60_000, 0)
#: with fewer bytes left nothing more is tried.
_FULL = 20_000


def width_for(count: int, budget: Budget) -> int:
    """How wide `count` pictures may be for all of them to fit, as a rule; what is reduced is said on the page."""
    room = budget.left / max(count, 1)
    across = next((width for width, cost in zip(WIDTHS, _COSTS, strict=True) if room >= cost), WIDTHS[-1])
    if across < WIDTHS[0]:
        budget.notes.append(f"the runs' {count} pictures are reduced to {across} pixels across")
    return across


def figures(files: Sequence[tuple[str, Path]], across: int, budget: Budget, problems: list[str]) -> str:
    """PNG files with their captions, at most `across` pixels wide; what cannot be used is added to `problems`."""
    return "".join(_picture(file, caption, across, budget, problems) for caption, file in files)


def _picture(file: Path, caption: str, across: int, budget: Budget, problems: list[str]) -> str:
    # What is nearly full would be filled by no more than luck, and every try decodes a picture.
    if budget.left < _FULL:
        budget.drop("pictures")
        return ""
    try:
        uri, width, height = embedded(file, across)
    except ConfigurationError as error:
        problems.append(str(error))
        return ""
    told = escaped(shown(caption))
    image = f'<img src="{uri}" width="{width}" height="{height}" alt="{told}" loading="lazy">'
    return budget.take("pictures", f"<figure>{image}<figcaption>{told}</figcaption></figure>")


def galleries_of(files: Sequence[tuple[str, Path]], budget: Budget, problems: list[str]) -> tuple[str, str]:
    """The galleries, and the style that holds their images: each is on the page once, below all of its masks."""
    parts: list[str] = []
    styles: list[str] = []
    for i, (folder, file) in enumerate(files):
        if budget.left < _FULL:
            budget.drop("galleries", len(files) - i)
            break
        try:
            gallery = read_gallery(file, IMAGES)
        except ConfigurationError as error:
            problems.append(str(error))
            continue
        text, style = _gallery(f"gallery-{i + 1}", gallery, folder)
        if budget.take("galleries", text + style):
            heading = escaped(gallery.title or folder)
            marks = badge("stand-in", "standin") if gallery.stand_in else ""
            parts.append(details("", f"<strong>{heading}</strong> {marks}", text, is_open=not parts))
            styles.append(style)
    if not parts:
        return "", ""
    return (
        '<div class="tools"><label><input type="checkbox" id="masks" checked> masks and outlines</label>'
        '<span class="soft"><span class="key km"></span>mask <span class="key kr"></span>known region; '
        "a pointer over a picture takes them away</span></div>" + "".join(parts),
        "\n".join(styles),
    )


def _gallery(name: str, gallery: Gallery, folder: str) -> tuple[str, str]:
    height, width = gallery.images.shape[2:]
    styles = [f".{name} {{ aspect-ratio: {width} / {height}; }}"]
    regions = gallery.regions
    heads = [Column("image"), *([Column("known region")] if regions is not None else []), *map(Column, gallery.masks)]
    rows = []
    for i, image in enumerate(gallery.images):
        own, label = f"{name}-{i + 1}", escaped(shown(gallery.names[i], 60))
        styles.append(f'.{own} {{ background-image: url("{small_image(image)}"); }}')

        def picture(over: str, told: str, own: str = own, label: str = label) -> str:
            inside = f'<img src="{over}" alt="{told}">' if over else ""
            role = "" if over else f' role="img" aria-label="{label}"'
            return f'<span class="pic {name} {own}"{role}>{inside}</span>'

        cells = [f'<th scope="row">{picture("", "")}<span class="cap">{label}</span></th>']
        region = None if regions is None or not regions[i].any() else regions[i]
        if regions is not None:
            share = "" if region is None else f"{float(region.mean())!r}"
            told = "none known" if region is None else f"{region.mean():.1%} of the image"
            over = "" if region is None else overlay(None, region)
            cells.append(
                f'<td data-v="{share}">{picture(over, f"its region, {told}")}<span class="cap">{told}</span></td>'
            )
        for arm, masks in gallery.masks.items():
            area = float(masks[i].mean())
            kept = None if region is None else float(masks[i][region].mean())
            told = f"{area:.1%} of the image" if kept is None else f"{kept:.0%} of the region, {area:.1%} of the image"
            key = "" if regions is not None and kept is None else repr(area if kept is None else kept)
            over = overlay(masks[i], region)
            shape = picture(over, f"{escaped(shown(arm, 60))}: {told}")
            cells.append(f'<td data-v="{key}">{shape}<span class="cap">{told}</span></td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    by = "area" if regions is None else "the share of the region that they select"
    notes = [gallery.note, folder, f"Masks sort by {by}."]
    if gallery.left_out:
        notes.append(f"The first {IMAGES} images; {gallery.left_out} more stand in its file.")
    told = "".join(f'<p class="note">{escaped(note)}</p>' for note in notes if note)
    return told + table(name, gallery.title or folder, heads, rows, "gallery"), "\n".join(styles)
