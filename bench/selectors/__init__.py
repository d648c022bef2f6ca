"""What choosing costs and finds as the context grows: the command `selkey bench selectors`."""
