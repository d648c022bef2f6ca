"""A small world to generate in: a Llama of two layers that is trained on the spot on sentences and on notes of who owns what.

A note is "Anna: lamp." Whoever is named again owns the same: the model learns to look the note up, and that is all that it knows. The
first layer begins with a head that attends to the token before, which training would take minutes to find.
"""

import random

import torch
import torch.nn.functional as F

STEPS = 130
NAMES = "Anna Boris Clara David Elena Felix Greta Hugo Irina Jonas Katja Lena Mikhail Nina Oskar Paula".split()
THINGS = "amber apple arrow basket bell bottle candle coin crown drum feather lamp mirror needle pearl ribbon".split()
SENTENCES = (
    "The river runs under the old bridge.", "Snow falls on the quiet hill.", "A cat sleeps near the warm stove.",
    "The baker opens the door at dawn.", "Wind moves through the tall grass.", "Two boats wait at the harbour.",
    "The clock in the tower strikes nine.", "Children play behind the school.",
)  # fmt: skip
_WORDS = ["<s>", *(f"{name}:" for name in NAMES), *(f"{thing}." for thing in THINGS)]
_WORDS += sorted({word for sentence in SENTENCES for word in sentence.split()})
_THINGS = range(1 + len(NAMES), 1 + len(NAMES) + len(THINGS))
_WIDTH, _HEADS, _HEAD_DIM, _THETA = 64, 4, 32, 1e6
_BATCH, _OWNERS, _RATE = 16, 8, 5e-3
# tokens: twice the longest text of the training, where the model still answers well
_FAR = 256
# (until this share of the steps, words of a text, share of notes): what a note is comes first, among few other words
_CURRICULUM = ((0.3, 64, 1.0), (0.6, 96, 0.7), (1.0, 128, 0.5))


def tokenizer():
    """Every word is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(_WORDS)}, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<s>", clean_up_tokenization_spaces=False)


def text(words, notes, generator, owners=NAMES):
    """Sentences and notes.

    Args:
        words: how many at least.
        notes: share of the notes among the sentences.
        generator: `random.Random`.
        owners: names that may stand in it.
    """
    owned, found, length = {name: generator.choice(THINGS) for name in owners}, [], 0
    while length < words:
        if generator.random() < notes:
            name = generator.choice(owners)
            found.append(f"{name}: {owned[name]}.")
        else:
            found.append(generator.choice(SENTENCES))
        length += found[-1].count(" ") + 1
    return " ".join(found)


def question(words=600, seed=0):
    """A prompt that ends with a question whose answer stands at its start only.

    Returns:
        (prompt, the note, the thing that answers).
    """
    generator = random.Random(seed)
    name, thing = generator.choice(NAMES), generator.choice(THINGS)
    others = [other for other in NAMES if other != name]
    note = f"{name}: {thing}."
    return f"<s> {note} {text(words, 0.3, generator, others)} {name}:", note, f"{thing}."


def untrained(seed=0):
    """The model before it has learned anything."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(_WORDS), hidden_size=_WIDTH, intermediate_size=2 * _WIDTH, num_hidden_layers=2, num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS, head_dim=_HEAD_DIM, max_position_embeddings=_FAR, bos_token_id=0, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": _THETA}, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for layer in model.model.layers:
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.self_attn.o_proj):
                linear.weight.normal_(std=_WIDTH**-0.5)
        embedding = model.model.embed_tokens.weight.normal_()
        # rows of one length, with a first column that all tokens share: what the head below attends by
        embedding[:, 1:] *= (_WIDTH - 1) ** 0.5 / embedding[:, 1:].norm(dim=1, keepdim=True)
        embedding[:, 0] = 2
        _look_back(model)
    return model.eval()


def _look_back(model, strength=5.0, pairs=8):
    """Head 0 of the first layer attends to the token before; keys of the second layer begin with what that head wrote.

    A query and a key that are the same for all tokens differ by their rotation alone; turned by one position more, the key fits the
    query behind it. The fastest pairs of columns do it, of which the slower ones tell near from far.
    """
    first, second = (layer.self_attn for layer in model.model.layers)
    angles = _THETA ** (-torch.arange(0, _HEAD_DIM, 2) / _HEAD_DIM)
    length = strength * (torch.arange(_HEAD_DIM // 2) < pairs)
    for linear, turn in ((first.q_proj, 0 * angles), (first.k_proj, angles)):
        linear.weight[:_HEAD_DIM] = 0
        linear.weight[:_HEAD_DIM, 0] = torch.cat((turn.cos() * length, turn.sin() * length))
    written = first.o_proj.weight[:, :_HEAD_DIM] @ first.v_proj.weight[:_HEAD_DIM]
    second.k_proj.weight.copy_(second.q_proj.weight @ written.T / written.norm() * _WIDTH**0.5)


def trained(seed=0, steps=STEPS, watch=lambda step: None):
    """The model after some seconds of training.

    Args:
        seed: decides weights and texts.
        steps: of AdamW.
        watch: called after every step with its number from 1.
    """
    model, generator, encode = untrained(seed).train(), random.Random(seed), tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        words, notes = next((words, notes) for until, words, notes in _CURRICULUM if step / steps < until)
        texts = ["<s> " + text(words, notes, generator, generator.sample(NAMES, _OWNERS)) for _ in range(_BATCH)]
        ids = torch.tensor([row[:words] for row in encode(texts)["input_ids"]])
        logits, next_ids = model(ids, use_cache=False).logits[:, :-1], ids[:, 1:]
        losses = F.cross_entropy(logits.flatten(0, 1), next_ids.flatten(), reduction="none").view(next_ids.shape)
        is_answer = (next_ids >= _THINGS.start) & (next_ids < _THINGS.stop)
        loss = losses.mean() + losses[is_answer].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        watch(step + 1)
    return model.eval()
