"""How to read each figure, in a sentence or two for a page that shows it."""

CAPTIONS = {
    "roofline": (
        "Roofline",
        "A point is a call. Nothing can lie above the solid line, which was measured on the machine itself; how far below it a point lies "
        "is what is left to gain. Left of the corner memory decides, right of it the matrix rate. Calls of one shape have nearly the "
        "same FLOP per byte and stand above one another.",
    ),
    "throughput": (
        "Tokens per second against the context",
        "Dots were measured, the band of the same colour is 0.8 to 1 × the roof of that head count. Dense lines fall with the context; "
        "selected ones should not where they read the same number of keys. Of equal lines the wider one lies below; a dashed one has "
        "another hidden size than its panel.",
    ),
    "heatmap": (
        "Heads × context",
        "The colour is the share of the roof that was reached, the number is tokens per second of one layer, the letter says which roof "
        "it is. Hatched cells would not have fitted and were not run; a star marks another hidden size than that of the panel.",
    ),
    "memory": (
        "Memory against the context",
        "Lines were predicted before anything was allocated, dots measured; dotted lines go on to a million tokens. Horizontal lines are "
        "what devices hold, for one layer: multiply by the layers of a model.",
    ),
    "speedup": (
        "Speed-up against the share of the keys",
        "Measured with lists that are given. The thin lines are what bytes allow, 1 / (ρ + k/n), when a selector reads the share ρ of the "
        "cache to choose; below 1× selecting costs time.",
    ),
    "prefill": (
        "Prefill",
        "The exponent beside each name is the slope in this log-log picture: 2 is quadratic, 1 is linear in the tokens.",
    ),
    "backward": ("Forward and backward", "As the prefill, with the gradients of q, k and v."),
    "ecdf": (
        "How times scatter",
        "Each line climbs by one step per timed call: upright means steady. A filled mark is the median, an open one the 90th percentile, "
        "which takes ten calls.",
    ),
    "predicted": (
        "Predicted against measured",
        "On the diagonal the cost model was right; the bands say by how much it was wrong, the headings how often.",
    ),
    "quality": (
        "What a real network loses",
        "Every query of a pretrained network attends its best keys only: error of the output and softmax mass kept, a line per layer.",
    ),
    "pareto": (
        "Speed against what is kept",
        "Each point is a number of keys on a layer of a real network: further right keeps more of the attention, further up is faster, and "
        "the area is memory.",
    ),
    "cache_speed": ("Speed of the cache formats", "Fewer bits are fewer bytes to read and more work to unpack; dashed are plain tensors."),
    "cache_memory": ("Memory of the cache formats", "Bytes per token with everything counted: codes, scales, page tables."),
    "cache_error": ("Error of the cache formats", "What the format alone does to the output; further left and further down is better."),
    "stream": ("A million tokens through a bounded cache", "Memory and times of a token have to stay flat however long it runs."),
    "selection_share": ("How many keys a policy needs", "Higher is better; the dotted line marks 5 % of the keys."),
    "selection_error": ("Error of the output by policy", "Lower is better; dotted lines mark 5 % of the keys and 10 % error."),
    "selection_pareto": (
        "Quality against bytes read",
        "With what the selector itself reads counted; the yellow line is the best for its bytes. Where "
        "nothing is answered wrongly, markers that would hide one another are set below 0 %.",
    ),
    "selection_formats": ("Policy and format of the cache", "Each cell is a policy in a format; dark is bad, a dash was not measured."),
    "selectors": (
        "What choosing costs and finds",
        "Time and bytes of one choice, and the share of the attention that lies on what was chosen.",
    ),
    "breakdown": (
        "Where the time of one query goes",
        "Choosing keys is a bar of its own: a selector that reads everything grows with the context until attention no longer matters. "
        "Above times, below their shares; each panel has a scale of its own.",
    ),
    "dsa": (
        "An indexer's lists: a dense mask, or the lists themselves",
        "sdpa scatters each list into a mask of all keys, so that time and memory grow with the square of the tokens; the numbers beside "
        "the points say how many times less selkey takes. Dashed: the same prefill in calls of 512 queries. Where a call takes many "
        "seconds, its time is a single sample; the records say where.",
    ),
    "dsa_model": (
        "A whole model that chooses its keys",
        "Everything is counted: projections, indexers, attention, cache. With replaced indexers no score of a single head and no mask of "
        "tokens by tokens is stored. The numbers say how many times less than sdpa that takes.",
    ),
    "marks": (
        "Who decides what stays",
        "All hold the same bytes and differ in what they pin; facts are spread over the whole text and asked for at its end. The oracle "
        "knows the questions. Right of the vertical line no model was trained.",
    ),
    "marks_flat": (
        "A story that goes on",
        "Memory and the time of a token stay flat with pins in a bounded cache, and grow where everything is kept.",
    ),
    "summaries": ("What page summaries know", "Errors with the unread pages dropped or folded, and how well the missed mass is estimated."),
    "model_speed": (
        "Tokens per second of a whole model",
        "Lines are expected, the bands reach from 0.8 to 1 × the roof; dotted parts would not fit. Red crosses are what was claimed, with "
        "the head count beside them: it is the KV heads, not the query heads, that move a line.",
    ),
    "model_memory": (
        "Memory of a whole model",
        "Where a line crosses a horizontal one, that device is full. Red crosses are what was claimed.",
    ),
    "model_parts": (
        "Where the time of a token goes",
        "One layer of colour per part. Selecting keys shrinks the attention only: what reads the weights stays, and so does what the "
        "selector itself reads.",
    ),
    "fit": (
        "What fits",
        "A point is an architecture that answers the question; ringed ones are beaten by none in all that is compared. Its size is memory.",
    ),
    "energy": ("Energy against speed", "Joule per token from the power limit of the device: an upper bound, since decoding draws less."),
    "cost_shares": (
        "Where the operations go",
        "Shares of the operations of a token against the context; the mark is where attention and the linear layers cost the same.",
    ),
    "gather": (
        "Gathering rows",
        "A gather of short rows reaches a part of the read bandwidth only; the vertical lines are the rows of this project's formats.",
    ),
    "curves": ("Ceilings", "Bandwidth over the working set (the steps are caches) and rate over the size of a square product."),
}
