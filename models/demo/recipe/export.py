"""Writes the GGUF file: Q8_0 matrices, F32 norms, the tokenizer and the chat template; and reads it back."""

import json

import gguf
import torch

import vocabulary
from model import Llama

Q8_0 = gguf.GGMLQuantizationType.Q8_0
# What the file recommends: facts stay facts, and two stories differ.
TEMPERATURE, TOP_P = 0.3, 0.9


def write(path, model, tokenizer, about):
    """`about` says in general.* what the model is: name, description, license."""
    shape = model.shape
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(about["name"])
    writer.add_description(about["description"])
    writer.add_license(about["license"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    for add, number in ((writer.add_sampling_temp, TEMPERATURE), (writer.add_sampling_top_p, TOP_P)):
        add(number)
    add_tokenizer(writer, tokenizer)
    for name, tensor in model.state_dict().items():
        data = tensor.float().numpy()
        if data.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(data, Q8_0), raw_dtype=Q8_0)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer, tokenizer):
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.PRE)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in vocabulary.SPECIAL else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id(vocabulary.BEGIN))
    writer.add_eos_token_id(tokenizer.token_to_id(vocabulary.END))
    writer.add_pad_token_id(tokenizer.token_to_id(vocabulary.BEGIN))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(vocabulary.CHAT_TEMPLATE)


def read(path, shape):
    """The model with the weights that the file holds, after quantization."""
    model = Llama(shape)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    load = lambda tensor: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
    model.load_state_dict({name: load(tensor).reshape(model.state_dict()[name].shape) for name, tensor in tensors.items()})
    return model
