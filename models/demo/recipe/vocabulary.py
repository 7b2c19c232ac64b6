"""The tokenizer: byte-level BPE that cuts text as `smollm` in GGUF does (GPT-2's pattern, every digit on its own).

Any bytes come back exactly. `<|endoftext|>` opens every text, `<|end|>` closes a turn of a chat and a story.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BEGIN, SYSTEM, USER, ASSISTANT, END = SPECIAL = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
PRE = "smollm"
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('this model knows the roles system, user and assistant, not ' + message['role']) }}
    {%- endif %}
    {{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""


def train(texts, size):
    """A tokenizer of `size` entries, learned from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Vocabulary:
    """Turns text and chats into ids."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.begin, _, _, self.assistant, self.end = (tokenizer.token_to_id(token) for token in SPECIAL)
        self.roles = {role: tokenizer.token_to_id(f"<|{role}|>") for role in ("system", "user", "assistant")}

    def encode(self, texts):
        """The ids of each text, without a begin token."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def chat(self, messages):
        """The ids of a chat as the template renders it, and for each whether it is the assistant's to say."""
        ids, said = [self.begin], [False]
        for (role, _), text in zip(messages, self.encode([text for _, text in messages])):
            ids += [self.roles[role], *text, self.end]
            said += [False] + [role == "assistant"] * (len(text) + 1)
        return ids, said

    def prompt(self, question):
        """The ids of a question, up to where the answer begins."""
        return self.chat([("user", question)])[0] + [self.assistant]
