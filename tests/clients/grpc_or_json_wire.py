"""HTTP/1.1 and HTTP/2 as plainly as a client can speak them, and a relay that counts what passes: for grpc_or_json.py.

A stock client a face would measure the clients' habits along with the server's; these send the same few headers over every
wire. Each connection calls back on its call: `headers(fields)`, `data(bytes)`, `ended(trailers)`.
"""

import asyncio
import multiprocessing
import socket

import h2.config
import h2.connection
import h2.events


class Http1(asyncio.Protocol):
    """One HTTP/1.1 connection: one call at a time."""

    def __init__(self):
        self.call, self.buffer, self.left, self.chunked = None, b"", None, False
        self.ready = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.ready.set_result(None)

    def connection_lost(self, error):
        if self.call is not None:
            self.call.broke(error or EOFError("the connection ended in the middle of an answer"))

    def start(self, authority, path, fields, body, call):
        self.call, self.left, self.buffer = call, None, b""
        fields = {"host": authority, **fields, "content-length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.transport.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body)

    def data_received(self, data):
        self.buffer += data
        if self.left is None and not self.read_head():
            return
        while self.call is not None and self.read_body():
            pass

    def read_head(self):
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return False
        status, *lines = head.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines)
        fields[":status"] = status.split(" ")[1]
        self.buffer, self.chunked = rest, fields.get("transfer-encoding") == "chunked"
        # Of what is being read: bytes of the body, or 0 where the next chunk says how many.
        self.left = 0 if self.chunked else int(fields.get("content-length", 0))
        self.call.headers(fields)
        return True

    def read_body(self):
        """Takes one chunk, or what there is of a body of known length; says whether there may be more."""
        if not self.chunked:
            self.left -= len(self.buffer)
            self.call.data(self.buffer)
            self.buffer = b""
            if self.left <= 0:
                self.end()
            return False
        line, found, rest = self.buffer.partition(b"\r\n")
        size = int(line, 16) if found else 0
        if not found or len(rest) < size + 2:
            return False
        self.buffer = rest[size + 2 :]
        if size == 0:
            self.end()
        else:
            self.call.data(rest[:size])
        return True

    def end(self):
        call, self.call = self.call, None
        call.ended({})


class Http2(asyncio.Protocol):
    """One HTTP/2 connection in the clear, by prior knowledge: many calls at once. Windows are the h2 library's."""

    def __init__(self):
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", validate_inbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.calls, self.trailers = {}, {}
        self.ready = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.h2.initiate_connection()
        self.flush()

    def connection_lost(self, error):
        for call in self.calls.values():
            call.broke(error or EOFError("the connection ended in the middle of an answer"))

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.transport.write(data)

    def start(self, authority, path, fields, body, call):
        stream = self.h2.get_next_available_stream_id()
        self.calls[stream] = call
        pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority)]
        self.h2.send_headers(stream, pseudo + list(fields.items()))
        self.h2.send_data(stream, body, end_stream=True)
        self.flush()

    def data_received(self, data):
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.DataReceived():
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    self.calls[event.stream_id].data(event.data)
                case h2.events.ResponseReceived():
                    self.calls[event.stream_id].headers(dict(event.headers))
                case h2.events.TrailersReceived():
                    self.trailers[event.stream_id] = dict(event.headers)
                case h2.events.StreamEnded():
                    self.calls.pop(event.stream_id).ended(self.trailers.pop(event.stream_id, {}))
                case h2.events.StreamReset():
                    self.calls.pop(event.stream_id).broke(EOFError(f"reset with {event.error_code}"))
                case h2.events.SettingsAcknowledged():
                    self.ready.set_result(None)
        self.flush()


class Relay:
    """A TCP relay in a process of its own, with counters."""

    def __init__(self, upstream_port):
        self.pipe, theirs = multiprocessing.Pipe()
        arguments = (theirs, upstream_port)
        self.process = multiprocessing.get_context("fork").Process(target=relay, args=arguments, daemon=True)
        self.process.start()
        self.port = self.pipe.recv()

    def counters(self):
        """Bytes to the server, bytes to the client, and how often bytes of the server arrived, since the beginning."""
        self.pipe.send("counters")
        return self.pipe.recv()

    def close(self):
        self.process.terminate()
        self.process.join()


def relay(pipe, upstream_port):
    asyncio.run(serve_relay(pipe, upstream_port))


async def serve_relay(pipe, upstream_port):
    loop = asyncio.get_running_loop()
    counters = [0, 0, 0]

    class Side(asyncio.Protocol):
        """One end of a relayed connection; `peer` is the other."""

        def __init__(self, peer=None):
            self.peer, self.early, self.transport = peer, b"", None

        def connection_made(self, transport):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.transport = transport
            if self.peer is None:
                self.peer = upstream = Side(self)
                self.to_server = True
                self.opening = loop.create_task(loop.create_connection(lambda: upstream, "127.0.0.1", upstream_port))
            else:
                self.to_server = False
                transport.write(self.peer.early)

        def data_received(self, data):
            if self.to_server:
                counters[0] += len(data)
            else:
                counters[1] += len(data)
                counters[2] += 1
            if self.peer.transport is None:
                self.early += data
            else:
                self.peer.transport.write(data)

        def connection_lost(self, error):
            if self.peer.transport is not None:
                self.peer.transport.close()

    server = await loop.create_server(Side, "127.0.0.1", 0, backlog=4096)

    def answer():
        try:
            pipe.recv()
            pipe.send(tuple(counters))
        except EOFError:
            loop.stop()

    loop.add_reader(pipe.fileno(), answer)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()
