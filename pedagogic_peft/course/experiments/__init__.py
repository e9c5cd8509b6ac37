"""The experiments too long for a page, and what they found, one line of JSON for each run."""
