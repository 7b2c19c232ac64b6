"""Chats with a server from the terminal: python examples/chat.py [ADDRESS]. An empty line ends it."""

import sys

from candlewick import Client, SamplingParams


def main() -> None:
    """Turns until an empty line; each computes its own tokens alone."""
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    with Client(address) as client, client.session(sampling=SamplingParams(max_tokens=200)) as session:
        while said := input("> ").strip():
            turn = session.say(said)
            for text in turn.text():
                print(text, end="", flush=True)
            print(f"\n[{turn.done.computed_tokens} prompt tokens computed]")


if __name__ == "__main__":
    main()
