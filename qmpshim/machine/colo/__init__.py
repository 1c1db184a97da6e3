"""The two nodes of a COLO pair and the channels between them."""
