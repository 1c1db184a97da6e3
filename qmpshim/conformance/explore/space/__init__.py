"""The scenario space: a grammar of dimensions, covering arrays over it, and what was covered."""
