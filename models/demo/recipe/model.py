"""The transformer that the recipe trains: a Llama, as llama.cpp's architecture of that name computes it.

Grouped-query attention, RMSNorm, SwiGLU, tied embeddings. The rotary embedding turns neighbouring pairs of numbers, as
`llama` in GGUF does (Hugging Face turns halves), so nothing has to be permuted on export.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    vocab: int = 3840
    hidden: int = 256
    intermediate: int = 768
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    context: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self):
        return self.hidden // self.heads


def turn(x, cos, sin):
    """Rotates neighbouring pairs of the last dimension by the angles of their positions."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class Norm(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.hidden))
        self.eps = shape.norm_eps

    def forward(self, x):
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, self.eps)


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        linear = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False)
        kv = shape.kv_heads * shape.head_dim
        self.attn_norm, self.ffn_norm = Norm(shape), Norm(shape)
        self.attn_q, self.attn_output = linear(shape.hidden, shape.hidden), linear(shape.hidden, shape.hidden)
        self.attn_k, self.attn_v = linear(shape.hidden, kv), linear(shape.hidden, kv)
        self.ffn_gate, self.ffn_up = (linear(shape.hidden, shape.intermediate) for _ in range(2))
        self.ffn_down = linear(shape.intermediate, shape.hidden)

    def forward(self, x, cos, sin, mask):
        heads = lambda y: y.unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)
        h = self.attn_norm(x)
        q, k, v = heads(self.attn_q(h)), heads(self.attn_k(h)), heads(self.attn_v(h))
        group = self.shape.heads // self.shape.kv_heads
        k, v = turn(k, cos, sin).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        # Written out, since PyTorch's fused attention has a slow backward pass on CPUs.
        scores = turn(q, cos, sin) @ k.transpose(-1, -2) * self.shape.head_dim**-0.5
        y = torch.where(mask, scores, -torch.inf).softmax(-1) @ v
        x = x + self.attn_output(y.transpose(1, 2).flatten(-2))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Llama(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.hidden)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = Norm(shape)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                into_residual = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.02 / ((2 * shape.layers) ** 0.5 if into_residual else 1))
        angles = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = torch.arange(shape.context)[:, None] * angles
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def hidden(self, ids, texts=None):
        """The normed output of the last layer. `texts` numbers the text that each token of a packed row belongs to."""
        length = ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        if texts is not None:
            mask = (mask & (texts[:, :, None] == texts[:, None, :]))[:, None]
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x, self.cos[:length], self.sin[:length], mask)
        return self.output_norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.token_embd.weight)

    def losses(self, ids, labels, texts=None):
        """The cross-entropy of each label that is not negative."""
        asked = labels >= 0
        return F.cross_entropy(self.logits(self.hidden(ids, texts)[asked]).float(), labels[asked], reduction="none")

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")
    def greedy(self, ids, count, end):
        """Continues one prompt with the most likely tokens, up to `end`; slow, for a look now and then."""
        ids, start = list(ids), len(ids)
        while len(ids) < min(start + count, self.shape.context):
            token = int(self.logits(self.hidden(torch.tensor([ids]))[0, -1]).argmax())
            if token == end:
                break
            ids.append(token)
        return ids[start:]
