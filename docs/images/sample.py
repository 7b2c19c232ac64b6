"""Draws tokens with the program's own samplers, for draw.py to set beside the formulas of docs/sampling.md.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements.txt
    cargo run --release -- serve &
    .venv/bin/python docs/images/sample.py [ADDRESS] && python3 docs/images/draw.py

ADDRESS defaults to 127.0.0.1:50051, where the model inside the program answers. For each prompt of draw.py the 20 most
likely next tokens are asked for, then, with no others allowed, DRAWS tokens under each of its settings. What came is
written to next_token.json and sampled.json. Ends with 1 where how often a token came is more than five standard deviations
from what the formula says, or one came that the formula leaves out.
"""

import collections
import json
import math
import sys
import tempfile
from pathlib import Path

import grpc

import draw

sys.path.insert(0, str(Path(__file__).parents[2] / "tests/clients"))
from python_grpcio import generated_services  # noqa: E402

DRAWS = 4096
AT_ONCE = 128
TOP = 20
# Whatever the model's own defaults are.
OFF = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1}


def main(address="127.0.0.1:50051"):
    with tempfile.TemporaryDirectory() as folder, grpc.insecure_channel(address) as channel:
        services = generated_services(folder, ["common", "generation"])
        common, generation = services["common_pb2"], services["generation_pb2"]
        stub = services["generation_pb2_grpc"].GenerationStub(channel)

        def deltas(prompt, **sampling):
            sampling = common.SamplingParams(max_tokens=1, ignore_eos=True, **sampling)
            request = generation.GenerateStreamRequest(
                prompt=generation.Prompt(text=prompt), options=common.RequestOptions(sampling=sampling)
            )
            for event in stub.GenerateStream(request, timeout=600):
                if event.HasField("delta"):
                    yield event.delta

        rows, sampled, wrong = {}, {}, 0
        for name, prompt in draw.PROMPTS.items():
            first = next(delta for delta in deltas(prompt, temperature=0, logprobs=TOP) if delta.token_ids)
            top = first.logprobs[0].top
            ids = [token.token_id for token in top]
            logprobs = [round(token.logprob, 4) for token in top]
            rows[name] = {"prompt": prompt, "logprobs": logprobs}
            sampled[name] = {}
            for title, setting in draw.SETTINGS.items():
                counts = collections.Counter()
                for start in range(0, DRAWS, AT_ONCE):
                    several = OFF | setting.fields | {"seed": 1_000_000 + start, "n": AT_ONCE, "allowed_token_ids": ids}
                    for delta in deltas(prompt, **several):
                        counts.update(delta.token_ids)
                shares = [counts[token] / DRAWS for token in ids]
                assert math.isclose(sum(shares), 1), f"{title}: {sum(counts.values())} tokens"
                expected = [p or 0 for p in setting.formula(logprobs)]
                bounds = [5 * math.sqrt(p * (1 - p) / DRAWS) for p in expected]
                off = [k for k in range(TOP) if abs(shares[k] - expected[k]) > bounds[k]]
                wrong += len(off)
                largest = max(abs(s - e) for s, e in zip(shares, expected))
                print(f"{prompt!r}, {title}: {DRAWS} draws, at most {largest:.4f} from the formula" + (f", WRONG at {off}" if off else ""))
                sampled[name][title] = shares
    write = lambda file, value: (draw.HERE / file).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    write("next_token.json", rows)
    write("sampled.json", {"draws": DRAWS, "shares": sampled})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
