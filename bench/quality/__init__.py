"""`selkey bench quality`: what selecting keys loses, policy by policy and format by format, and what it reads for that."""
