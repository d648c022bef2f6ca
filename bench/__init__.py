"""The measuring side of selkey: workloads, costs, timing, records and figures. `selkey bench` is its front door."""
