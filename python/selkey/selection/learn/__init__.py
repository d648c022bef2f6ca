"""Learning to select from what a human marked.

    records, complaints = read_log("marks.jsonl")
    documents, more = examples(records, tokenize)          # one a document: tokens, marks, what was rejected
    learned_from, held_out = split(documents)
    selector = fit([hidden states of each], [each.marks …], [each.rejected …])
    print(evaluate(selector, …, k=8, is_held_out=True))     # recall@8 on held-out documents, beside random tokens
    save(selector, "marks.selector")

`selkey.selection.Learned(k, selector)` selects with it; `selkey.hf.teach` moves the attention of a model itself.
"""

from selkey.selection.learn.examples import Example, examples, split
from selkey.selection.learn.log import append_log, read_log
from selkey.selection.learn.record import Record
from selkey.selection.learn.report import Report, evaluate
from selkey.selection.learn.selector import Selector, fit
from selkey.selection.learn.selector_file import load, save

__all__ = ["Example", "Record", "Report", "Selector", "append_log", "evaluate", "examples", "fit", "load", "read_log", "save", "split"]
