#!/usr/bin/env python3
"""A proxy between clients of OpenAI's API and a server, which checks every answer against OpenAI's own schema.

    python3 tests/clients/validating_proxy.py openapi.json 127.0.0.1:50051 [--listen 127.0.0.1:50052]

What passes is not changed. Of every path that the schema has, each body, each event of a stream and each error is looked at
when it has gone on to its client. Ends with its standard input, and with 1 where an answer was not as the schema has it.
openapi.json is that of OpenAI's repository openai-openapi. Needs the package jsonschema alone.
"""

import argparse
import base64
import collections
import http.client
import http.server
import json
import re
import struct
import sys
import threading

import jsonschema

#: Kinds of faults that are told.
TOLD = 20
#: Of what is passed on.
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "te", "trailer", "upgrade", "host"}


class Schemas:
    """What OpenAI answers, by method and path."""

    def __init__(self, path):
        with open(path) as file:
            document = self._nullable(json.load(file))
        self._components = document["components"]
        self._answers = []
        for path, methods in document["paths"].items():
            pattern = re.compile("/v1" + re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(path)) + "$")
            for method, operation in methods.items():
                where = f"{method.upper()} {path}"
                content = operation.get("responses", {}).get("200", {}).get("content", {})
                whole = content.get("application/json", {}).get("schema")
                # Completions stream what they answer, which the schema does not say in so many words.
                event = content.get("text/event-stream", {}).get("schema", whole)
                if where == "GET /responses/{response_id}":
                    # Those of the call that made it, which the schema says in its parameters' words alone.
                    event = {"$ref": "#/components/schemas/ResponseStreamEvent"}
                self._answers.append((method.upper(), pattern, (where, whole, event)))
        self._validators = {}

    def _nullable(self, node):
        """OpenAPI 3.0's `nullable`, which JSON schema does not have, as a type."""
        if isinstance(node, list):
            return [self._nullable(entry) for entry in node]
        if not isinstance(node, dict):
            return node
        node = {key: self._nullable(value) for key, value in node.items()}
        return {"anyOf": [node, {"type": "null"}]} if node.pop("nullable", False) is True else node

    def of(self, method, path):
        """The call's name, the schemas of a whole answer and of an event; none where the path is not OpenAI's."""
        path = path.split("?")[0]
        return next((found for other, pattern, found in self._answers if other == method and pattern.match(path)), None)

    def fault(self, schema, message):
        """What is wrong with a message, or none."""
        key = json.dumps(schema)
        if key not in self._validators:
            self._validators[key] = jsonschema.Draft202012Validator({**schema, "components": self._components})
        error = jsonschema.exceptions.best_match(self._validators[key].iter_errors(message))
        return error and f"{schema.get('$ref', '')}: {error.json_path}: {error.message}"


def told(message, is_event):
    """A message as the schema would have it where it is silent on what OpenAI does: vectors in base64 are numbers, a choice
    of a completion's event has no `finish_reason` before its last one, and nothing predicts a prompt's first token."""
    for row in message.get("data") or []:
        if isinstance(row.get("embedding"), str):
            packed = base64.b64decode(row["embedding"])
            row["embedding"] = list(struct.unpack(f"<{len(packed) // 4}f", packed))
    if message.get("object") == "text_completion":
        for choice in message.get("choices") or []:
            if is_event:
                choice["finish_reason"] = choice.get("finish_reason") or "stop"
            logprobs = choice.get("logprobs") or {}
            if logprobs.get("token_logprobs", [0])[:1] == [None] == logprobs.get("top_logprobs", [0])[:1]:
                logprobs["token_logprobs"][0], logprobs["top_logprobs"][0] = 0.0, {}
    return message


