"""What a human may want to mark next, learned from what was marked before: a small network on the hidden states of the writing model."""

import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch

from selkey.selection import learn

# documents with marks that are needed: some to learn from, and at least one to judge by
NEEDED = 4
# tokens that are selected in each document for the report: as many as are marked on average, and at least these
_K = 8
# tokens that the model reads at once, if it was made for so many
_LONGEST = 512
_NOTHING = {"recall": None, "random": None, "report": None}


class Suggester:
    """Learns from a log of marks, and suggests spans of tokens.

    `learn` and `suggest` may run in threads of their own while the model writes: both call it without a cache and change nothing of it.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        log_path: of the log. What was learned is kept beside it, in a file of the same name that ends in ".selector", and is there again
            at the next start.
    """

    def __init__(self, model, tokenizer, log_path):
        self._reader, self._log = _Reader(model, tokenizer), Path(log_path)
        self._file = self._log.with_suffix(".selector")
        self._lock = threading.Lock()
        self._selector, self._spans = None, []
        self._summary = _NOTHING | {"learned_from": 0, "sentence": "Mark what matters; then it can be learned what to suggest."}
        if self._file.exists():
            self._load()

    def learn(self, watch=None):
        """Learn from the log, from the beginning. With too few marks it says so, and what was learned before stays.

        Args:
            watch: function(steps done, steps).

        Returns:
            {"learned_from": marks, "documents": those with marks, "recall", "random", "report", "sentence"}: recall of the marked tokens in
            documents that it did not learn from, among the k highest scores, and among k random tokens; k is in the report.

        Raises:
            ValueError: the log is none.
            OSError: it cannot be read.
        """
        documents = _documents(self._log, self._reader.tokenize)
        marked = [document for document in documents if document.marks.any()]
        if len(marked) < NEEDED:
            missing = NEEDED - len(marked)
            summary = _NOTHING | {
                "learned_from": 0, "documents": len(marked),
                "sentence": f"{missing} more marked text{'s are' if missing > 1 else ' is'} needed: there must be marks in {NEEDED} "
                f"stretches of 256 tokens, and there are in {len(marked)}.",
            }  # fmt: skip
            with self._lock:
                if self._selector is None:
                    self._summary = summary
            return summary
        train, judged = learn.split(documents)
        states = {document.document: self._reader.states(document.tokens.tolist()) for document in documents}
        columns = lambda some: ([states[document.document] for document in some], [document.marks for document in some])
        selector = learn.fit(*columns(train), [document.rejected for document in train], watch=watch)
        tokens = sum(int(document.marks.sum()) for document in marked)
        report = learn.evaluate(selector, *columns(judged), max(_K, round(tokens / len(marked))), is_held_out=True)
        _centre(selector, *columns(documents))
        number = sum(_number(document.marks) for document in marked)
        sentence = (
            f"Learned from {number} marks in {len(marked)} texts. In the {report.documents} that it did not see, its first {report.k} "
            f"tokens hold {100 * report.recall:.0f} % of what was marked; random tokens hold {100 * report.random:.0f} %."
        )
        try:
            learn.save(selector, self._file, self._reader.name)
        except OSError as problem:
            sentence += f" It cannot be kept for the next time: {problem.strerror or problem}."
        summary = {
            "learned_from": number, "documents": len(marked), "recall": report.recall, "random": report.random, "report": str(report),
            "sentence": sentence,
        }  # fmt: skip
        with self._lock:
            self._selector, self._summary = selector, summary
        return summary

    def suggest(self, ids, start, marks, most=8):
        """Spans that look like what was marked.

        Args:
            ids: list of int, tokens of the end of the text; of more than 512 the last 512 are read.
            start: position of the first of them.
            marks: spans (start, stop, …) of the tokens that are marked, which are not suggested.
            most: spans at most.

        Returns:
            List of (start, stop, score), ascending and disjoint; score is from 0.5 to 1, and 0.5 for a token at the border of the share
            of tokens that was marked so far. Empty if nothing was learned yet.
        """
        selector = self._selector
        start, ids = start + max(len(ids) - self._reader.longest, 0), list(ids)[-self._reader.longest :]
        if selector is None or not ids:
            return []
        with torch.no_grad():
            scores = selector(self._reader.states(ids)).sigmoid().cpu()
        is_free = torch.ones(len(ids), dtype=torch.bool)
        for first, stop, *_ in marks:
            is_free[max(first - start, 0) : max(stop - start, 0)] = False
        is_like = scores >= 0.5
        # people mark phrases: one token between two such belongs to them
        is_like[1:-1] |= is_like[:-2] & is_like[2:]
        spans = [(first, stop) for first, stop in _runs(is_like & is_free) if self._reader.has_words(ids[first:stop])]
        spans = [(start + first, start + stop, float(scores[first:stop].max())) for first, stop in spans]
        spans = sorted(sorted(spans, key=lambda span: -span[2])[:most])
        with self._lock:
            self._spans = spans
        return spans

    def state(self):
        """What was suggested last and what is known of how good that is: JSON for a page."""
        with self._lock:
            return self._summary | {"spans": [list(span) for span in self._spans]}

    def _load(self):
        try:
            self._selector = learn.load(self._file, self._reader.width, self._reader.name).to(self._reader.device)
        except (OSError, ValueError):
            # of another model, or damaged: the log has all that is needed to learn again
            return
        self._summary["sentence"] = f"Learned before, and kept in {self._file.name}. Learning again says how well it does."


