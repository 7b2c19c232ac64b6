"""Asks llama.cpp and a running candlewick the same, greedily, and compares the answers.

    pip install -r models/demo/recipe/requirements-llama-cpp.txt
    candlewick serve models/demo/demo.gguf &
    python models/demo/recipe/llama_cpp_check.py [--gguf models/demo/demo.gguf] [--address 127.0.0.1:50051]

Both open the same file. Prompts are rendered and tokenized by each with what the file says; token ids must be equal, and
so must the answers be. Ends with 1 where fewer than --least are: two programs round differently, so a near tie between
two tokens may fall either way, and the place is then shown with how close it was.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import grpc
from llama_cpp import Llama

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[3] / "tests" / "clients"))
from python_grpcio import generated_services  # noqa: E402

TOKENS = 64
PROMPTS = (
    "What is candlewick?", "hi", "how do i start the server?", "which port does it listen on?", "what is 7 + 5?",
    "count from 3 to 9", "what is the KV cache?", "how do i call it from python?", "what does --max-num-seqs do?",
    "who are you?", "what is the capital of Spain?", "tell me a story", "Once upon a time there was a fox.",
    "A king had three sons.", "what happens to a slow reader?", "  spaces   and\ttabs\n\nand lines", "naïve café — “œuvre” 你好 🙂",
    "10000 - 1 = 12345.678", "what's, it's, we'll; DON'T!", "thanks, bye",
)  # fmt: skip


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--gguf", default=str(HERE.parents[1] / "demo.gguf"))
    options.add_argument("--address", default="127.0.0.1:50051")
    options.add_argument("--least", type=int, default=18, help=f"answers of {len(PROMPTS)} that must be equal")
    options = options.parse_args()
    llama = Llama(options.gguf, n_ctx=512, logits_all=True, verbose=False)
    with tempfile.TemporaryDirectory() as folder, grpc.insecure_channel(options.address) as channel:
        services = generated_services(folder, ["common", "chat", "tokens"])
        common, chat, tokens = (services[f"{name}_pb2"] for name in ("common", "chat", "tokens"))
        asking = services["chat_pb2_grpc"].ChatStub(channel)
        tokenizing = services["tokens_pb2_grpc"].TokensStub(channel)
        same_ids = same_answers = 0
        for prompt in PROMPTS:
            theirs_ids = llama.tokenize(prompt.encode(), add_bos=True, special=False)
            ours_ids = list(tokenizing.Tokenize(tokens.TokenizeRequest(text=prompt), timeout=10).token_ids)
            same_ids += theirs_ids == ours_ids

            message = chat.Message(role=chat.ROLE_USER, content=prompt)
            sampling = common.SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=2)
            request = chat.CompleteRequest(messages=[message], options=common.RequestOptions(sampling=sampling))
            ours = asking.Complete(request, timeout=60)
            theirs = llama.create_chat_completion(
                [{"role": "user", "content": prompt}], temperature=0, max_tokens=TOKENS, repeat_penalty=1.0, top_k=1
            )["choices"][0]["message"]["content"]
            same = ours.message.content == theirs
            same_answers += same
            print(f"{'same ' if same else 'OTHER'} {'ids same ' if theirs_ids == ours_ids else 'ids OTHER'} {prompt!r}")
            if theirs_ids != ours_ids:
                print(f"    candlewick {ours_ids}\n    llama.cpp  {theirs_ids}")
            if not same:
                gaps = [position.top[0].logprob - position.top[1].logprob for position in ours.output.logprobs]
                print(f"    candlewick {ours.message.content!r}\n    llama.cpp  {theirs!r}\n    closest tie {min(gaps):.4f} nats")
    print(f"{same_ids} of {len(PROMPTS)} prompts have the same token ids, {same_answers} the same answer")
    sys.exit(not (same_ids == len(PROMPTS) and same_answers >= options.least))


if __name__ == "__main__":
    main()
