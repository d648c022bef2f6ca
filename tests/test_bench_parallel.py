"""What the workloads of training count: products, and bytes that travel between processes."""

import torch

from selkey.bench import correctness, cost, parallel, workloads


def test_the_backward_pass_is_five_products_beside_two():
    (forward,), (both,) = workloads.prefill((64,), 8, dtype="bf16"), workloads.backward((64,), 8, dtype="bf16", deterministic=False)
    assert cost.flops(both, "selected") * 2 == cost.flops(forward, "selected") * 7


def test_processes_send_what_the_formula_says():
    case = workloads.parallel(256, 32, dtype="bf16")
    found = parallel.measure(case, 2, seed=0)
    timed = parallel.row_blocks(case, 2, found)["time"]
    assert timed["cold_proof"] == found.cold_proof and timed["cold_proof"]["ratio"] > 0
    assert timed["cache_mode"] == ("cold" if timed["cold_proof"]["ratio"] >= timed["cold_proof"]["factor"] else "unproven")
    assert found.error_rel_l2 < 2 * correctness.tolerance(torch.bfloat16)
    # a rank's bytes are filled up to the next multiple of 16, to one other rank
    formula = case.batch * parallel.bytes_per_token(case, 2)["parts"]
    assert formula < found.counted_bytes <= formula + 16
    # half of the rows lie elsewhere, and two ranks share in sending them; all rows go to the other rank
    sent = parallel.bytes_per_token(case, 2)
    assert sent["selected_rows"] == 32 / 4 * 8 * (128 + 128) * 2
    assert sent["all_rows"] == cost.cache_bytes(case) / 2 / 4
