"""What page summaries know of the pages that nobody reads: the command `selkey bench summaries`."""
