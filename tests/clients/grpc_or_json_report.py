"""What grpc_or_json.py measured, as Markdown; and what the server does not do, worked out on what it sent.

python3 tests/clients/grpc_or_json_report.py FILE prints the tables of a file that `--json` wrote.
"""

import json
import pathlib
import statistics
import sys
import time
import zlib

COMPLETIONS, CHAT = "SSE completions, HTTP/1.1", "SSE chat, HTTP/1.1"
# Tokens a message might hold.
SEVERAL = (1, 2, 4, 8)


def packed(messages, together):
    """Bytes and CPU microseconds a message if gzip packed them: as one stream that is flushed after each, or each alone."""
    began, size = time.thread_time(), 0
    packer = zlib.compressobj(6, wbits=31)
    for message in messages:
        size += len(packer.compress(message))
        size += len(packer.flush(zlib.Z_SYNC_FLUSH if together else zlib.Z_FINISH))
        if not together:
            packer = zlib.compressobj(6, wbits=31)
    return size / len(messages), (time.thread_time() - began) / len(messages) * 1e6


def joined_grpc(messages, several, answer):
    """Bytes of a delta of `several` tokens, with its frame, were deltas joined."""
    deltas = [event for event in map(answer.FromString, messages) if event.delta.token_ids]
    sizes = []
    for k in range(0, len(deltas) - several + 1, several):
        merged = answer(seq=deltas[k].seq)
        for event in deltas[k : k + several]:
            merged.delta.MergeFrom(answer.FromString(event.SerializeToString()).delta)
        merged.delta.text = "".join(event.delta.text for event in deltas[k : k + several])
        sizes.append(9 + 5 + merged.ByteSize())
    return statistics.mean(sizes)


def joined_sse(messages, several):
    """Bytes of a chunk of `several` tokens, with its event and its HTTP/1.1 chunk, were chunks joined."""
    chunks = [json.loads(message) for message in messages if message != b"[DONE]"]
    chunks = [chunk for chunk in chunks if chunk["choices"] and chunk["choices"][0]["text"]]
    sizes = []
    for k in range(0, len(chunks) - several + 1, several):
        merged = json.loads(json.dumps(chunks[k]))
        merged["choices"][0]["text"] = "".join(chunk["choices"][0]["text"] for chunk in chunks[k : k + several])
        event = 6 + len(json.dumps(merged, separators=(",", ":"), ensure_ascii=False).encode()) + 2
        sizes.append(len(f"{event:x}") + 2 + event + 2)
    return statistics.mean(sizes)


