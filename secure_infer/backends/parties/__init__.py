"""What protocols of two servers and a dealer share: channels, AES streams, messages, processes, standing roles."""
