"""The storyteller before it has learned anything: its tokens, its layers, and weights that begin with a look back.

Recall is: find an earlier place where the same words stood, and say what followed. For this a first layer has to know the tokens before,
and a second one to compare. Training takes long to find the two together, so that heads of the first layer begin with attending to the
token one, two, three and four before, and heads of the others with comparing what those wrote.
"""

import random

import torch

from selkey.bench.storyteller.words import CONSONANTS, VOWELS
from selkey.bench.storyteller.world import World, bare

# two lengths: the longest texts of the training have LENGTH tokens, and distances up to that do occur, but those near it are few. The
# config says REACH (max_position_embeddings), of which there were many: what is farther is moved nearer by a bounded cache, and other
# programs, `selkey heads` too, take it for the length that the model was made for
LENGTH = 512
REACH = 384
START = "<s>"
_WIDTH, _INNER, _LAYERS, _HEADS, _HEAD_DIM, _THETA = 160, 448, 3, 5, 32, 1e6
# of heads 0, 1, … of the second and third layer: how far back the query's token and the key's token lie that are compared
_COMPARED = (((0, 1), (1, 1), (2, 3), (3, 3), (1, 3)), ((0, 1), (1, 1), (2, 1), (0, 2), (1, 2)))
_LOOK_BACK = 4


def tokenizer():
    """Byte-level tokens: a word of the world is one, a consonant with its vowel is one, anything else is spelled in bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    syllables = [(consonant, vowel) for consonant in CONSONANTS for vowel in VOWELS]
    merges = syllables + [("Ġ", consonant + vowel) for consonant, vowel in syllables]
    merges += [("Ġ", letter) for letter in CONSONANTS + VOWELS + CONSONANTS.upper() + VOWELS.upper()]
    tokens = [START, *letters, *(left + right for left, right in merges)]
    known = set(tokens)
    tokens += [word for word in _words() if word not in known]
    # a word that is a token is not taken apart
    words = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges, ignore_merges=True))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens([AddedToken(START, normalized=False, special=True)])
    words.post_processor = processors.TemplateProcessing(f"{START} $A", f"{START} $A {START} $B", [(START, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=START, clean_up_tokenization_spaces=False, model_max_length=10**9,
    )  # fmt: skip


def _words(texts=600, seed=1):
    """The words of the world, with the space before them, as the pieces of bytes that byte-level tokens are."""
    from tokenizers import pre_tokenizers

    split, found = pre_tokenizers.ByteLevel(add_prefix_space=False), {}
    for number in range(texts):
        sentences = World(random.Random(f"{seed} {number}")).sentences(plain=0.5)
        text = bare("".join(next(sentences) for _ in range(60)))
        for piece, _ in split.pre_tokenize_str(text):
            found[piece] = found.get(piece, 0) + 1
    # invented words come once
    return sorted(piece for piece, count in found.items() if count > 5)


def untrained(vocabulary, seed=0):
    """A Llama of three layers.

    Args:
        vocabulary: number of tokens.
        seed: decides the weights.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=_WIDTH, intermediate_size=_INNER, num_hidden_layers=_LAYERS, num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS, head_dim=_HEAD_DIM, max_position_embeddings=REACH, bos_token_id=0, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": _THETA}, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for layer in model.model.layers:
            attention = layer.self_attn
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
                linear.weight.normal_(std=_WIDTH**-0.5)
            attention.o_proj.weight.normal_(std=(_HEADS * _HEAD_DIM) ** -0.5)
        embedding = model.model.embed_tokens.weight.normal_()
        # rows of one length, with a first column that all tokens share: what the heads below attend by
        embedding[:, 1:] *= (_WIDTH - 1) ** 0.5 / embedding[:, 1:].norm(dim=1, keepdim=True)
        embedding[:, 0] = 2
        first, *others = (layer.self_attn for layer in model.model.layers)
        written = _look_back(first)
        for attention, compared in zip(others, _COMPARED, strict=True):
            _compare(attention, written, compared)
            _copy(attention)
        model.lm_head.weight.copy_(0.03 * embedding)
    return model.eval()


def _rows(head):
    return slice(head * _HEAD_DIM, (head + 1) * _HEAD_DIM)


def _look_back(attention, strength=5.0, pairs=8):
    """Heads 0, 1, 2 and 3 attend to the token 1, 2, 3 and 4 before.

    A query and a key that are the same for all tokens differ by their rotation alone; turned by n positions more, the key fits the
    query n behind it. The fastest pairs of columns do it, of which the slower ones tell near from far.

    Returns:
        list of ``[W, W]``: as what a token is written 0, 1, 2, 3 and 4 places behind it.
    """
    angles = _THETA ** (-torch.arange(0, _HEAD_DIM, 2) / _HEAD_DIM)
    length = strength * (torch.arange(_HEAD_DIM // 2) < pairs)
    written = [torch.eye(_WIDTH)]
    for head in range(_LOOK_BACK):
        for linear, turn in ((attention.q_proj, 0 * angles), (attention.k_proj, (head + 1) * angles)):
            linear.weight[_rows(head)] = 0
            linear.weight[_rows(head), 0] = torch.cat((turn.cos() * length, turn.sin() * length))
        writes = attention.o_proj.weight[:, _rows(head)] @ attention.v_proj.weight[_rows(head)]
        written.append(writes / writes.norm() * _WIDTH**0.5)
    return written


def _compare(attention, written, compared):
    """Heads attend where the token so far before the key is the one so far before the query."""
    for head, (mine, theirs) in enumerate(compared):
        same = torch.randn(_HEAD_DIM, _WIDTH) * _WIDTH**-0.5
        attention.q_proj.weight[_rows(head)] = same @ written[mine].T
        attention.k_proj.weight[_rows(head)] = same @ written[theirs].T


def _copy(attention, strength=0.5):
    """What a head attends to is likely to be said next."""
    for head in range(_HEADS):
        some = torch.linalg.qr(torch.randn(_WIDTH, _HEAD_DIM))[0]
        attention.v_proj.weight[_rows(head)] = some.T
        attention.o_proj.weight[:, _rows(head)] = strength * some
