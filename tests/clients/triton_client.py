#!/usr/bin/env python3
"""Triton's stock client against a running server: one answer at once, one as a stream, several requests on one stream, an
error among them.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-triton.txt
    cargo run --release -- serve &
    .venv/bin/python tests/clients/triton_client.py [ADDRESS]

ADDRESS defaults to 127.0.0.1:50051. Ends with 0 where everything came as it should.
"""

import json
import queue
import sys

import numpy
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

LIMITS = {"max_tokens": "24", "temperature": "0", "ignore_eos": True}


def inputs(text, parameters, **flags):
    tensors = []
    for name, value in [("text_input", text), ("sampling_parameters", json.dumps(parameters))]:
        tensor = triton.InferInput(name, [1], "BYTES")
        tensor.set_data_from_numpy(numpy.array([value.encode()], dtype=object))
        tensors.append(tensor)
    for name, value in flags.items():
        tensor = triton.InferInput(name, [1], "BOOL")
        tensor.set_data_from_numpy(numpy.array([value]))
        tensors.append(tensor)
    return tensors


def said(result, output="text_output"):
    return result.as_numpy(output)[0].decode()


def main(address="127.0.0.1:50051"):
    client = triton.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready()
    (model,) = client.get_model_repository_index(as_json=True)["models"]
    name = model["name"]
    assert client.is_model_ready(name) and not client.is_model_ready("another")
    metadata = client.get_model_metadata(name)
    assert client.get_model_config(name).config.model_transaction_policy.decoupled
    print(f"{name} takes {[tensor.name for tensor in metadata.inputs]}")

    whole = client.infer(name, inputs("Once upon a time", LIMITS, exclude_input_in_output=True, return_finish_reason=True,
                                      return_num_output_tokens=True), request_id="unary")
    text = said(whole)
    assert whole.get_response().id == "unary" and said(whole, "finish_reason") == "length"
    assert whole.as_numpy("num_output_tokens")[0] == 24
    print(f"at once: {text!r}")
    prompted = client.infer(name, inputs("Once upon a time", LIMITS), outputs=[triton.InferRequestedOutput("text_output")])
    assert said(prompted) == "Once upon a time" + text
    for wrong, why in [({"top_p": 7}, "top_p"), ({"beams": 7}, "beams"), ({"max_tokens": "many"}, "max_tokens")]:
        try:
            client.infer(name, inputs("Once", wrong))
            sys.exit(f"{wrong} was taken")
        except InferenceServerException as error:
            assert why in error.message(), error
    print("refusals name the field")

    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    prompts = {f"request {k}": f"Story {k} begins:" for k in range(8)}
    for k, (request_id, prompt) in enumerate(prompts.items()):
        client.async_stream_infer(name, inputs(prompt, LIMITS, stream=True), request_id=request_id,
                                  enable_empty_final_response=k % 2 == 0)
    client.async_stream_infer(name, inputs("Once", {"top_p": 7}, stream=True), request_id="wrong")
    client.async_stream_infer(name, inputs("Once upon a time", LIMITS, exclude_input_in_output=True), request_id="whole")
    told, failed, ended = {}, [], set()
    while len(ended) + len(failed) < len(prompts) + 2:
        result, error = answers.get(timeout=60)
        if error:
            failed.append(error.message())
            continue
        response = result.get_response()
        if response.outputs:
            told.setdefault(response.id, []).append(said(result))
        if response.parameters["triton_final_response"].bool_param:
            assert response.id not in ended, response.id
            ended.add(response.id)
    assert len(failed) == 1 and "top_p" in failed[0], failed
    # The stream is still open, after an error too.
    client.async_stream_infer(name, inputs("Once upon a time", LIMITS, stream=True), request_id="late")
    while "late" not in ended:
        result, error = answers.get(timeout=60)
        assert not error, error
        told.setdefault("late", []).append(said(result))
        if result.get_response().parameters["triton_final_response"].bool_param:
            ended.add("late")
    client.stop_stream()
    assert told["whole"] == [text] and "".join(told["late"]) == text
    for request_id, prompt in prompts.items():
        alone = said(client.infer(name, inputs(prompt, LIMITS, exclude_input_in_output=True)))
        assert "".join(told[request_id]) == alone and len(told[request_id]) > 8, request_id
    print(f"one stream: {len(prompts) + 2} requests answered, {sum(map(len, told.values()))} responses, one error in its place")
    client.close()
    print("all came as it should")


if __name__ == "__main__":
    main(*sys.argv[1:])
