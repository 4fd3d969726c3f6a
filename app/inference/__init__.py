"""The engine: bundle, session, batching. Knows windows, not patches."""
