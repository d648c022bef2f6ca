"""Which keys a query should read: index scores, their top k, and the two in one."""
