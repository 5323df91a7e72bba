"""All runs of a folder as web pages, on this machine alone: found, listed, shown, compared."""
