"""A protocol folder as a running whole: every role as its own process on this machine, one prediction, who saw what."""
