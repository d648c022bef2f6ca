"""Which tokens words are: two kinds of tokenizers, characters of several tokens, tokens of several characters."""

import random
import re
import time
import warnings

import pytest
import torch

pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from tokenizers import decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from selkey.hf.text import Transcript  # noqa: E402

FAMILY = "👩\u200d👩\u200d👧"
CORPUS = [f"The key is 4711. Ключ лежит под ковриком, naïve 😀 {FAMILY} café. "] * 4
TEXT = f"Пароль: осьминог 😀, cafe\u0301 and café; the key is 4711 {FAMILY}! 鍵は緑"


def byte_level():
    bare = tokenizers.Tokenizer(models.BPE())
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bare.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>")


def metaspace():
    """As sentencepiece: ▁ for spaces, bytes for characters that the vocabulary lacks."""
    pieces = ["▁the", "▁key", "▁is", "▁под", "ковр", "▁4", "711", "Пароль", "▁caf", "é", "▁and", "▁"]
    letters = sorted({letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,:;!" + "абвгдежзиклмнопрстуьюя"})
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), *((f"<0x{byte:02X}>", -20.0) for byte in range(256))]
    vocabulary += [(piece, -2.0) for piece in pieces] + [(letter, -6.0) for letter in letters]
    bare = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    bare.pre_tokenizer = pre_tokenizers.Metaspace()
    bare.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    bare.add_special_tokens(["<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", unk_token="<unk>")


@pytest.fixture(scope="module", params=[byte_level, metaspace], ids=["bytes", "metaspace"])
def tokenizer(request):
    return request.param()


def fed(tokenizer, text, piece=None):
    """A transcript of `text`, fed in pieces with a look at each."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    transcript = Transcript(tokenizer)
    for start in range(0, len(ids), piece or len(ids)):
        transcript.extend(0, torch.tensor(ids[start : start + (piece or len(ids))]))
        transcript.text(0)
    return transcript, ids


@pytest.mark.parametrize("piece", [None, 1, 3])
@pytest.mark.parametrize("words", ["осьминог", "😀", "cafe\u0301", "café;", "4711", FAMILY, "鍵", "緑", "Пароль: о", "and caf"])
def test_every_token_that_holds_a_part_of_the_words_is_in_the_span_and_no_other(tokenizer, words, piece):
    transcript, ids = fed(tokenizer, TEXT, piece)
    assert transcript.text(0) == TEXT and transcript.tokens(0) == ids
    ((start, stop),) = transcript.find(0, words)
    decoded = tokenizer.decode(ids[start:stop])
    assert words.strip() in decoded
    # a token less on either side and the words are not whole
    assert words not in tokenizer.decode(ids[start + 1 : stop]) and words not in tokenizer.decode(ids[start : stop - 1])


def test_a_token_that_ends_one_character_and_begins_the_next_belongs_to_both():
    class Bytes:
        pieces = [b"ab\xf0", b"\x9f\x98", b"\x80c\xd0", b"\x96"]

        def decode(self, ids, skip_special_tokens):
            return b"".join(self.pieces[number] for number in ids).decode("utf-8", errors="replace")

    transcript = Transcript(Bytes())
    transcript.extend(0, range(4))
    assert transcript.text(0) == "ab😀cЖ"
    spans = {words: transcript.find(0, words)[0] for words in ("a", "b", "😀", "c", "Ж", "b😀c")}
    assert spans == {"a": (0, 1), "b": (0, 1), "😀": (0, 3), "c": (2, 3), "Ж": (2, 4), "b😀c": (0, 3)}


def test_a_character_that_is_not_finished_yet(tokenizer):
    transcript, ids = fed(tokenizer, "the key 鍵")
    transcript.crop(0, len(ids) - 1)
    assert transcript.text(0).rstrip("\ufffd") == "the key "
    transcript.find(0, "key")
    transcript.extend(0, ids[-1:])
    assert transcript.find(0, "鍵")[0][1] == len(ids)


def test_special_tokens_keep_their_place(tokenizer):
    transcript = Transcript(tokenizer)
    ids = [tokenizer.bos_token_id, *tokenizer("the key", add_special_tokens=False)["input_ids"], tokenizer.bos_token_id]
    transcript.extend(0, ids)
    assert [span[0] for span in _quietly(transcript, "<s>")] == [0, len(ids) - 1]
    start, stop = transcript.find(0, "key")[0]
    assert 0 < start < stop < len(ids)


def test_bytes_that_are_no_text_do_not_disturb_what_follows():
    tokenizer, generator = byte_level(), random.Random(0)
    noise = [generator.randrange(1, 257) for _ in range(2000)]
    tail = tokenizer("!! the key is 4711", add_special_tokens=False)["input_ids"]
    transcript = Transcript(tokenizer)
    transcript.extend(0, noise + tail)
    assert transcript.text(0) == tokenizer.decode(noise + tail)
    start, stop = transcript.find(0, "the key is 4711")[0]
    assert tokenizer.decode((noise + tail)[start:stop]).strip() == "the key is 4711" and stop == len(noise + tail)


def test_patterns_spans_and_words_that_stand_twice(tokenizer):
    transcript, ids = fed(tokenizer, "the key is 4711 and the key is 4712")
    with pytest.warns(UserWarning, match=r"'the key' stands 2 times in batch entry 0.*occurrence="):
        spans = transcript.find(0, "the key")
    assert len(spans) == 2 and transcript.find(0, "the key", occurrence=1) == [spans[1]] == transcript.find(0, "the key", occurrence=-1)
    assert transcript.find(0, re.compile(r"471[2-9]"))[0][1] == len(ids)
    assert transcript.find(0, (1, 3)) == [(1, 3)]
    with pytest.raises(ValueError, match="occurrence must be from 0 to 1.*got 2"):
        transcript.find(0, "the key", occurrence=2)


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("осминог", "осьминог"), ("The Key", "'the key'.*other capitals"), ("key\n is", "'key is'.*other spaces"),
        ("the key was 4711", "the key is 4711"), ("and cafe\u0301", "'and café'.*composed otherwise"), ("zebra", "nothing near it is"),
    ],
)  # fmt: skip
def test_absent_words_name_what_is_near(tokenizer, words, near):
    transcript, _ = fed(tokenizer, TEXT)
    with pytest.raises(ValueError, match=near) as caught:
        transcript.find(0, words)
    assert "batch entry 0" in str(caught.value) and "\n" not in str(caught.value).replace(words, "")


def test_what_cannot_be_looked_for(tokenizer):
    transcript, ids = fed(tokenizer, "the key")
    for what, problem in (
        ("", ValueError), (b"key", TypeError), ((1, 1), ValueError), ((0, len(ids) + 1), ValueError), ((0.0, 1), TypeError),
        (re.compile("x*"), ValueError),
    ):  # fmt: skip
        with pytest.raises(problem):
            transcript.find(0, what)
    with pytest.raises(ValueError, match="entry that was fed; got 1"):
        transcript.find(1, "key")
    with pytest.raises(TypeError, match="tokenizer must decode"):
        Transcript("gpt2")
    with pytest.raises(ValueError, match="0 or more; got -1"):
        transcript.crop(0, -1)


def test_entries_are_chosen_repeated_cropped_and_restored(tokenizer):
    transcript = Transcript(tokenizer)
    texts = ["the key is 4711", "naïve 😀 café"]
    for batch, text in enumerate(texts):
        transcript.extend(batch, tokenizer(text, add_special_tokens=False)["input_ids"])
    transcript.select(torch.tensor([1, 1, 0]))
    assert [transcript.text(batch) for batch in range(3)] == [texts[1], texts[1], texts[0]]
    transcript.extend(0, tokenizer("key", add_special_tokens=False)["input_ids"])
    assert transcript.text(1) == texts[1] != transcript.text(0)
    transcript.crop(2, 1)
    assert len(transcript.tokens(2)) == 1
    restored = Transcript.from_state(tokenizer, transcript.state())
    assert [restored.text(batch) for batch in range(3)] == [transcript.text(batch) for batch in range(3)]
    transcript.select([2])
    with pytest.raises(ValueError, match="entry that was fed"):
        transcript.text(1)


def test_long_texts_are_searched_at_once():
    tokenizer = byte_level()
    ids = tokenizer(CORPUS[0], add_special_tokens=False)["input_ids"]
    transcript = Transcript(tokenizer)
    transcript.extend(0, (ids * (100_000 // len(ids) + 1))[:100_000])
    began = time.process_time()
    assert len(_quietly(transcript, "4711")) > 1000
    with pytest.raises(ValueError, match="nearest: 'Ключ лежит под ковриком'"):
        transcript.find(0, "Ключ лежал под ковром")
    # half a second on a slow core; quadratic work would take minutes
    assert time.process_time() - began < 5


def _quietly(transcript, words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transcript.find(0, words)
