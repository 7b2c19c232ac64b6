"""The picture of docs/grpc-or-json.md, drawn by hand: bytes on the left, CPU time on the right. For grpc_or_json.py."""

import statistics

ROW, BAR, LEFT, PANEL, GAP, TOP = 34, 9, 190, 300, 70, 64
# On light paper and on dark; the picture has no ground of its own.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #3d4450 }
.title { font-size: 13px; font-weight: 600 }
.quiet { fill: #6b7480; font-size: 11px }
.axis { stroke: #b9c0ca; stroke-width: 1 }
.said { fill: #2f6db5 } .message { fill: #86b1e0 } .wire { fill: #d3dce8 }
.few { fill: #e0b070 } .many { fill: #b8742a }
@media (prefers-color-scheme: dark) {
  text { fill: #d5dae1 } .quiet { fill: #98a1ad } .axis { stroke: #4c5562 }
  .said { fill: #6aa9f0 } .message { fill: #3f6ea5 } .wire { fill: #333f4f }
  .few { fill: #8a5f2c } .many { fill: #dd9a50 }
}
"""


def rect(x, y, width, height, style):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height}" class="{style}"/>'


def text(x, y, words, style="", anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{words}</text>'


def legend(x, y, entries):
    parts = []
    for style, words in entries:
        parts += [rect(x, y - 9, 10, 10, style), text(x + 15, y, words, "quiet")]
        x += 15 + 6.2 * len(words) + 18
    return parts


def picture(cells):
    """An SVG: of each face the bytes a token as text, as messages and on the wire, and what serving one costs."""

    names, scales = list(cells), list(next(iter(cells.values())))

    def median(name, streams, key):
        return statistics.median(cell[key] for cell in cells[name][streams])

    second = LEFT + PANEL + GAP
    few, many = scales[-2] if len(scales) > 1 else scales[-1], scales[-1]
    bytes_full = max(median(name, scales[0], "down") for name in names)
    cpu_full = max(median(name, streams, "serving") for name in names for streams in (few, many))
    height = TOP + ROW * len(names) + 18
    parts = [
        text(LEFT, 18, "Bytes a token, from the server", "title"),
        *legend(LEFT, 40, [("said", "text"), ("message", "message"), ("wire", "frames, headers")]),
        text(second, 18, "Server CPU a token, without the model, µs", "title"),
        *legend(second, 40, [("few", f"{int(few):,} streams"), ("many", f"{int(many):,} streams")]),
    ]
    for k, name in enumerate(names):
        y = TOP + k * ROW
        said, payload, down = (median(name, scales[0], key) for key in ("said", "payload", "down"))
        parts.append(text(LEFT - 10, y + 14, name, anchor="end"))
        parts.append(rect(LEFT, y, PANEL * down / bytes_full, 2 * BAR + 2, "wire"))
        parts.append(rect(LEFT, y, PANEL * min(payload, down) / bytes_full, 2 * BAR + 2, "message"))
        parts.append(rect(LEFT, y, PANEL * said / bytes_full, 2 * BAR + 2, "said"))
        parts.append(text(LEFT + PANEL * down / bytes_full + 6, y + 14, f"{down:.0f}", "quiet"))
        for row, (streams, style) in enumerate(((few, "few"), (many, "many"))):
            cost = median(name, streams, "serving")
            parts.append(rect(second, y + row * (BAR + 2), PANEL * cost / cpu_full, BAR, style))
            parts.append(text(second + PANEL * cost / cpu_full + 6, y + row * (BAR + 2) + 9, f"{cost:.1f}", "quiet"))
    for x in (LEFT, second):
        parts.append(f'<line x1="{x}" y1="{TOP - 6}" x2="{x}" y2="{height - 12}" class="axis"/>')
    width = second + PANEL + 50
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>", ""])
