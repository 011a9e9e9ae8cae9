"""The server: any bundle over HTTP; keys uploaded once, workers that stay busy, limits that hold, an audit log."""
