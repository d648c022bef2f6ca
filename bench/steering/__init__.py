"""`selkey steer` in a real browser: pictures for the README, and a long sitting measured."""
