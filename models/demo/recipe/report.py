"""What a run leaves for the model card: the picture of its losses, and whom the stories are by."""

import math

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402


def plot(path, log, perplexities):
    """Losses over the tokens seen, and the held-out prose's at each checkpoint."""
    plt.rcParams["svg.hashsalt"] = "candlewick"
    tokens = {row[0]: row[2] / 1e6 for row in log}
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    axes.plot(tokens.values(), [row[4] for row in log], color="#9aa7b5", label="prose, training")
    axes.plot(tokens.values(), [row[3] for row in log], color="#c8702a", label="chats, training")
    at = [min(tokens.items(), key=lambda item: abs(item[0] - step))[1] for step, _ in perplexities] if tokens else []
    axes.plot(at, [math.log(p) for _, p in perplexities[: len(at)]], "o-", color="#2b4c7e", label="prose, held out")
    axes.set(xlabel="million tokens seen", ylabel="nats a token", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def attributions(path, stories):
    lines = "\n".join(f"- {story}" for story in sorted(stories))
    path.write_text(
        "# Whom the stories are by\n\nThe model learned from these stories of the African Storybook, all CC-BY,"
        f" among other prose.\n\n{lines}\n"
    )
