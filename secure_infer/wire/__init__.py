"""What travels: the frame around a blob, and the transports that carry frames."""