def would_be(captured, answer):
    """Bytes of messages if gzip packed them, and of messages that hold several tokens; and one chunk of each form."""
    packs = []
    for name, together in (("gRPC", False), ("gRPC-Web, HTTP/1.1", True), (COMPLETIONS, True), (CHAT, True)):
        if name.startswith("SSE"):
            messages = [b"data: " + message + b"\n\n" for message in captured[name]]
        else:
            messages = [len(message).to_bytes(5, "big") + message for message in captured[name]]
        packs.append([name, sum(map(len, messages)) / len(messages), *packed(messages, together)])
    joins = {
        "gRPC": [joined_grpc(captured["gRPC"], several, answer) / several for several in SEVERAL],
        COMPLETIONS: [joined_sse(captured[COMPLETIONS], several) / several for several in SEVERAL],
    }
    chunks = {name: captured[name][len(captured[name]) // 2] for name in ("gRPC", COMPLETIONS, CHAT)}
    chunks = {name: [len(chunk), chunk.hex(" ") if name == "gRPC" else chunk.decode()] for name, chunk in chunks.items()}
    return {"gzip": packs, "joined": joins, "chunks": chunks}


class Cells:
    """The figures of all faces at all numbers of streams."""

    def __init__(self, cells):
        self.cells, self.names = cells, list(cells)
        self.scales = list(cells[self.names[0]])

    def median(self, name, streams, key):
        return statistics.median(cell[key] for cell in self.cells[name][streams])

    def spread(self, name, streams, key):
        values = [cell[key] for cell in self.cells[name][streams]]
        return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"

    def beyond(self, name, streams, key):
        """More than the first face, repetition by repetition."""
        pairs = zip(self.cells[name][streams], self.cells[self.names[0]][streams])
        return f"{statistics.median(cell[key] - base[key] for cell, base in pairs):.1f}"

    def table(self, title, columns):
        """`columns`: a head, a number of streams and a function of a face's name and that."""
        rows = [[name, *(of(name, streams) for _, streams, of in columns)] for name in self.names]
        return table(title, ["", *(head for head, _, _ in columns)], rows)

    def by_scale(self, of, head="{}"):
        return [(head.format(f"{int(streams):,}"), streams, of) for streams in self.scales]

    def of(self, key, digits):
        return lambda name, streams: f"{self.median(name, streams, key):,.{digits}f}"


def table(title, head, rows):
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(cell if isinstance(cell, str) else f"{cell:,.1f}" for cell in row) + " |")
    return "\n".join([*lines, ""])


def report(measured):
    """All tables: medians over the repetitions, and where times are concerned the least and the largest."""
    cells = Cells(measured["cells"])
    last = cells.scales[-1]
    ttft = lambda name, n: f"{cells.median(name, n, 'median'):,.1f}, {cells.median(name, n, 'p95'):,.1f}"
    alone = [(head, cells.scales[0], cells.of(key, 1)) for head, key in (("text", "said"), ("messages", "payload"))]
    kernel = ("kernel's share", last, lambda name, n: f"{cells.median(name, n, 'kernel') * 100:.0f} %")
    down, up = cells.by_scale(cells.of("down", 1), "down, {}"), cells.by_scale(cells.of("up", 1), "up, {}")
    counts = cells.by_scale(cells.of("messages", 2), "messages, {}") + cells.by_scale(cells.of("reads", 2), "arrivals, {}")
    rates = cells.by_scale(cells.of("rate", 0), "tokens a second, {}") + cells.by_scale(cells.of("client", 2), "client, {}")
    by_call = [[name, f"{up:.0f}", f"{fixed:.0f}", a_token] for name, (up, fixed, a_token) in measured["calls"].items()]
    # Missing in a file of a run that was cut short.
    up_grpcio, down_grpcio, reads_grpcio = measured.get("grpcio", [float("nan")] * 3)
    chunks = [f"{name}, {size} bytes: {chunk}" for name, (size, chunk) in measured["chunks"].items()]
    return "\n".join([
        cells.table(f"Bytes a token, {measured['tokens']} tokens a call", alone + down + up),
        f"grpcio, one stream: {down_grpcio:.1f} bytes a token down, {up_grpcio:.1f} up, {reads_grpcio:.2f} arrivals.\n",
        table("Bytes of a call, and of a token more", ["", "up, a call", "down, a call", "down, a token"], by_call),
        cells.table("Messages a token, and arrivals at the relay a token", counts),
        cells.table("Server CPU, µs a token, without the engine thread", [
            *cells.by_scale(lambda name, n: cells.spread(name, n, "serving")), kernel,
        ]),
        cells.table("Of that, beyond gRPC all at once", cells.by_scale(lambda name, n: cells.beyond(name, n, "serving"))),
        cells.table("Server CPU, µs a token, all of it", cells.by_scale(lambda name, n: cells.spread(name, n, "process"))),
        cells.table("Time to first token, ms: median, 95th percentile", cells.by_scale(ttft)),
        cells.table("Of the run: tokens a second, cores that the client took", rates),
        table("Were messages packed with gzip", ["", "bytes a message", "with gzip", "µs a message"], measured["gzip"]),
        table("Were tokens joined: bytes a token", ["tokens a message", *map(str, SEVERAL)],
              [[name, *sizes] for name, sizes in measured["joined"].items()]),
        "```text", *chunks, "```",
    ])


if __name__ == "__main__":
    print(report(json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))))