class _Reader:
    """Hidden states of a model: of a deep one those in the middle, where what comes next is not yet all that counts."""

    def __init__(self, model, tokenizer):
        self._model, self._tokenizer = model.get_decoder(), tokenizer
        config = model.config.get_text_config()
        # of the storyteller's three layers the last finds half of what was marked, the middle one a third
        self._layer = max(config.num_hidden_layers // 2, min(config.num_hidden_layers, 3))
        begin = getattr(tokenizer, "bos_token_id", None)
        self._begin = [] if begin is None else [begin]
        self.longest = min(_LONGEST, (getattr(config, "max_position_embeddings", None) or _LONGEST) - len(self._begin))
        embedding = model.get_input_embeddings().weight
        self.device, self._vocabulary = embedding.device, len(embedding)
        trace = sha256(embedding[:64].detach().float().cpu().numpy().tobytes()).hexdigest()[:12]
        self.name = f"{config.model_type} {trace}, {config.num_hidden_layers} layers, layer {self._layer}"
        # transformers hangs hooks on the layers when hidden states are first asked for: now, not while another thread writes
        self.width = self.states([0]).shape[1]

    def tokenize(self, text):
        """ids and offsets of a text, without special tokens of its own."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["input_ids"], encoded["offset_mapping"]

    def has_words(self, ids):
        """Whether there is a letter or a digit in tokens."""
        return any(letter.isalnum() for letter in self._tokenizer.decode(ids))

    @torch.no_grad()
    def states(self, ids):
        """``[N, width]`` of tokens; long texts are read in pieces, and several streams of a model stand side by side."""
        if max(ids) >= self._vocabulary:
            raise ValueError(f"tokens must be ids of the model, below {self._vocabulary}; got {max(ids)}: another tokenizer?")
        found = []
        for first in range(0, len(ids), self.longest):
            piece = torch.tensor([self._begin + ids[first : first + self.longest]], device=self.device)
            read = self._model(input_ids=piece, use_cache=False, output_hidden_states=True)
            found.append(read.hidden_states[self._layer][0, len(self._begin) :].flatten(1).float())
        return torch.cat(found)


def _documents(path, tokenize):
    """What the log says of each text."""
    if not path.exists():
        return []
    records, _ = learn.read_log(path)
    # the words are what counts: another model may have written them
    records = [replace(record, tokens=None, tokenizer=None, offsets=None) if _has_words(record) else record for record in records]
    return learn.examples(records, tokenize)[0]


def _has_words(record):
    return record.text is not None and record.unit == "char"


@torch.no_grad()
def _centre(selector, states, marks):
    """Shift the scores until as many tokens are above 0 as were marked."""
    scores, share = torch.cat([selector(state) for state in states]), torch.cat(marks).float().mean()
    selector.network[-1].bias -= scores.quantile(1 - share.to(scores.device))


def _number(marks):
    return len(_runs(marks))


def _runs(flags):
    """``[N]`` bool as spans (start, stop) of what is True."""
    edges = torch.nn.functional.pad(flags.int(), (1, 1)).diff().nonzero().flatten().tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
