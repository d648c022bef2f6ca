"""What attention heads look at: scores, maps, similarity, importance and what short lists of keys would keep, on any text.

    reading.py     a model over a text, in flat memory
    lists.py       all logits of a few queries at a time, and the list of keys that each query looks at most
    scores.py      entropy, distance, sinks, previous and next token, duplicates, induction; a name for each head
    keeps.py       what lists of k keys keep of the attention and of the output
    redundancy.py  which heads look at the same keys
    ablation.py    what the model loses without a head
"""
