"""What may be said at once, and what a memory may be called; for a page and for a file alike."""

import re

# characters that a human may say at once
LONGEST = 100_000
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# names that some systems take for devices
DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])", re.IGNORECASE)
