"""`candlewick chat` at a terminal, which here is a pseudo-terminal: an answer streams, Ctrl-C ends it and not the program,
commands complete, a text of many lines is one text, and Ctrl-D leaves. Standard library alone.

    python tests/clients/chat_terminal.py target/debug/candlewick
"""

import os
import pty
import re
import select
import sys
import tempfile
import time

PATIENCE = 120


class Terminal:
    def __init__(self, *command: str) -> None:
        self.child, self.terminal = pty.fork()
        if self.child == 0:
            os.environ["TERM"] = "xterm"
            os.execv(command[0], command)
        self.seen = ""

    def read_some(self) -> bool:
        ready, _, _ = select.select([self.terminal], [], [], 1)
        if not ready:
            return True
        try:
            piece = os.read(self.terminal, 65536)
        except OSError:
            return False
        self.seen += piece.decode(errors="replace")
        return bool(piece)

    def expect(self, pattern: str) -> str:
        """Reads until the pattern is there, and forgets what came up to its end."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            found = re.search(pattern, self.seen, re.DOTALL)
            if found:
                text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
                return text
            if not self.read_some():
                break
        raise SystemExit(f"never came: {pattern!r} in {self.seen!r}")

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def ended(self) -> int:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            child, status = os.waitpid(self.child, os.WNOHANG)
            if child:
                return os.waitstatus_to_exitcode(status)
            self.read_some()
        raise SystemExit("the program does not end")


PROMPT = r"> \x1b|> $|> \x1b\[0m"


def main() -> None:
    program = os.path.abspath(sys.argv[1])
    history = os.path.join(tempfile.mkdtemp(), "history")
    terminal = Terminal(program, "chat", "--ignore-eos", "--history-file", history, "--seed", "1")
    terminal.expect("Talking to demo")
    terminal.expect(PROMPT)

    # Without an end of its own the answer goes on to the end of the context: Ctrl-C ends it.
    terminal.type("Tell me a story.\r")
    terminal.expect(r"story\..*?\n\w+ \w+")
    terminal.type("\x03")
    told = terminal.expect(r"\d+ tokens, [0-9.]+ a second")
    tokens = int(re.search(r"(\d+) tokens", told).group(1))
    assert tokens < 480, f"{tokens} tokens: the answer went on to the end of the context"
    terminal.expect(PROMPT)

    # The program is still there, and knows what was said.
    terminal.type("/show\r")
    terminal.expect(r"user.*Tell me a story\..*assistant")
    terminal.expect(PROMPT)

    # A command completes; an unknown one gets a hint.
    terminal.type("/mod\t\r")
    terminal.expect(r"/model.*demo")
    terminal.expect(PROMPT)
    terminal.type("/modle\r")
    terminal.expect(r"Did you mean /model\?")
    terminal.expect(PROMPT)

    # Many lines, and a setting, then an answer that ends by itself.
    for line in ["/reset", "/set max_tokens 4"]:
        terminal.type(line + "\r")
        terminal.expect(PROMPT)
    terminal.type('"""one\r')
    terminal.expect(r"\. \x1b")
    terminal.type('two"""\r')
    terminal.expect(r"4 tokens, [0-9.]+ a second")
    terminal.expect(PROMPT)
    terminal.type("/show\r")
    terminal.expect(r"user.*one\r?\ntwo.*assistant")

    # Ctrl-C at the prompt says how to leave; Ctrl-D does.
    terminal.expect(PROMPT)
    terminal.type("\x03")
    terminal.expect("Ctrl-D leaves")
    terminal.type("\x04")
    code = terminal.ended()
    assert code == 0, code
    kept = open(history).read()
    assert "Tell me a story." in kept and "/show" in kept, kept
    print("chat at a terminal: streams, stops, completes, takes many lines, remembers, leaves")


main()
