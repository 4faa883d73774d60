"""Parts that several algorithms are built from; each paper's file adds what is its own."""
