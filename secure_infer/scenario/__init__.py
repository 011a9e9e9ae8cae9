"""A protocol folder as a running whole: each role as its own process on this machine, predictions, and who saw what."""
