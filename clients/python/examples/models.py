"""Models of a running server: python examples/models.py ADDRESS [load PATH [NAME] | unload NAME | watch].

Without a word more it lists them. To load and to unload is for whoever runs the server: from its own machine, or with an
administrator's key in CANDLEWICK_API_KEY.
"""

import os
import sys

from candlewick import Client, Load, Model, ModelState


def main() -> None:
    """Does what it was asked to."""
    address, *words = sys.argv[1:] or ["127.0.0.1:50051"]
    with Client(address, api_key=os.environ.get("CANDLEWICK_API_KEY")) as client:
        match words:
            case ["load", path]:
                show([follow(client.load_model(path))])
            case ["load", path, name]:
                show([follow(client.load_model(path, name=name))])
            case ["unload", name]:
                left = client.unload_model(name, wait=60)
                print("unloaded" if left.unloaded else f"{left.live_requests} requests still stream")
            case ["watch"]:
                for models in client.watch_models():
                    show(models)
            case _:
                show(client.models())


def follow(load: Load) -> Model:
    """Says how far it has come."""
    for progress in load:
        print(f"\r{progress.done} of {progress.total}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return load.model


def show(models: list[Model]) -> None:
    """A line each."""
    for model in models:
        print(f"{model.name}: {ModelState.Name(model.state)}, {model.memory_bytes >> 20} MiB {model.failure}".rstrip())


if __name__ == "__main__":
    main()