class Server(http.server.ThreadingHTTPServer):
    """A thread a connection, which says nothing where its client goes away."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Proxy:
    """Passes calls on to `upstream` (host:port) and checks their answers; a context manager, with its `address`."""

    def __init__(self, schema, upstream, listen="127.0.0.1:0"):
        self.schemas, self.upstream = Schemas(schema), upstream
        #: Messages looked at, by their call; what was wrong with them, with an example each and how often it came.
        self.checked, self.faults, self._examples = collections.Counter(), collections.Counter(), {}
        self._done, self._under_way = threading.Condition(), 0
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self):
                proxy._pass(self)

            do_GET = do_POST = do_DELETE = do_PUT = do_OPTIONS = do_HEAD = _pass

            def log_message(self, *_):
                pass

        host, _, port = listen.rpartition(":")
        self._server = Server((host, int(port)), Handler)
        self.address = f"{host}:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.settle()
        self._server.shutdown()

    def settle(self):
        """Waits until every answer that went out has been looked at."""
        with self._done:
            self._done.wait_for(lambda: self._under_way == 0, timeout=60)

    def _pass(self, call):
        with self._done:
            self._under_way += 1
        try:
            self._answer(call)
        except OSError:
            # One of the two went away, and with it the other.
            call.close_connection = True
        finally:
            with self._done:
                self._under_way -= 1
                self._done.notify_all()

    def _answer(self, call):
        body = call.rfile.read(int(call.headers.get("content-length") or 0))
        upstream = http.client.HTTPConnection(self.upstream)
        try:
            headers = {name: value for name, value in call.headers.items() if name.lower() not in HOP_BY_HOP}
            # What is packed could not be looked at.
            headers["Accept-Encoding"] = "identity"
            upstream.request(call.command, call.path, body or None, headers)
            answer = upstream.getresponse()
            said = self._forward(call, answer)
        finally:
            upstream.close()
        self._check(call, body, answer, said)

    def _forward(self, call, answer):
        """Sends an answer on as it comes; all of its body."""
        kind = answer.getheader("content-type", "")
        streams = kind.startswith("text/event-stream") or answer.getheader("content-length") is None
        said = bytearray() if streams else bytearray(answer.read())
        call.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                call.send_header(name, value)
        call.send_header(*(("Transfer-Encoding", "chunked") if streams else ("Content-Length", str(len(said)))))
        call.end_headers()
        if not streams:
            call.wfile.write(said)
            return said
        while part := answer.read1(65536):
            said += part
            call.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            call.wfile.flush()
        call.wfile.write(b"0\r\n\r\n")
        return said

    def _check(self, call, body, answer, said):
        found = self.schemas.of(call.command, call.path)
        if found is None:
            self.checked["others' paths"] += 1
            return
        where, whole, event = found
        if answer.status >= 400:
            self._judge(where, {"$ref": "#/components/schemas/ErrorResponse"}, said, body)
            return
        if not answer.getheader("content-type", "").startswith("text/event-stream"):
            if whole:
                self._judge(where, whole, said, body)
            return
        lines = [line[5:].strip() for line in said.decode().splitlines() if line.startswith("data:")]
        if "/responses" not in call.path and (not lines or lines[-1] != "[DONE]"):
            self._fault(where, "the stream does not end with [DONE]", body, lines[-1:])
        for line in lines:
            if line != "[DONE]":
                self._judge(where, event, line, body, is_event=True)

    def _judge(self, where, schema, message, body, is_event=False):
        self.checked[where] += 1
        try:
            fault = self.schemas.fault(schema, told(json.loads(message), is_event))
        except (json.JSONDecodeError, AttributeError) as error:
            fault = f"is no JSON object: {error}"
        if fault:
            self._fault(where, fault, body, message)

    def _fault(self, where, fault, asked, answered):
        self.faults[f"{where}: {fault}"] += 1
        self._examples.setdefault(f"{where}: {fault}", f"asked {asked[:500]!r}\n    answered {answered[:500]!r}")

    def report(self):
        """Prints what was looked at; whether all of it was as it must be."""
        counts = ", ".join(f"{count} of {where}" for where, count in sorted(self.checked.items()))
        print(f"{sum(self.checked.values())} messages were looked at: {counts}")
        for fault, count in self.faults.most_common(TOLD):
            print(f"FAULT {fault} ({count} times)\n    {self._examples[fault]}")
        return not self.faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("schema", help="OpenAI's openapi.json")
    parser.add_argument("upstream", help="host:port of the server")
    parser.add_argument("--listen", default="127.0.0.1:0")
    options = parser.parse_args()
    with Proxy(options.schema, options.upstream, options.listen) as proxy:
        print(f"http://{proxy.address}", flush=True)
        sys.stdin.read()
    return 0 if proxy.report() else 1


if __name__ == "__main__":
    sys.exit(main())
